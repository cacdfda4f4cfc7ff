"""Sizes of the HunyuanDiT denoiser and its control networks."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class HunyuanDiTConfig:
    """Sizes of the HunyuanDiT denoiser; the defaults are the released version 1.2.

    A control network has the sizes of its denoiser, and a block for each block of that which feeds a long skip.

    Raises:
        ValueError: if sizes contradict one another.
    """

    in_channels: int = 4  # latent channels; the last layer has twice as many, half of them unused
    patch_size: int = 2  # latent pixels per patch side
    hidden_size: int = 1408
    depth: int = 40  # blocks; those past the middle take a long skip
    num_heads: int = 16
    mlp_size: int = 6144
    text_dim: int = 1024  # features of the bilingual CLIP encoder
    text_len: int = 77  # its tokens
    t5_dim: int = 2048  # features of the mT5 encoder
    t5_len: int = 256  # its tokens
    t5_proj_size: int = 8192  # hidden width of the layers that bring mT5 features to text_dim
    extra_size: int = 5632  # hidden width of the layers that make a vector of the pooled prompt
    pooler_heads: int = 8
    size_conditioning: bool = False  # versions 1.0 and 1.1 are told the image size and a style

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.head_dim % 4:
            raise ValueError(f"the head size {self.head_dim} is not a multiple of 4, as rotary positions need")
        if self.t5_dim % self.pooler_heads:
            raise ValueError(f"t5_dim {self.t5_dim} is not a multiple of pooler_heads {self.pooler_heads}")
        if self.depth > 1 and self.depth % 2:
            raise ValueError(f"depth {self.depth} is odd: the long skips pair blocks of the two halves, so it is even")

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def skip_sources(self) -> range:
        """Blocks whose output is kept for the second half; block i goes to block ``depth - 1 - i``."""
        return range(self.depth // 2 - 1)

    @classmethod
    def tiny(cls) -> Self:
        """Sizes for tests: milliseconds on a CPU, and no two of them equal."""
        return cls(
            hidden_size=48,
            depth=6,
            num_heads=3,
            mlp_size=80,
            text_dim=20,
            text_len=5,
            t5_dim=32,
            t5_len=9,
            t5_proj_size=72,
            extra_size=56,
        )
