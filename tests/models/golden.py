"""Weights and inputs that a formula gives, and numbers that other programs compute from them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from diffsynth.types import StateDict


def values(shape: tuple[int, ...], stream: int, *, scale: float = 1.0) -> Tensor:
    """Return hashed numbers in [-scale, scale), the same on every machine, a different row for each stream."""
    x = (np.arange(math.prod(shape), dtype=np.uint64) + 0x9E3779B9 * (stream + 1)) & 0xFFFFFFFF
    for factor in (0x7FEB352D, 0x846CA68B):
        x = ((x ^ (x >> np.uint64(16 if factor == 0x7FEB352D else 15))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    return torch.from_numpy(((x / 2**31 - 1) * scale).astype(np.float32)).reshape(shape)


def weights(shapes: dict[str, tuple[int, ...]]) -> StateDict:
    """Return weights for these keys; a key's stream is its rank among the sorted keys."""
    state: StateDict = {}
    for rank, key in enumerate(sorted(shapes)):
        shape = shapes[key]
        if len(shape) >= 2:
            state[key] = values(shape, rank, scale=math.sqrt(3 / math.prod(shape[1:])))
        else:
            state[key] = 0.1 * values(shape, rank) + (1.0 if key.endswith(".weight") else 0.0)
    return state


def assert_golden(found: Tensor, mean: float, std: float, *flat: float) -> None:
    """Compare with mean, standard deviation and the flat values at 0, 1, n//3, n//2 and n-1."""
    numbers = found.detach().flatten().double()
    count = len(numbers)
    picked = [numbers[index] for index in (0, 1, count // 3, count // 2, count - 1)]
    measured = torch.stack([numbers.mean(), numbers.std(), *picked])
    torch.testing.assert_close(measured, torch.tensor([mean, std, *flat]).double(), atol=1e-4, rtol=0)
