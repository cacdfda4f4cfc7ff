"""IP-Adapter: a picture becomes tokens that every cross-attention of a UNet attends to beside those of the text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffsynth.models.ip_adapter.config import IPAdapterConfig
from diffsynth.nn.attention import KeysValues, split_heads


class Projections(nn.Module):
    """Keys and values that one cross-attention takes from the tokens of pictures."""

    def __init__(self, context_size: int, width: int) -> None:
        super().__init__()
        self.to_k = nn.Linear(context_size, width, bias=False)
        self.to_v = nn.Linear(context_size, width, bias=False)

    def forward(self, tokens: Tensor, heads: int) -> KeysValues:
        """Project (B, L, context_size) to keys and values, each (B, L, heads, head_dim)."""
        return split_heads(self.to_k(tokens), heads), split_heads(self.to_v(tokens), heads)


class IPAdapter(nn.Module):
    """Decoupled cross-attention for pictures as prompts (arXiv 2308.06721, section 3.2).

    In shapes: B rows, n pictures in each, L tokens of them all.
    """

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Linear(config.embed_size, config.tokens * config.context_size)
        self.norm = nn.LayerNorm(config.context_size)
        # Numbered 1, 3, 5 ... as in the files, which count the self-attentions between them.
        self.layers = nn.ModuleDict(
            {str(2 * place + 1): Projections(config.context_size, width) for place, width in enumerate(config.widths)}
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return self.proj.weight.dtype

    def tokens(self, embeds: Tensor) -> Tensor:
        """Return the tokens of pictures.

        Args:
            embeds: (B, n, embed_size), as an image encoder gives them; zeros stand for no picture.

        Returns:
            (B, n * tokens, context_size).
        """
        spread = torch.unflatten(self.proj(embeds.to(self.dtype)), -1, (-1, self.config.context_size))
        normed: Tensor = self.norm(spread.flatten(1, 2))
        return normed

    def keys_values(self, tokens: Tensor, heads: tuple[int, ...]) -> tuple[KeysValues, ...]:
        """Return keys and values of every cross-attention, in the order of ``config.widths``.

        Args:
            tokens: (B, L, context_size).
            heads: attention heads of each.

        Returns:
            Each (B, L, heads, head_dim).
        """
        return tuple(layer(tokens, count) for layer, count in zip(self.layers.values(), heads, strict=True))
