"""Pictures as prompts of a UNet: which adapters fit, and how they make the denoiser attend to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffsynth.core.loaded import LoadedModel
from diffsynth.manager import ModelManager
from diffsynth.models.ip_adapter.model import IPAdapter
from diffsynth.models.unet.model import UNet
from diffsynth.nn.picture_attention import PictureAttention
from diffsynth.nn.transformer_2d import Attention
from diffsynth.pipelines.ip_adapter import PicturePrompts, SeenPictures

ORDER = ("down_blocks", "up_blocks", "mid_block")  # in which adapters number the cross-attentions


def choose_pictures(
    manager: ModelManager, unet: LoadedModel[Any], *, adapter: str | int | None, encoder: str | int | None
) -> PicturePrompts[IPAdapter]:
    """Choose the adapter and the image encoder among those that are loaded; see ``PicturePrompts.choose``."""
    widths = tuple(layer.to_k.out_features for layer in _cross_attentions(unet.module).values())

    def misfit(entry: LoadedModel[Any]) -> str | None:
        found, expected = entry.config.context_size, unet.config.context_size
        if found != expected:
            return f"{entry.label} does not fit {unet.label}: its tokens have {found} features, the text's {expected}."
        if entry.config.widths != widths:
            return f"{entry.label} does not fit {unet.label}: its layers are not those of the denoiser's attention."
        return None

    return PicturePrompts.choose(manager, IPAdapter, adapter=adapter, encoder=encoder, misfit=misfit)


def attention_to(
    seen: SeenPictures[IPAdapter], unet: UNet, index: Sequence[int], *, scale_without: float | None
) -> PictureAttention:
    """Return what makes a denoiser attend to pictures.

    Args:
        seen: the pictures.
        unet: the denoiser.
        index: for each row that the denoiser is run on, 1 if it sees the pictures, 0 if it sees none.
        scale_without: weight where it sees none; None for the same.
    """
    weight, layers = next(unet.parameters()), _cross_attentions(unet)
    tokens = seen.adapter.tokens(seen.without_and_with)
    pairs = seen.adapter.keys_values(tokens, tuple(layer.heads for layer in layers.values()))
    moved = ((keys.to(weight), values.to(weight)) for keys, values in pairs)
    scales = (seen.scale if scale_without is None else scale_without, seen.scale)
    return PictureAttention(dict(zip(layers, moved, strict=True)), torch.tensor(scales, device=weight.device)).rows(
        index
    )


def _cross_attentions(unet: UNet) -> dict[str, Attention]:
    """Return the layers that attend to the text, in the order in which adapters number them."""
    found = unet.cross_attentions()
    return {name: layer for part in ORDER for name, layer in found.items() if name.startswith(f"{part}.")}
