"""Multi-head attention on features that are already projected."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues: TypeAlias = tuple[Tensor, Tensor]  # each (B, L, heads, head_dim), or one row for all images


class AttentionHook(Protocol):
    """Mixes queries, keys and values in the place of plain attention; for adapters and guidance."""

    def __call__(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return (B, N, heads * head_dim), which the layer's output projection then takes.

        Args:
            name: the layer's place in the network, such as ``mid_block.attentions.0.transformer_blocks.0.attn2``;
                ``attn1`` attends among image tokens, ``attn2`` to the text.
            queries: (B, N, heads, head_dim).
            keys: (B, L, heads, head_dim).
            values: as ``keys``.
        """


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


def plain_attention(name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention, the same in every layer; an `AttentionHook`."""
    return attend(queries, keys, values)


def _learns_on_cpu(queries: Tensor) -> bool:
    """Tell when the way back through the library's attention is several times slower than plain products."""
    return torch.is_grad_enabled() and queries.device.type == "cpu" and queries.dtype == torch.bfloat16


def _plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention as three products, each argument (B, heads, length, head_dim)."""
    logits = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    mixed: Tensor = logits.softmax(dim=-1) @ values
    return mixed
