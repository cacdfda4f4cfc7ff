"""How each format of LoRA files names the layers of each network, and where it keeps alpha."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from diffsynth.core.family import ModelFamily
from diffsynth.errors import InvalidRequest, printable


@dataclass(frozen=True)
class Format:
    """A format of LoRA files.

    Args:
        text: what it is, in words.
        ways: what follows a layer's name for ``up`` and for ``down``.
        alpha: where it is: in a ``tensor``, in the ``header``, in a ``table`` beside the file, or ``nowhere``.
        only: the network that a file of it can change, empty for several at once.
        convolutions: whether it can change any.
    """

    text: str
    ways: tuple[str, str]
    alpha: str
    only: str = ""
    convolutions: bool = True


PEFT_WAYS = (".lora_B.weight", ".lora_A.weight")
FORMATS = {
    "peft": Format("a folder of peft, as HunyuanDiT's are published", PEFT_WAYS, "table", only="one network"),
    "diffusers": Format("Diffusers' save_lora_weights", PEFT_WAYS, "header"),
    "diffusers-old": Format("Diffusers before it used peft", (".up.weight", ".down.weight"), "nowhere"),
    "kohya": Format("kohya's sd-scripts, which most programs read", (".lora_up.weight", ".lora_down.weight"), "tensor"),
    "diffsynth": Format(
        "DiffSynth 1.x", (".lora_B.default.weight", ".lora_A.default.weight"), "nowhere", only="the denoiser"
    ),
    "comfyui": Format("ComfyUI's plain names", PEFT_WAYS, "tensor"),
    "original": Format(
        "HunyuanDiT's first web page",
        (".lora.up.weight", ".lora.down.weight"),
        "tensor",
        only="the denoiser",
        convolutions=False,
    ),
}

_HF = "transformers"
NAMES: dict[str, dict[str, tuple[str, str]]] = {  # network → format → what surrounds a name, and whose names they are
    "hunyuan_dit": {
        "peft": ("base_model.model.", "original"),
        "diffusers": ("transformer.", "diffusers"),
        "kohya": ("lora_unet_", "original"),
        "diffsynth": ("", "diffsynth"),
        "comfyui": ("diffusion_model.", "original"),
        "original": ("unet.", "original"),
    },
    "bert_clip": {
        "peft": ("base_model.model.", _HF),
        "diffusers": ("text_encoder.", _HF),
        "kohya": ("lora_te1_", _HF),
        "comfyui": ("text_encoders.hydit_clip.transformer.", "original"),
    },
    "mt5": {
        "peft": ("base_model.model.", _HF),
        "diffusers": ("text_encoder_2.", _HF),
        "comfyui": ("text_encoders.mt5xl.transformer.", _HF),
    },
    "unet": {
        "peft": ("base_model.model.", "diffusers"),
        "diffusers": ("unet.", "diffusers"),
        "diffusers-old": ("unet.", "diffusers"),
        "kohya": ("lora_unet_", "diffusers"),
        "diffsynth": ("", "diffsynth"),
        "comfyui": ("diffusion_model.", "ldm"),
    },
    "clip": {
        "peft": ("base_model.model.", _HF),
        "diffusers": ("text_encoder.", _HF),
        "diffusers-old": ("text_encoder.", _HF),
        "kohya": ("lora_te_", _HF),
        "comfyui": ("text_encoders.clip_l.transformer.", _HF),
    },
    "clip 2": {
        "peft": ("base_model.model.", _HF),
        "diffusers": ("text_encoder_2.", _HF),
        "diffusers-old": ("text_encoder_2.", _HF),
        "kohya": ("lora_te2_", _HF),
        "comfyui": ("text_encoders.clip_g.transformer.", _HF),
    },
}
NAMES["unet xl"] = NAMES["unet"] | {"kohya": ("lora_unet_", "ldm")}
NAMES["clip xl"] = NAMES["clip"] | {"kohya": ("lora_te1_", _HF)}


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        InvalidRequest: there is none; the message names those there are.
    """
    if name not in FORMATS:
        raise InvalidRequest(f"there is no format of LoRA called {printable(name)!r}, only {', '.join(FORMATS)}.")
    return FORMATS[name]


def is_xl(family: ModelFamily, config: Any) -> bool:
    """Whether a network is one of those that only SDXL has."""
    return bool(
        (family.name == "unet" and config.label_size) or (family.name == "clip" and config.projection_size)
    )  # fmt: skip


def role(family: ModelFamily, config: Any, *, xl: bool) -> str:
    """Return which network of a model this is, as ``NAMES`` calls it; ``xl`` says that the model is SDXL."""
    if family.name == "clip" and xl:
        return "clip 2" if config.projection_size else "clip xl"
    return "unet xl" if family.name == "unet" and xl else family.name


@dataclass(frozen=True)
class Keys:
    """The keys of the change of one layer."""

    up: str
    down: str
    alpha: str


def keys_of(name: str, to: str, outer: str) -> Keys:
    """Return how a format spells the change of a layer that has a name in its layout."""
    up, down = FORMATS[to].ways
    match to:
        case "kohya":
            layer = outer + name.replace(".", "_")
        case "original":
            layer = outer + name.replace("_", ".")
            return Keys(layer + up, layer + down, f"{name}.weight.alpha")
        case "diffusers-old":
            layer = outer + _old(name, text=outer != "unet.")
        case _:
            layer = outer + name
    return Keys(layer + up, layer + down, f"{layer}.alpha")


def _old(name: str, *, text: bool) -> str:
    """Return a layer's name with what older Diffusers put behind it; in attention, what computed it is named too."""
    if text:
        return f"{name}.lora_linear_layer"
    attention = re.fullmatch(r"(.+\.attn\d)\.(to_(?:q|k|v|out))(?:\.0)?", name)
    return f"{attention[1]}.processor.{attention[2]}_lora" if attention else f"{name}.lora"
