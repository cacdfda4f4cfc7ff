"""Run a function over overlapping windows of a 2-D grid and blend what it returns.

The grid may be anything laid out in rows and columns: tokens, latent pixels, image pixels. This file knows only its
height and width; the function is handed a `Window` and crops whatever it needs with `Window.crop`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of grid cells."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The first row below the window."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column right of the window."""
        return self.left + self.width

    def scaled(self, factor: int) -> Window:
        """Return the same rectangle on a grid that is ``factor`` times finer, such as pixels instead of latents."""
        return Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def crop(self, grid: Tensor, *, channels_last: bool = False) -> Tensor:
        """Return the window's part of a grid, a view.

        Args:
            grid: (..., H, W), or (..., H, W, C) if ``channels_last``.
            channels_last: whether a channel dimension follows rows and columns.
        """
        rows, columns = slice(self.top, self.bottom), slice(self.left, self.right)
        return grid[..., rows, columns, :] if channels_last else grid[..., rows, columns]


def origins(length: int, tile: int, stride: int) -> tuple[int, ...]:
    """Return where windows start along one side; together they cover it, and none reaches over its end.

    Origins step by ``stride``; the last is pulled back to end at the border. A side no longer than the tile has one
    window, which starts at 0 and covers that side.

    Raises:
        ValueError: if ``length`` or ``tile`` is below 1, or ``stride`` is not within 1 to ``tile``.
    """
    if length < 1 or tile < 1:
        raise ValueError(f"a side of {length} cells cannot be cut into tiles of {tile}: both must be at least 1")
    if not 1 <= stride <= tile:
        raise ValueError(f"the tile stride must be from 1 to the tile size {tile} to leave no gaps, but is {stride}")
    last = max(length - tile, 0)
    return (*range(0, last, stride), last)


def windows(size: tuple[int, int], tile: int, stride: int) -> tuple[Window, ...]:
    """Return the windows that cover a grid, row by row.

    Args:
        size: height and width of the grid in cells.
        tile: side of a window in cells; a grid side that is shorter gets windows of its own length on that side.
        stride: cells from one window to the next, at most ``tile``.

    Raises:
        ValueError: if a number is out of range.
    """
    height, width = size
    return tuple(
        Window(top, left, min(tile, height), min(tile, width))
        for top in origins(height, tile, stride)
        for left in origins(width, tile, stride)
    )


def blend_mask(
    window: Window,
    size: tuple[int, int],
    *,
    border: int | None = None,
    everywhere: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return a window's blend weights: 1 inside, falling towards every side that has a neighbour.

    The outermost row of cells along such a side weighs 1 / border, the next 2 / border, and so on; where two ramps
    meet the smaller counts. All weights are above 0.

    Args:
        window: the window.
        size: height and width of the whole grid, in the window's cells.
        border: length of the ramp in cells; by default a quarter of the window's height plus width.
        everywhere: fall towards sides on the grid's own border too.
        device: where to make it.

    Returns:
        (window.height, window.width), float32, from above 0 to 1.
    """
    ramp = max(border if border is not None else (window.height + window.width) // 4, 1)
    rows = _distance(window.height, everywhere or window.top > 0, everywhere or window.bottom < size[0], ramp, device)
    columns = _distance(window.width, everywhere or window.left > 0, everywhere or window.right < size[1], ramp, device)
    return torch.minimum(rows[:, None], columns[None, :]) / ramp


def _distance(length: int, before: bool, after: bool, limit: int, device: torch.device | str | None) -> Tensor:
    """Return for each cell of a side its distance (1 to ``limit``) to the ends towards which weights fall."""
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    distance = torch.full_like(position, limit)
    if before:
        distance = torch.minimum(distance, position)
    if after:
        distance = torch.minimum(distance, position.flip(0))
    return distance


def tiled(
    function: Callable[[Window], Tensor],
    size: tuple[int, int],
    *,
    tile: int,
    stride: int,
    scale: int = 1,
    border: int | None = None,
    everywhere: bool = False,
    channels_last: bool = False,
) -> Tensor:
    """Call a function on every window of a grid and return the blended whole.

    A grid that fits into one tile is one call, returned as it is. Half precision is summed in float32.

    Args:
        function: takes a `Window` of the grid, returns (..., h, w), or (..., h, w, C) if ``channels_last``, with
            h and w the window's height and width times ``scale``.
        size: height and width of the grid in cells.
        tile: side of a window in cells.
        stride: cells from one window to the next, at most ``tile``.
        scale: cells of the result per cell of the grid, such as 8 for pixels from latents.
        border: length of the blend ramp in cells of the result; see `blend_mask`.
        everywhere: whether ramps fall towards the grid's own border too.
        channels_last: whether the function's result has a channel dimension after rows and columns.

    Returns:
        (..., H * scale, W * scale) or (..., H * scale, W * scale, C), in the dtype the function returned.

    Raises:
        ValueError: if a number is out of range, or the function returns another height or width.
    """
    places = windows(size, tile, stride)
    if len(places) == 1:
        return function(places[0])

    full = (size[0] * scale, size[1] * scale)
    total: Tensor | None = None
    weight = torch.zeros(())
    dtype = torch.float32
    for place in places:
        part = function(place)
        where = place.scaled(scale)
        rows, columns = (-3, -2) if channels_last else (-2, -1)
        if (part.shape[rows], part.shape[columns]) != (where.height, where.width):
            raise ValueError(f"a window of {where.height} x {where.width} cells came back as {tuple(part.shape)}")
        if total is None:
            dtype = part.dtype
            shape = list(part.shape)
            shape[rows], shape[columns] = full
            total = part.new_zeros(shape, dtype=torch.promote_types(dtype, torch.float32))
            weight = torch.zeros(full, dtype=torch.float32, device=part.device)
        mask = blend_mask(where, full, border=border, everywhere=everywhere, device=part.device)
        where.crop(weight).add_(mask)
        where.crop(total, channels_last=channels_last).add_(part * (mask[..., None] if channels_last else mask))
    assert total is not None, "a grid has at least one window"
    return (total / (weight[..., None] if channels_last else weight)).to(dtype)
