"""Sizes of the multilingual T5 encoder."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class MT5Config:
    """Sizes of the mT5 encoder; the defaults are mT5-XL, the released one of HunyuanDiT."""

    vocab_size: int = 250112
    d_model: int = 2048
    d_kv: int = 64  # width of one head
    d_ff: int = 5120
    num_layers: int = 24
    num_heads: int = 32
    buckets: int = 32  # of relative positions
    max_distance: int = 128  # tokens; farther ones share a bucket; no file tells it

    @classmethod
    def tiny(cls) -> Self:
        """Return sizes for tests, all different; heads times d_kv is not d_model, as T5 permits."""
        return cls(vocab_size=67, d_model=40, d_kv=12, d_ff=56, num_layers=4, num_heads=3, buckets=16)
