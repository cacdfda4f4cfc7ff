"""Sizes of the bilingual CLIP text encoder."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class BertClipConfig:
    """Sizes of the Chinese and English CLIP text tower, a BERT; the defaults are the released one of HunyuanDiT."""

    vocab_size: int = 47020
    hidden_size: int = 1024
    num_layers: int = 24
    mlp_size: int = 4096
    max_positions: int = 512
    token_types: int = 2
    head_dim: int = 64  # no file tells it

    def __post_init__(self) -> None:
        if self.hidden_size % self.head_dim:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of head_dim {self.head_dim}")

    @property
    def num_heads(self) -> int:
        """Attention heads of each layer."""
        return self.hidden_size // self.head_dim

    @classmethod
    def tiny(cls) -> Self:
        """Return sizes for tests, all different; head_dim is the released one, since a file does not tell it."""
        return cls(vocab_size=61, hidden_size=128, num_layers=3, mlp_size=72, max_positions=80, token_types=2)
