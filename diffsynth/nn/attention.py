"""Multi-head attention on features that are already projected."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(features: Tensor, heads: int) -> Tensor:
    """Return (B, L, heads * head_dim) as (B, L, heads, head_dim), a view."""
    return torch.unflatten(features, -1, (heads, -1))


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention without a mask, logits scaled by 1 / sqrt(head_dim).

    Args:
        queries: (B, N, heads, head_dim).
        keys: (B, L, heads, head_dim).
        values: (B, L, heads, head_dim).

    Returns:
        (B, N, heads * head_dim).
    """
    mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2)
