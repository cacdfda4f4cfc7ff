"""The transformer block of HunyuanDiT and its parts (arXiv 2405.08748, section 2.1).

In shapes: B images, N image tokens, L text tokens, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsynth.models.hunyuan_dit.condition import BlockCondition, FinalCondition
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.rope import Rope
from diffsynth.nn.activation import GELUTanh
from diffsynth.nn.attention import AttentionHook, attend, plain_attention, split_heads
from diffsynth.nn.in_place import add
from diffsynth.nn.norm import LayerNormFloat32

EPS = 1e-6


class SelfAttention(nn.Module):
    """Attention among image tokens, with normalised and rotated queries and keys."""

    def __init__(self, config: HunyuanDiTConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=EPS)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=EPS)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor, rope: Rope, *, perturbed: bool = False) -> Tensor:
        """Mix image tokens.

        Args:
            tokens: (B, N, D).
            rope: positions of the N tokens.
            perturbed: let each token see itself only, for perturbed-attention guidance (arXiv 2403.17377).

        Returns:
            (B, N, D).
        """
        queries, keys, values = self.qkv(tokens).chunk(3, dim=-1)
        if not perturbed:
            values = attend(
                rope.rotate(self.q_norm(split_heads(queries, self.heads))),
                rope.rotate(self.k_norm(split_heads(keys, self.heads))),
                split_heads(values, self.heads),
            )
        mixed: Tensor = self.out(values)
        return mixed


class CrossAttention(nn.Module):
    """Attention from image tokens, which have positions, to text tokens, which have none.

    Attributes:
        name: where the layer lies in its network; the network sets it.
    """

    def __init__(self, config: HunyuanDiTConfig) -> None:
        super().__init__()
        self.name = ""
        self.heads = config.num_heads
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv = nn.Linear(config.text_dim, 2 * config.hidden_size)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=EPS)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=EPS)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Project (B, L, text_dim) to keys, normalised, and values, each (B, L, heads, head_dim)."""
        keys, values = self.kv(text).chunk(2, dim=-1)
        return self.k_norm(split_heads(keys, self.heads)), split_heads(values, self.heads)

    def forward(
        self, tokens: Tensor, keys: Tensor, values: Tensor, rope: Rope, attention: AttentionHook = plain_attention
    ) -> Tensor:
        """Fetch from the text.

        Args:
            tokens: (B, N, D).
            keys: (B, L, heads, head_dim), or one row for all images.
            values: as ``keys``.
            rope: positions of the N tokens.
            attention: what mixes queries, keys and values.

        Returns:
            (B, N, D).
        """
        queries = rope.rotate(self.q_norm(split_heads(self.q(tokens), self.heads)))
        rows = len(tokens)
        fetched: Tensor = self.out(
            attention(self.name, queries, keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)),
        )
        return fetched


class Block(nn.Module):
    """Long skip if there is one, then self-attention, cross-attention and MLP, each with a residual.

    Args:
        config: sizes.
        takes_skip: whether the block joins the output of an earlier block to its input.
    """

    def __init__(self, config: HunyuanDiTConfig, *, takes_skip: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.norm1 = LayerNormFloat32(size, eps=EPS)
        self.shift = nn.Linear(size, size)
        self.self_attn = SelfAttention(config)
        self.norm_cross = LayerNormFloat32(size, eps=EPS)
        self.cross_attn = CrossAttention(config)
        self.norm_mlp = LayerNormFloat32(size, eps=EPS)
        self.mlp = nn.Sequential(
            nn.Linear(size, config.mlp_size),
            GELUTanh(),
            nn.Linear(config.mlp_size, size),
        )
        if takes_skip:
            self.skip_norm = LayerNormFloat32(2 * size, eps=EPS)
            self.skip_linear = nn.Linear(2 * size, size)

    def condition(self, vector: Tensor, text: Tensor) -> BlockCondition:
        """Compute what this block takes from the condition.

        Args:
            vector: (..., D), after its activation.
            text: (B, L, text_dim).
        """
        return BlockCondition(self.shift(vector), *self.cross_attn.keys_values(text))

    def forward(
        self,
        tokens: Tensor,
        condition: BlockCondition,
        rope: Rope,
        *,
        skip: Tensor | None = None,
        perturbed: bool = False,
        attention: AttentionHook = plain_attention,
    ) -> Tensor:
        """Run the block.

        Args:
            tokens: (B, N, D).
            condition: with B rows, or one row for all images.
            rope: positions of the N tokens.
            skip: (B, N, D), the earlier block's output, for a block that takes it.
            perturbed: see `SelfAttention`.
            attention: what mixes queries, keys and values of the text.

        Returns:
            (B, N, D).
        """
        if skip is not None:
            tokens = self.skip_linear(self.skip_norm(torch.cat((tokens, skip), dim=-1)))
        shifted = add(self.norm1(tokens), condition.shift[:, None])
        tokens = add(self.self_attn(shifted, rope, perturbed=perturbed), tokens)
        fetched = self.cross_attn(self.norm_cross(tokens), condition.keys, condition.values, rope, attention)
        tokens = add(fetched, tokens)
        return add(self.mlp(self.norm_mlp(tokens)), tokens)


class FinalLayer(nn.Module):
    """Modulated norm and the projection of tokens to patches.

    The released weights predict two halves, velocity and variance. Only the velocity is returned.
    """

    def __init__(self, config: HunyuanDiTConfig) -> None:
        super().__init__()
        self.channels = config.in_channels
        self.modulation = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.linear = nn.Linear(config.hidden_size, config.patch_size**2 * 2 * config.in_channels)

    def condition(self, vector: Tensor) -> FinalCondition:
        """Compute what this layer takes from the condition, (..., D) after its activation."""
        return FinalCondition(*self.modulation(vector).chunk(2, dim=-1))

    def forward(self, tokens: Tensor, condition: FinalCondition) -> Tensor:
        """Turn (B, N, D) into (B, N, p * p * C), the velocity of each patch, channel fastest."""
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=EPS)
        modulated = torch.addcmul(condition.shift[:, None], normed, 1 + condition.scale[:, None])
        both = self.linear(modulated)  # for each pixel, C values of the velocity and C of the variance
        velocity: Tensor = torch.unflatten(both, -1, (-1, 2, self.channels))[..., 0, :]
        return velocity.flatten(-2)
