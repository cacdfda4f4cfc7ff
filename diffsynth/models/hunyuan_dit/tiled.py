"""Blocks on overlapping squares of tokens, for images larger than those the network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from diffsynth.models.hunyuan_dit.blocks import Block
from diffsynth.models.hunyuan_dit.condition import BlockCondition
from diffsynth.models.hunyuan_dit.rope import Rope, build_rope
from diffsynth.nn.attention import AttentionHook, plain_attention
from diffsynth.nn.tiling import Window, origins, tiled


@dataclass(frozen=True, kw_only=True)
class TokenTiling:
    """Run every block on overlapping squares of tokens; a token is 16 x 16 image pixels.

    A square has the positions of a whole image of its size, so the image looks familiar to every block. Where the
    image is narrower than a square the windows are too, and have the positions of the square's middle: a window of
    48 x 64 tokens has those of a whole image of 48 x 64.

    Args:
        tile: side of a square in tokens.
        stride: tokens from one square to the next, at most ``tile``.

    Raises:
        ValueError: if a number is out of range.
    """

    tile: int = 64
    stride: int = 32

    def __post_init__(self) -> None:
        origins(1, self.tile, self.stride)  # refuses what cannot cover a grid

    def window_rope(self, rope: Rope) -> Rope | None:
        """Return the positions inside a window of an image, or None if one window holds the whole image."""
        height, width = min(self.tile, rope.height), min(self.tile, rope.width)
        if (height, width) == (rope.height, rope.width):
            return None
        square = build_rope(self.tile, self.tile, rope.head_dim, dtype=rope.cos.dtype, device=rope.cos.device)
        return square.crop(Window((self.tile - height) // 2, (self.tile - width) // 2, height, width))


class TokenGrid:
    """The tokens of an image, and how blocks are run on them: on all at once, or on overlapping squares.

    Args:
        rope: positions of the tokens.
        tile: how to cut the grid; a grid that fits into a single square is not cut.
    """

    def __init__(self, rope: Rope, tile: TokenTiling | None) -> None:
        self.rope = rope
        self.tile = tile
        self._window_rope = tile.window_rope(rope) if tile else None

    def run(
        self,
        block: Block,
        tokens: Tensor,
        condition: BlockCondition,
        *,
        skip: Tensor | None = None,
        perturbed: bool = False,
        attention: AttentionHook = plain_attention,
    ) -> Tensor:
        """Run a block on (B, N, D) tokens; see `Block`."""
        if self.tile is None or self._window_rope is None:
            whole: Tensor = block(tokens, condition, self.rope, skip=skip, perturbed=perturbed, attention=attention)
            return whole
        run = partial(block, condition=condition, rope=self._window_rope, perturbed=perturbed, attention=attention)
        return run_tiled(run, tokens, skip=skip, size=(self.rope.height, self.rope.width), tile=self.tile)


class RunTokens(Protocol):
    """A block with everything given but the tokens and the long skip."""

    def __call__(self, tokens: Tensor, *, skip: Tensor | None) -> Tensor:
        """Run on (B, n, D)."""


def run_tiled(
    run: RunTokens, tokens: Tensor, *, skip: Tensor | None, size: tuple[int, int], tile: TokenTiling
) -> Tensor:
    """Run a block on every window of a token grid and blend the results.

    Args:
        run: the block.
        tokens: (B, N, D), row by row.
        skip: (B, N, D), the long skip of a block that takes one; cropped as the tokens are.
        size: height and width of the grid, N tokens together.
        tile: how to cut it.

    Returns:
        (B, N, D).
    """

    def inside(window: Window, grid: Tensor) -> Tensor:
        return window.crop(torch.unflatten(grid, 1, size), channels_last=True).flatten(1, 2)

    def run_window(window: Window) -> Tensor:
        part = run(inside(window, tokens), skip=None if skip is None else inside(window, skip))
        return torch.unflatten(part, 1, (window.height, window.width))

    return tiled(run_window, size, tile=tile.tile, stride=tile.stride, channels_last=True).flatten(1, 2)
