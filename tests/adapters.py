"""Small random IP-Adapters and their image encoders, in files as they are published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffsynth.core.saving import to_layout
from diffsynth.models import bert_clip, clip_vision, hunyuan_dit_ip_adapter, ip_adapter
from diffsynth.models.clip_vision.config import ClipVisionConfig
from diffsynth.models.ip_adapter.config import IPAdapterConfig
from diffsynth.types import StateDict
from examples.random_stable_diffusion import SD, XL
from tests.spellings import lively

ENCODER = ClipVisionConfig.tiny()
UNETS = {
    "sd15": IPAdapterConfig(
        embed_size=ENCODER.projection_size,
        context_size=SD.context_size,
        widths=(*(32,) * 2, *(64,) * 2, *(96,) * 2, *(96,) * 3, *(64,) * 3, *(32,) * 3, 96),
    ),
    "sdxl": replace(IPAdapterConfig.tiny_xl(), context_size=XL.context_size),
}
HUNYUAN_DIT = replace(hunyuan_dit_ip_adapter.FAMILY.tiny(), text_dim=bert_clip.FAMILY.tiny().hidden_size)


def write_ip_adapter(folder: Path, name: str, seed: int = 0) -> list[Path]:
    """Write an adapter of ``sd15`` or ``sdxl`` as a torch file of two dicts, and its image encoder; return both."""
    home = folder / "image_encoder"
    home.mkdir(parents=True, exist_ok=True)
    adapter = lively(ip_adapter.FAMILY, UNETS[name], seed + 1)
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in to_layout(adapter, ip_adapter.FAMILY.layouts[0], UNETS[name]).items():
        part, _, rest = key.partition(".")
        nested[part][rest] = tensor
    torch.save(nested, folder / f"ip-adapter_{name}.bin")
    save_file(_encoder("transformers", seed), home / "model.safetensors")
    return [folder / f"ip-adapter_{name}.bin", home / "model.safetensors"]


def write_hunyuan_dit_ip_adapter(folder: Path, seed: int = 0) -> list[Path]:
    """Write the adapter of HunyuanDiT and its image encoder; return both files."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = lively(hunyuan_dit_ip_adapter.FAMILY, HUNYUAN_DIT, seed + 1)
    torch.save(to_layout(adapter, hunyuan_dit_ip_adapter.FAMILY.layouts[0], HUNYUAN_DIT), folder / "ipa.pt")
    tower = {f"module.{key}": tensor for key, tensor in _encoder("bilingual", seed).items()}
    torch.save({"state_dict": tower, "epoch": 1, "step": 2}, folder / "clip_img_encoder.pt")
    return [folder / "ipa.pt", folder / "clip_img_encoder.pt"]


def _encoder(layout: str, seed: int) -> StateDict:
    network: Any = lively(clip_vision.FAMILY, ENCODER, seed)
    state = to_layout(network, clip_vision.FAMILY.layout(layout), ENCODER)
    return {key: tensor.contiguous() for key, tensor in state.items()}
