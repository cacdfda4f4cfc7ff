"""Edges of a picture by Canny's method (IEEE PAMI-8, 1986), as control networks for edges were trained on.

The numbers are those of OpenCV's ``Canny`` with a window of 3 and the sum of both gradients for their strength.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 100, 200  # strength of a gradient, for 8-bit values: an edge goes on above the one, begins above the other

# Slopes of 22.5 and 67.5 degrees in units of 2 ** -15, so that directions are told apart by whole numbers.
SHIFT = 15
SLOPE = 13573
SLOPE_STEEP = SLOPE + (2 << SHIFT)

Numbers = NDArray[np.int32]
Flags = NDArray[np.bool_]


def canny(pixels: NDArray[np.uint8], low: int = LOW, high: int = HIGH) -> Flags:
    """Find the edges of a picture, each one pixel wide.

    Args:
        pixels: (H, W, C), 0 to 255; where channels differ, the strongest gradient counts.
        low: an edge goes on while its gradient is above it; 0 to 2040.
        high: an edge has at least one gradient above it.

    Returns:
        (H, W), True on an edge.
    """
    right, down = _gradients(pixels)
    strength = np.abs(right) + np.abs(down)
    ridge = _ridges(strength, right, down) & (strength > low)
    return _connected(ridge, ridge & (strength > high))


def _gradients(pixels: NDArray[np.uint8]) -> tuple[Numbers, Numbers]:
    """Return how much brighter it gets to the right and downwards, by Sobel's windows; each (H, W)."""
    padded = np.pad(pixels.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, 2:] - padded[:, :-2]
    along = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    right = across[:-2] + 2 * across[1:-1] + across[2:]
    down = along[2:] - along[:-2]
    channel = np.argmax(np.abs(right) + np.abs(down), axis=2)[..., None]
    return np.take_along_axis(right, channel, 2)[..., 0], np.take_along_axis(down, channel, 2)[..., 0]


def _ridges(strength: Numbers, right: Numbers, down: Numbers) -> Flags:
    """Return where a gradient is stronger than its neighbours before and behind it, in its own direction."""
    padded = np.pad(strength, 1)
    height, width = strength.shape

    def neighbour(rows: int, columns: int) -> Numbers:
        return padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    steepness, flat = np.abs(down) << SHIFT, np.abs(right)
    horizontal = steepness < flat * SLOPE
    vertical = steepness > flat * SLOPE_STEEP
    falling = (right < 0) != (down < 0)
    # Of two equal neighbours one wins, so that an edge between two pixels is one pixel wide.
    beside = (strength > neighbour(0, -1)) & (strength >= neighbour(0, 1))
    above = (strength > neighbour(-1, 0)) & (strength >= neighbour(1, 0))
    rising_line = (strength > neighbour(-1, -1)) & (strength > neighbour(1, 1))
    falling_line = (strength > neighbour(-1, 1)) & (strength > neighbour(1, -1))
    found: Flags = np.select([horizontal, vertical, falling], [beside, above, falling_line], rising_line)
    return found


def _connected(ridge: Flags, strong: Flags) -> Flags:
    """Return the parts of a ridge, of pixels that touch at a side or a corner, with something strong in them."""
    waiting = np.pad(ridge & ~strong, 1).ravel()
    edges = np.pad(strong, 1).ravel()
    width = ridge.shape[1] + 2
    around = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    reached = np.flatnonzero(edges)
    while len(reached):
        touched = np.unique(reached[:, None] + around)
        reached = touched[waiting[touched]]
        waiting[reached] = False
        edges[reached] = True
    found: Flags = edges.reshape(-1, width)[1:-1, 1:-1]
    return found
