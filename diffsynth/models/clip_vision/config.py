"""Sizes of CLIP's image encoders."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """Sizes of a CLIP image encoder; the defaults are OpenCLIP ViT-H, as IP-Adapters of Stable Diffusion 1.5 read it.

    Raises:
        ValueError: if sizes contradict one another.
    """

    hidden_size: int = 1280
    num_layers: int = 32
    mlp_size: int = 5120
    image_size: int = 224  # pixels of a side
    patch_size: int = 14
    projection_size: int = 1024  # features of a picture
    num_heads: int = 16  # no file tells it
    quick_gelu: bool = False  # x * sigmoid(1.702 x) in the place of GELU; no file tells it

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def version(self) -> str:
        """Which network has this structure, in words; empty if it is none we know."""
        names = {
            (768, 12, 32): "CLIP ViT-B/32",
            (768, 12, 16): "CLIP ViT-B/16",
            (1024, 24, 14): "CLIP ViT-L",
            (1280, 32, 14): "bilingual CLIP ViT-H" if self.quick_gelu else "OpenCLIP ViT-H",
            (1664, 48, 14): "OpenCLIP ViT-bigG",
        }
        return names.get((self.hidden_size, self.num_layers, self.patch_size), "")

    @classmethod
    def big_g(cls) -> Self:
        """Return the sizes of OpenCLIP ViT-bigG, as IP-Adapters of SDXL read it."""
        return cls(hidden_size=1664, num_layers=48, mlp_size=8192, projection_size=1280)

    @classmethod
    def bilingual(cls) -> Self:
        """Return the sizes of the image tower of HunyuanDiT's Chinese and English CLIP."""
        return cls(quick_gelu=True)

    @classmethod
    def tiny(cls) -> Self:
        """Return sizes for tests, all different; what no file tells is as in the released ones."""
        return cls(
            hidden_size=48,
            num_layers=3,
            mlp_size=72,
            image_size=42,
            patch_size=14,
            projection_size=24,
            quick_gelu=True,
        )
