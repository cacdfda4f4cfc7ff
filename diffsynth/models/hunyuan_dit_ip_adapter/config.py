"""Sizes of HunyuanDiT's IP-Adapter."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class HunyuanDiTIPAdapterConfig:
    """Sizes of the adapter; the defaults are the released one.

    Raises:
        ValueError: if sizes contradict one another.
    """

    embed_size: int = 1024  # features of a picture, as the image encoder gives them
    text_dim: int = 1024  # features of a token, as the denoiser's text has them
    tokens: int = 8  # tokens that a picture becomes
    hidden_size: int = 1408  # of the denoiser
    depth: int = 40  # blocks of the denoiser
    num_heads: int = 16

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_heads

    @classmethod
    def tiny(cls) -> Self:
        """Return sizes for tests: those of the tiny denoiser."""
        return cls(embed_size=24, text_dim=20, tokens=7, hidden_size=48, depth=6, num_heads=3)
