"""LoRA files for the tests, written by hand in each of the spellings; nothing here uses the code under test."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffsynth.types import StateDict

Layers = dict[str, tuple[Tensor, Tensor]]
"""The name of a layer in a layout → up (rows, rank, ...), down (rank, columns, ...)."""

RANK = 3
TABLES = (
    "embed_tokens", "token_embedding", "position_embedding", "embeddings.", "shared", "positional", "padding",
    "relative", "style_embedder", "task_embedding",
)  # fmt: skip


def layers_of(state: Mapping[str, Tensor], seed: int = 0, rank: int = RANK, strength: float = 0.5) -> Layers:
    """Return random changes to every linear and convolutional layer of a network, by its names in a file."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found: Layers = {}
    for key, weight in state.items():
        if weight.ndim not in (2, 4) or (weight.ndim == 2 and any(word in key for word in TABLES)):
            continue
        name = re.sub(r"[._]weight$", "", key)
        kernel = tuple(weight.shape[2:])
        up = random(len(weight), rank, *(1 for _ in kernel)) * (strength / rank**0.5)
        found[name] = up, random(rank, weight.shape[1], *kernel) / weight[0].numel() ** 0.5
    return found


def changed(state: Mapping[str, Tensor], layers: Layers, scale: float) -> StateDict:
    """Return weights with the changes added, computed in float64."""
    out = dict(state)
    for name, (up, down) in layers.items():
        key = next(each for each in (f"{name}.weight", f"{name}_weight", name) if each in state)
        delta = (up.double().flatten(1) @ down.double().flatten(1)).view(state[key].shape)
        out[key] = (state[key].double() + scale * delta).to(state[key].dtype)
    return out


def peft(layers: Layers, outer: str = "base_model.model.", adapter: str = "") -> StateDict:
    """As peft writes them, and with other outer names also newer Diffusers, DiffSynth and ComfyUI."""
    return {
        f"{outer}{name}.lora_{way}{adapter}.weight": half
        for name, pair in layers.items()
        for way, half in zip("BA", pair, strict=True)
    }


def kohya(layers: Layers, outer: str = "lora_unet_", alpha: float | None = None) -> StateDict:
    """As kohya's programs write them: underscores for dots, and alpha beside."""
    out: StateDict = {}
    for name, (up, down) in layers.items():
        flat = outer + name.replace(".", "_")
        out |= {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down}
        if alpha is not None:
            out[f"{flat}.alpha"] = torch.tensor(alpha)
    return out


def dotted(layers: Layers, outer: str = "unet.", mark: str = ".lora") -> StateDict:
    """As Diffusers wrote them for a while."""
    return {
        f"{outer}{name}{mark}.{way}.weight": half
        for name, pair in layers.items()
        for way, half in zip(("up", "down"), pair, strict=True)
    }


def linear_layers(layers: Layers) -> StateDict:
    """As Diffusers wrote those of text encoders for a while."""
    return dotted(layers, mark=".lora_linear_layer")


def processors(layers: Layers) -> StateDict:
    """As the first Diffusers wrote them: attention only, named after what computed it."""
    out: StateDict = {}
    for name, (up, down) in layers.items():
        layer = re.sub(r"\.(attn\d)\.(to_\w+?)(\.0)?$", r".\1.processor.\2_lora", name)
        out |= {f"unet.{layer}.up.weight": up, f"unet.{layer}.down.weight": down}
    return out


def write(path: Path, state: StateDict, **metadata: object) -> Path:
    """Write a file; metadata that is no text becomes JSON."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path, metadata=texts)
    return path
