"""The transformer inside a UNet: image tokens attend to one another and to the text (arXiv 2112.10752).

In shapes: B images, N image tokens, L text tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.nn.attention import AttentionHook, KeysValues, split_heads

GROUP_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention whose queries come from the image, keys and values from the image or the text.

    Args:
        channels: width of the image tokens.
        heads: attention heads; divides ``channels``.
        context_size: width of what keys and values are made from.

    Attributes:
        name: where the layer lies in its network; the network sets it.
    """

    def __init__(self, channels: int, heads: int, context_size: int) -> None:
        super().__init__()
        self.name = ""
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_size, channels, bias=False)
        self.to_v = nn.Linear(context_size, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def keys_values(self, context: Tensor) -> KeysValues:
        """Project (B, L, context_size) to keys and values, each (B, L, heads, head_dim)."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def forward(self, tokens: Tensor, keys_values: KeysValues, attention: AttentionHook) -> Tensor:
        """Attend from (B, N, C) to keys and values; return (B, N, C)."""
        rows = len(tokens)
        keys, values = (part.expand(rows, -1, -1, -1) for part in keys_values)
        mixed: Tensor = self.to_out(attention(self.name, split_heads(self.to_q(tokens), self.heads), keys, values))
        return mixed


class GatedGELU(nn.Module):
    """A linear layer whose second half gates its first (arXiv 2002.05202)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., channels) to (..., hidden)."""
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """Gated layer to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedGELU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., channels) to the same shape."""
        mixed: Tensor = self.net(tokens)
        return mixed


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a norm and with a residual."""

    def __init__(self, channels: int, heads: int, context_size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_size)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, text: Mapping[str, KeysValues], attention: AttentionHook) -> Tensor:
        """Run the block.

        Args:
            tokens: (B, N, C).
            text: name of a cross-attention → its keys and values; the block looks up its own.
            attention: what mixes queries, keys and values.

        Returns:
            (B, N, C).
        """
        normed = self.norm1(tokens)
        tokens = tokens + self.attn1(normed, self.attn1.keys_values(normed), attention)
        tokens = tokens + self.attn2(self.norm2(tokens), text[self.attn2.name], attention)
        mixed: Tensor = tokens + self.ff(self.norm3(tokens))
        return mixed


class Transformer2D(nn.Module):
    """Transformer blocks on the pixels of a feature map, around a shortcut.

    The projections are linear layers. Some files hold them as 1x1 convolutions, which compute the same.

    Args:
        channels: width of the feature map.
        depth: transformer blocks.
        heads: attention heads.
        context_size: width of the text features.
        groups: groups of the GroupNorm.
    """

    def __init__(self, channels: int, *, depth: int, heads: int, context_size: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, context_size) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, images: Tensor, text: Mapping[str, KeysValues], attention: AttentionHook) -> Tensor:
        """Map (B, C, H, W) to the same shape; ``text`` and ``attention`` as in `TransformerBlock`."""
        tokens = self.proj_in(self.norm(images).flatten(2).transpose(1, 2))  # (B, H * W, C), row by row
        for block in self.transformer_blocks:
            tokens = block(tokens, text, attention)
        mixed: Tensor = self.proj_out(tokens)
        return images + mixed.transpose(1, 2).reshape(images.shape)
