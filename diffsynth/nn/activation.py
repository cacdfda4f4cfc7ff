"""Activation functions that torch does not have as they are needed here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.nn.in_place import gelu_tanh


def silu_float32(input: Tensor) -> Tensor:
    """Return x * sigmoid(x), computed in float32, in the input's dtype."""
    return F.silu(input.float()).to(input.dtype)


def quick_gelu(input: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), which is near the exact GELU."""
    return input * torch.sigmoid(1.702 * input)


class GELUTanh(nn.Module):
    """`gelu_tanh` as a layer, for use in `nn.Sequential` after a layer whose output nobody else needs."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        return gelu_tanh(input)


class SiLUFloat32(nn.Module):
    """`silu_float32` as a layer, for use in `nn.Sequential`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        return silu_float32(input)
