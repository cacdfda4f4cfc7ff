"""Rotary positions of image tokens on a 2-D grid (arXiv 2104.09864; HunyuanDiT, arXiv 2405.08748, section 2.1.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from diffsynth.nn.tiling import Window

EndPoint = Literal["stop", "diffusers"]

THETA = 10000.0


@dataclass(frozen=True)
class Rope:
    """Cosines and sines for every token of a grid, row by row.

    Dimensions come in pairs with one angle each: the first half of a head turns with the token's column, the second
    half with its row.

    Args:
        cos: (height * width, head_dim).
        sin: (height * width, head_dim).
        height: rows of the token grid.
        width: columns of the token grid.
    """

    cos: Tensor
    sin: Tensor
    height: int
    width: int

    @cached_property
    def _turns(self) -> Tensor:
        """One complex number for each pair: (height * width, 1, head_dim / 2)."""
        with torch.inference_mode(False):  # kept, so it must serve a later call that trains
            return torch.complex(self.cos[:, None, ::2].float(), self.sin[:, None, ::2].float())

    @property
    def head_dim(self) -> int:
        """Size of the attention head."""
        return self.cos.shape[-1]

    def to(self, device: torch.device | str) -> Rope:
        """Return the same tables on a device; this object if they are there."""
        if self.cos.device == torch.device(device):
            return self
        return Rope(self.cos.to(device), self.sin.to(device), self.height, self.width)

    def crop(self, window: Window) -> Rope:
        """Return the tables of the tokens inside a window."""
        cos, sin = (
            window.crop(torch.unflatten(table, 0, (self.height, self.width)), channels_last=True).flatten(0, 1)
            for table in (self.cos, self.sin)
        )
        return Rope(cos, sin, window.height, window.width)

    def rotate(self, features: Tensor) -> Tensor:
        """Turn every pair (a, b) of a head to (a cos - b sin, b cos + a sin), in float32.

        Args:
            features: (B, N, heads, head_dim), N the tokens of the grid.

        Returns:
            The same shape and dtype.
        """
        pairs = torch.unflatten(features.float(), -1, (-1, 2))
        if features.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
            # One complex product is several times faster than the same thing written out; compilers cannot fuse it.
            turned = torch.view_as_real(torch.view_as_complex(pairs) * self._turns)
        else:
            cos, sin = self.cos[:, None, ::2], self.sin[:, None, ::2]
            first, second = pairs.unbind(-1)
            turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.flatten(-2).to(features.dtype)


def build_rope(
    height: int,
    width: int,
    head_dim: int,
    *,
    end_point: EndPoint = "stop",
    base_size: int = 32,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Rope:
    """Return the rotary tables of an image.

    The grid is scaled so that its longer side spans ``base_size`` positions and is centred in a square of that side;
    a larger image has finer positions, not more of them.

    Args:
        height: rows of the token grid, image height / 16.
        width: columns of the token grid, image width / 16.
        head_dim: size of an attention head, a multiple of 4.
        end_point: "stop" spaces positions as the network was trained. "diffusers" ends them at
            stop * (n - 1) / n, as the Diffusers library does; this differs where the image is not square.
        base_size: side of the square in positions.
        dtype: dtype of the tables; angles are float32 always.
        device: where to make the tables.

    Raises:
        ValueError: if the grid is empty or ``head_dim`` is not a multiple of 4.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a token grid of {height} x {width} is empty")
    if head_dim % 4:
        raise ValueError(f"head_dim {head_dim} is not a multiple of 4: half of it turns with rows, half with columns")

    (top, left), (bottom, right) = crop_region(height, width, base_size)
    rows = _positions(top, bottom, height, end_point, device)
    columns = _positions(left, right, width, end_point, device)

    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=device) / half
    frequencies = 1.0 / THETA**exponents  # (head_dim / 4,)
    by_column = torch.outer(columns, frequencies).expand(height, width, -1)
    by_row = torch.outer(rows, frequencies)[:, None].expand(height, width, -1)
    angles = torch.cat((by_column, by_row), dim=-1).flatten(0, 1).repeat_interleave(2, dim=-1)
    return Rope(angles.cos().to(dtype), angles.sin().to(dtype), height, width)


def crop_region(height: int, width: int, base_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (top, left) and (bottom, right) of a grid that is fitted into the middle of a square.

    Halves are rounded to even numbers.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        base_size: side of the square.
    """
    if height > width:
        rows, columns = base_size, round(base_size / height * width)
    else:
        rows, columns = round(base_size / width * height), base_size
    top, left = round((base_size - rows) / 2), round((base_size - columns) / 2)
    return (top, left), (top + rows, left + columns)


def _positions(start: int, stop: int, count: int, end_point: EndPoint, device: torch.device | str | None) -> Tensor:
    """Return ``count`` positions, evenly spaced from ``start`` to just before ``stop``."""
    match end_point:
        case "stop":
            last = stop - (stop - start) / count
        case "diffusers":
            last = stop * (count - 1) / count
        case _:
            raise ValueError(f'end_point is "stop" or "diffusers", not {end_point!r}')
    return torch.linspace(start, last, count, dtype=torch.float32, device=device)
