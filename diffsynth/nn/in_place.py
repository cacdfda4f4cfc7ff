"""Steps that overwrite a tensor nobody else needs, which saves memory and time; not where a gradient is recorded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def silu(fresh: Tensor) -> Tensor:
    """Return x * sigmoid(x) of a tensor nobody else needs, which is overwritten."""
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


def add(fresh: Tensor, other: Tensor) -> Tensor:
    """Return the sum of a tensor nobody else needs, which is overwritten, and one that fits it and stays."""
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)
