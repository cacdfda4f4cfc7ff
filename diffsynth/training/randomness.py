"""Random numbers that depend on the seed and on what they are for, never on what was drawn before.

So a run that is resumed draws the same numbers as one that was never stopped, and no state has to be saved.
"""

from __future__ import annotations

import hashlib
from random import Random

import torch


def seed_for(seed: int, *purpose: str | int) -> int:
    """Return a seed, 0 to 2⁶³ - 1, that differs for each purpose."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a generator on the CPU; the same numbers on every device and machine."""
    return torch.Generator("cpu").manual_seed(seed_for(seed, *purpose))


def random_for(seed: int, *purpose: str | int) -> Random:
    """Return a generator of Python's own kind, for data."""
    return Random(seed_for(seed, *purpose))
