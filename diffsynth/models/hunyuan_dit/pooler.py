"""The prompt as one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffsynth.nn.attention import attend, split_heads


class AttentionPooler(nn.Module):
    """Attention from the mean of a sequence to the sequence and that mean (the pooler of CLIP, arXiv 2103.00020).

    There is no mask: padding takes part, so the length of the sequence matters and is fixed.

    Args:
        length: tokens of the sequence.
        size: features of a token.
        out_size: features of the result.
        heads: attention heads.
    """

    def __init__(self, length: int, size: int, out_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(length + 1, size) / size**0.5)
        self.q = nn.Linear(size, size)
        self.k = nn.Linear(size, size)
        self.v = nn.Linear(size, size)
        self.out = nn.Linear(size, out_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool (B, length, size) to (B, out_size)."""
        tokens = torch.cat((tokens.mean(dim=1, keepdim=True), tokens), dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        pooled: Tensor = self.out(
            attend(
                split_heads(self.q(tokens[:, :1]), self.heads),
                split_heads(self.k(tokens), self.heads),
                split_heads(self.v(tokens), self.heads),
            )
        )
        return pooled.squeeze(1)
