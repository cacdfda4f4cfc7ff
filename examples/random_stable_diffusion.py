"""Write small Stable Diffusion files with random weights, key for key as the real ones are published.

They draw noise, in a second on a CPU: good for trying the road that the real files take.

    python examples/random_stable_diffusion.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffsynth.core.family import ModelFamily
from diffsynth.core.saving import save_network, to_layout
from diffsynth.models import autoencoder_kl, clip, unet
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.control_config import ControlNetConfig

MERGES = ("p h", "o t", "ph ot", "phot o</w>", "c a", "ca t</w>", "a n", "o f</w>")
TOKENS = 2 * 256 + len(MERGES) + 2

CLIP_L = ClipTextConfig(vocab_size=TOKENS, hidden_size=64, num_layers=3, mlp_size=96, end_token=TOKENS - 1)
BIG_G = replace(CLIP_L, hidden_size=128, num_layers=4, mlp_size=160, projection_size=128)
SD = UNetConfig(channels=(32, 64, 96, 96), context_size=64, time_size=72)
XL = replace(UNetConfig.tiny_xl(), context_size=64 + 128, label_size=128 + 6 * 256)
REFINER = replace(
    XL, channels=(32, 64, 128, 128), depths=(0, 1, 1, 0), mid_depth=1, context_size=128, label_size=128 + 5 * 256
)
SD_CONTROL = ControlNetConfig(channels=SD.channels, context_size=64, time_size=128, hint_channels=(4, 6, 10, 14))
XL_UNION = replace(ControlNetConfig.tiny_union(), context_size=XL.context_size, label_size=XL.label_size, time_size=128)


@dataclass(frozen=True)
class Part:
    """One network of a release: its place in a single file, and its folder in one of Diffusers."""

    family: ModelFamily
    config: Any
    prefix: str
    layout: str
    folder: str


def _parts(denoiser: UNetConfig, *encoders: tuple[ClipTextConfig, str, str, str]) -> tuple[Part, ...]:
    vae = autoencoder_kl.FAMILY
    return (
        Part(unet.FAMILY, denoiser, "model.diffusion_model.", "ldm", "unet"),
        Part(vae, vae.tiny(), "first_stage_model.", "ldm", "vae"),
        *(Part(clip.FAMILY, *encoder) for encoder in encoders),
    )


SD_TEXT = (CLIP_L, "cond_stage_model.transformer.", "transformers", "text_encoder")
XL_TEXT = (CLIP_L, "conditioner.embedders.0.transformer.", "transformers", "text_encoder")
XL_TEXT_2 = (BIG_G, "conditioner.embedders.1.model.", "open_clip", "text_encoder_2")
REFINER_TEXT = (BIG_G, "conditioner.embedders.0.model.", "open_clip", "text_encoder_2")
RELEASES = {
    "sd15": _parts(SD, SD_TEXT),
    "sd15-inpainting": _parts(replace(SD, in_channels=9), SD_TEXT),
    "sdxl": _parts(XL, XL_TEXT, XL_TEXT_2),
    "sdxl-refiner": _parts(REFINER, REFINER_TEXT),
    "sd15-controlnet": (Part(unet.CONTROLNET_FAMILY, SD_CONTROL, "control_model.", "ldm", "controlnet"),),
    "sdxl-controlnet": (Part(unet.CONTROLNET_FAMILY, replace(XL_UNION, types=0), "", "diffusers", "controlnet"),),
    "sdxl-union": (Part(unet.CONTROLNET_FAMILY, XL_UNION, "", "diffusers", "controlnet"),),
}


def build(name: str, seed: int = 0) -> list[tuple[Part, nn.Module]]:
    """Build the networks of a release, such as ``sd15``, ``sdxl-refiner`` or ``sdxl-union``, a control network."""
    torch.manual_seed(seed)
    return [(part, part.family.build(part.config)) for part in RELEASES[name]]


def single_file(networks: list[tuple[Part, nn.Module]]) -> dict[str, Tensor]:
    """Return the weights as a single file holds them, with what such a file has beside them."""
    state: dict[str, Tensor] = {}
    for part, module in networks:
        spelt = to_layout(module, part.family.layout(part.layout), part.config)
        state |= {part.prefix + key: tensor.detach().contiguous() for key, tensor in spelt.items()}
        if part.layout == "transformers":
            state[f"{part.prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
        if part.layout == "open_clip":
            state[f"{part.prefix}logit_scale"] = torch.tensor(4.6)
    return state


def write_single_file(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a release as one file, with the folder ``tokenizer`` beside it; return the file."""
    write_tokenizer(folder / "tokenizer")
    save_file(single_file(build(name, seed)), folder / f"{name}.safetensors", metadata={"format": "pt"})
    return folder / f"{name}.safetensors"


def write_diffusers_folder(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a release as a folder of Diffusers, with the same weights as the single file; return the folder."""
    for part, module in build(name, seed):
        home = folder / part.folder
        home.mkdir(parents=True, exist_ok=True)
        text = part.family is clip.FAMILY
        weights = home / ("model.safetensors" if text else "diffusion_pytorch_model.safetensors")
        save_network(module, part.family, part.config, weights, "transformers" if text else "diffusers")
        if text:
            write_tokenizer(folder / part.folder.replace("text_encoder", "tokenizer"))
    xl = "XL" if "xl" in name else ""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": f"StableDiffusion{xl}Pipeline"}), "utf-8")
    return folder


def write_tokenizer(folder: Path, merges: Sequence[str] = MERGES) -> int:
    """Write a vocabulary in the form of CLIP's, by default a small one, and return its number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [*_letters()]
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    numbers = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n", "utf-8")
    return len(tokens)


def more_merges(tokens: int) -> list[str]:
    """Return merges for a vocabulary of so many tokens: the usual ones, then any two letters that end a word."""
    letters = [*_letters()]
    pairs = (f"{first} {second}</w>" for first in letters for second in letters)
    others = (pair for pair in pairs if pair not in MERGES)
    return [*MERGES, *islice(others, tokens - 2 * len(letters) - len(MERGES) - 2)]


def _letters() -> Iterator[str]:
    """Yield a letter for each byte, those that can be printed first: ``!`` is token 0."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))


if __name__ == "__main__":
    for release in RELEASES:
        print(write_single_file(Path(sys.argv[1]), release))
