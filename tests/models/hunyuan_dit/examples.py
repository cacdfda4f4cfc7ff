"""Small networks and prompts that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffsynth.models.hunyuan_dit.condition import TextFeatures
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.models.hunyuan_dit.model import HunyuanDiT

N = TypeVar("N", bound=nn.Module)

V1_2 = HunyuanDiTConfig.tiny()
V1_1 = replace(V1_2, size_conditioning=True)


def random_network(config: HunyuanDiTConfig, seed: int = 0) -> HunyuanDiT:
    """Build a network in which no parameter is a constant, norms included, so that a swap shows."""
    return filled(HunyuanDiT(config), seed)


def random_control_network(config: HunyuanDiTConfig, seed: int = 1) -> HunyuanDiTControlNet:
    """Build a control network likewise, so that what begins at zero does not stay there."""
    return filled(HunyuanDiTControlNet(config), seed)


def filled(network: N, seed: int) -> N:
    network.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return network


def random_text(config: HunyuanDiTConfig, lengths: Sequence[tuple[int, int]], seed: int = 0) -> TextFeatures:
    """Draw features of prompts with these numbers of real CLIP and mT5 tokens; padding has features too."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    clip_lengths, t5_lengths = torch.tensor(lengths).unbind(1)
    return TextFeatures(
        clip=torch.randn(rows, config.text_len, config.text_dim, generator=generator),
        clip_mask=torch.arange(config.text_len) < clip_lengths[:, None],
        t5=torch.randn(rows, config.t5_len, config.t5_dim, generator=generator),
        t5_mask=torch.arange(config.t5_len) < t5_lengths[:, None],
    )


def random_latents(rows: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Draw latents for a grid of ``height`` x ``width`` tokens."""
    return torch.randn(rows, 4, 2 * height, 2 * width, generator=torch.Generator().manual_seed(seed))


def sizes(config: HunyuanDiTConfig, rows: int) -> Tensor | None:
    """Return a size condition, different in each row, if the network takes one."""
    if not config.size_conditioning:
        return None
    return torch.tensor([[1024.0, 1024.0, 1280.0, 768.0 + 16 * row, 0.0, 0.0] for row in range(rows)])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what was expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
