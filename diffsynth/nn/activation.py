"""Activation functions that torch does not have as they are needed here."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def silu_float32(input: Tensor) -> Tensor:
    """Return x * sigmoid(x), computed in float32, in the input's dtype."""
    return F.silu(input.float()).to(input.dtype)


def gelu_tanh(input: Tensor) -> Tensor:
    """Return GELU by its tanh formula (arXiv 1606.08415, section 2), x / 2 * (1 + tanh(u(x))).

    That is x * sigmoid(2 u(x)), which CPUs compute several times faster than tanh; results differ in rounding.
    """
    if torch.is_grad_enabled() or input.device.type != "cpu" or input.dtype != torch.float32:
        return F.gelu(input, approximate="tanh")
    scale = torch.tensor(2 * (2 / math.pi) ** 0.5)  # u(x) is x * (1 + 0.044715 x^2) * sqrt(2 / pi)
    slope = torch.addcmul(scale, input, input, value=0.044715 * float(scale))
    return slope.mul_(input).sigmoid_().mul_(input)


def quick_gelu(input: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), which is near the exact GELU."""
    return input * torch.sigmoid(1.702 * input)


class GELUTanh(nn.Module):
    """`gelu_tanh` as a layer, for use in `nn.Sequential`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        return gelu_tanh(input)


class SiLUFloat32(nn.Module):
    """`silu_float32` as a layer, for use in `nn.Sequential`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        return silu_float32(input)
