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
    heads = (queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    mixed = _plain(*heads) if _learns_on_cpu(queries) else F.scaled_dot_product_attention(*heads)
    return mixed.transpose(1, 2).flatten(2)


def _learns_on_cpu(queries: Tensor) -> bool:
    """Tell when the way back through the library's attention is several times slower than plain products."""
    return torch.is_grad_enabled() and queries.device.type == "cpu" and queries.dtype == torch.bfloat16


def _plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention as three products, each argument (B, heads, length, head_dim)."""
    logits = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    mixed: Tensor = logits.softmax(dim=-1) @ values
    return mixed
