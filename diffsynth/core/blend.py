"""The arithmetic of merging: two tensors into one, and how much of each a part of a network gets.

Tensors are taken a few rows at a time, so that the float32 numbers in between need little memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from diffsynth.errors import InvalidRequest, listed, printable

_VALUES_AT_A_TIME = 1 << 20


def blend(first: Tensor, second: Tensor, weight: float, *, base: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Merge two tensors of one shape, computing in float32, or in float64 if one of them is of that dtype.

    Args:
        first: what is kept at a weight of 0, bit for bit.
        second: what is added; without a base it is what a weight of 1 gives, bit for bit.
        weight: how much of it; numbers below 0 and above 1 go beyond the two.
        base: what is taken off the second before it is added, or None for a weighted sum.
        dtype: of the result.

    Returns:
        ``first * (1 - weight) + second * weight``, or ``first + weight * (second - base)``; the first or the second
        itself if it is that, in that dtype.
    """
    if weight == 0:
        return first.to(dtype)
    if weight == 1 and base is None:
        return second.to(dtype)
    given = [first, second] if base is None else [first, second, base]
    exact = torch.float64 if any(tensor.dtype is torch.float64 for tensor in given) else torch.float32
    result = torch.empty(first.shape, dtype=dtype)
    for into, *rows in zip(*(_rows(tensor) for tensor in (result, *given)), strict=True):
        one, two, *rest = (part.to(exact) for part in rows)
        into.copy_(one + weight * (two - rest[0]) if rest else one * (1 - weight) + two * weight)
    return result


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; for dtypes of 8 bits too."""
    small = tensor.dtype.itemsize == 1  # of which torch cannot tell
    return all(bool(torch.isfinite(part.float() if small else part).all()) for part in _rows(tensor))


def _rows(tensor: Tensor) -> Iterator[Tensor]:
    """Yield views of a few rows each, which together are the tensor."""
    whole = tensor if tensor.ndim else tensor[None]
    count = max(1, _VALUES_AT_A_TIME // max(1, whole[:1].numel()))
    for start in range(0, len(whole), count):
        yield whole[start : start + count]


@dataclass(frozen=True, kw_only=True)
class BlendWeights:
    """How much of the second network each part of the result gets.

    Args:
        default: for what no pattern fits.
        blocks: pattern → weight; of several that fit a tensor, the last one counts. A pattern is the name of a
            tensor or of a block around it, in which ``*`` stands for anything.

    Raises:
        InvalidRequest: a weight is not a finite number.
    """

    default: float
    blocks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, weight in (("weight", self.default), *self.blocks.items()):
            if not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise InvalidRequest(f"{printable(name)}: a weight is a finite number, not {printable(weight)}.")

    def of(self, names: Sequence[str]) -> float:
        """Return the weight of a tensor that goes by these names."""
        fitting = [weight for pattern, weight in self.blocks.items() if any(_fits(pattern, name) for name in names)]
        return fitting[-1] if fitting else self.default

    def check(self, names: Sequence[str]) -> None:
        """Make sure that every pattern fits one of the names.

        Raises:
            InvalidRequest: one does not; the message says what comes near.
        """
        for pattern in self.blocks:
            if not any(_fits(pattern, name) for name in names):
                blocks = sorted({part for name in names for part in _beginnings(name)})
                near = get_close_matches(pattern, blocks, n=5, cutoff=0.5)
                known = f"Near it are {listed(near)}" if near else f"There are {listed(blocks, 10)}"
                raise InvalidRequest(f"no block is called {printable(pattern)!r}. {known}.")


def _fits(pattern: str, name: str) -> bool:
    """Whether a pattern names a tensor or a block around it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _beginnings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
