"""Numbers as vectors, images as tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid(values: Tensor, size: int, *, max_period: float = 10000.0) -> Tensor:
    """Embed numbers as cosines and sines of falling frequencies (arXiv 1706.03762, cosines first).

    Frequency k of ``size / 2`` is ``max_period ** (-k / (size / 2))``. Everything is float32: large timesteps are no
    longer whole numbers in bfloat16, so cast the result and never the input.

    Args:
        values: any shape, such as timesteps.
        size: length of a vector, even.
        max_period: sets the lowest frequency.

    Returns:
        (*values.shape, size), float32.

    Raises:
        ValueError: if ``size`` is odd.
    """
    if size % 2:
        raise ValueError(f"a sinusoidal embedding has an even size, not {size}")
    half = size // 2
    exponent = torch.arange(half, dtype=torch.float32, device=values.device) * (-math.log(max_period) / half)
    angles = values.float()[..., None] * exponent.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class PatchEmbed(nn.Module):
    """Cut an image into square patches and project each to a token.

    Args:
        channels: channels of the image.
        patch_size: side of a patch; height and width of the image must be multiples of it.
        hidden_size: size of a token.
    """

    def __init__(self, channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Return tokens row by row: (B, C, H, W) to (B, H / p * W / p, D)."""
        grid: Tensor = self.proj(image)  # (B, D, H / p, W / p)
        return grid.flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Lay tokens out as the image they describe, row by row.

    Args:
        tokens: (B, height * width, p * p * C); a token holds its patch by row, column, channel, channel fastest.
        height: rows of tokens.
        width: columns of tokens.
        patch_size: side p of a patch.

    Returns:
        (B, C, height * p, width * p).
    """
    rows, _, size = tokens.shape
    patches = tokens.reshape(rows, height, width, patch_size, patch_size, size // patch_size**2)  # (B, h, w, p, p, C)
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
