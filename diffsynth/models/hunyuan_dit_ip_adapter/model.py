"""The IP-Adapter of HunyuanDiT: a picture becomes tokens that every block attends to beside those of the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffsynth.models.hunyuan_dit_ip_adapter.config import HunyuanDiTIPAdapterConfig
from diffsynth.nn.attention import KeysValues, split_heads

NORM_EPS = 1e-5  # of the tokens
KEY_NORM_EPS = 1e-6  # as in the denoiser


class KeysValuesOfPictures(nn.Module):
    """Keys, normalised, and values that one block takes from the tokens of pictures; they have no positions."""

    def __init__(self, config: HunyuanDiTIPAdapterConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.kv = nn.Linear(config.text_dim, 2 * config.hidden_size)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=KEY_NORM_EPS)

    def forward(self, tokens: Tensor) -> KeysValues:
        """Project (B, L, text_dim) to keys and values, each (B, L, heads, head_dim)."""
        keys, values = self.kv(tokens).chunk(2, dim=-1)
        return self.k_norm(split_heads(keys, self.heads)), split_heads(values, self.heads)


class HunyuanDiTIPAdapter(nn.Module):
    """Decoupled cross-attention for pictures as prompts (arXiv 2308.06721, section 3.2), as Tencent trained it.

    In shapes: B rows, n pictures in each, L tokens of them all.
    """

    def __init__(self, config: HunyuanDiTIPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Linear(config.embed_size, config.tokens * config.text_dim)
        self.norm = nn.LayerNorm(config.text_dim, eps=NORM_EPS)
        self.blocks = nn.ModuleList(KeysValuesOfPictures(config) for _ in range(config.depth))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return self.proj.weight.dtype

    def tokens(self, embeds: Tensor) -> Tensor:
        """Return the tokens of pictures.

        Args:
            embeds: (B, n, embed_size), of length 1 each; zeros stand for no picture.

        Returns:
            (B, n * tokens, text_dim).
        """
        # Of the projection's outputs, the number of the token varies fastest.
        spread = torch.unflatten(self.proj(embeds.to(self.dtype)), -1, (-1, self.config.tokens)).transpose(-1, -2)
        normed: Tensor = self.norm(spread.flatten(1, 2))
        return normed

    def keys_values(self, tokens: Tensor) -> tuple[KeysValues, ...]:
        """Return keys and values of every block, each (B, L, heads, head_dim), from tokens (B, L, text_dim)."""
        return tuple(block(tokens) for block in self.blocks)
