"""Sizes of CLIP's text encoders."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self

END_TOKEN = 49407  # <|endoftext|> of CLIP's vocabulary


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """Sizes of a CLIP text encoder; the defaults are CLIP-L, as Stable Diffusion 1.5 has it.

    Raises:
        ValueError: if sizes contradict one another.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    num_layers: int = 12
    mlp_size: int = 3072
    max_positions: int = 77
    projection_size: int = 0  # features of the pooled text; 0 without a projection
    head_dim: int = 64  # no file tells it
    quick_gelu: bool = True  # x * sigmoid(1.702 x) in the place of GELU; no file tells it
    end_token: int = END_TOKEN  # no file tells it

    def __post_init__(self) -> None:
        if self.hidden_size % self.head_dim:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of head_dim {self.head_dim}")
        if not 0 <= self.end_token < self.vocab_size:
            raise ValueError(f"end_token {self.end_token} is none of {self.vocab_size} tokens")

    @property
    def num_heads(self) -> int:
        """Attention heads of each layer."""
        return self.hidden_size // self.head_dim

    @property
    def version(self) -> str:
        """Which release has this structure, in words; empty if it is none we know."""
        names = {(768, 12): "CLIP-L", (1280, 32): "OpenCLIP bigG"}
        if self.hidden_size == 1024:  # Stable Diffusion 2 leaves the last of its 24 layers out
            return "OpenCLIP H"
        return names.get((self.hidden_size, self.num_layers), "")

    @classmethod
    def big_g(cls) -> Self:
        """Return the sizes of OpenCLIP bigG, the second text encoder of SDXL and the only one of its refiner."""
        return cls(hidden_size=1280, num_layers=32, mlp_size=5120, projection_size=1280, quick_gelu=False)

    @classmethod
    def tiny(cls) -> Self:
        """Return sizes for tests, all different; what no file tells is as in the released ones."""
        return cls(
            vocab_size=61,
            hidden_size=128,
            num_layers=3,
            mlp_size=72,
            max_positions=80,
            projection_size=24,
            end_token=60,
        )
