"""Pictures as prompts of HunyuanDiT: which adapters fit, and how they make the denoiser attend to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from diffsynth.core.loaded import LoadedModel
from diffsynth.manager import ModelManager
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit_ip_adapter.model import HunyuanDiTIPAdapter
from diffsynth.nn.picture_attention import PictureAttention
from diffsynth.pipelines.ip_adapter import PicturePrompts, SeenPictures


def choose_pictures(
    manager: ModelManager, dit: LoadedModel[Any], *, adapter: str | int | None, encoder: str | int | None
) -> PicturePrompts[HunyuanDiTIPAdapter]:
    """Choose the adapter and the image encoder among those that are loaded; see ``PicturePrompts.choose``."""

    def misfit(entry: LoadedModel[Any]) -> str | None:
        for name in ("hidden_size", "num_heads", "depth", "text_dim"):
            found, expected = getattr(entry.config, name), getattr(dit.config, name)
            if found != expected:
                return f"{entry.label} does not fit {dit.label}: its {name} is {found}, the denoiser's {expected}."
        return None

    return PicturePrompts.choose(
        manager, HunyuanDiTIPAdapter, adapter=adapter, encoder=encoder, misfit=misfit, bilingual=True
    )


def attention_to(seen: SeenPictures[HunyuanDiTIPAdapter], dit: HunyuanDiT, index: Sequence[int]) -> PictureAttention:
    """Return what makes a denoiser attend to pictures.

    Args:
        seen: the pictures.
        dit: the denoiser.
        index: for each row that the denoiser is run on, 1 if it sees the pictures, 0 if it sees none.
    """
    weight = next(dit.parameters())
    embeds = F.normalize(seen.without_and_with.float(), dim=-1)  # zeros stay zeros
    pairs = seen.adapter.keys_values(seen.adapter.tokens(embeds))
    layers = {
        f"blocks.{number}.cross_attn": (keys.to(weight), values.to(weight))
        for number, (keys, values) in enumerate(pairs)
    }
    return PictureAttention(layers, torch.full((2,), seen.scale, device=weight.device)).rows(index)
