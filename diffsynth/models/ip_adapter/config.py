"""Sizes of an IP-Adapter."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self

SD_WIDTHS = (*(320,) * 2, *(640,) * 2, *(1280,) * 5, *(640,) * 3, *(320,) * 3, 1280)
XL_WIDTHS = (*(640,) * 4, *(1280,) * 20, *(1280,) * 30, *(640,) * 6, *(1280,) * 10)


@dataclass(frozen=True, kw_only=True)
class IPAdapterConfig:
    """Sizes of an IP-Adapter in its plain version; the defaults are that of Stable Diffusion 1.5.

    Raises:
        ValueError: if there is no layer.
    """

    embed_size: int = 1024  # features of a picture, as the image encoder gives them
    context_size: int = 768  # features of a token, as the UNet's text has them
    tokens: int = 4  # tokens that a picture becomes
    widths: tuple[int, ...] = SD_WIDTHS  # of the UNet's cross-attentions: on the way down, up, and in the middle

    def __post_init__(self) -> None:
        if not self.widths or self.tokens < 1:
            raise ValueError(f"needs a layer and a token, not widths={self.widths}, tokens={self.tokens}")

    @property
    def version(self) -> str:
        """Which release has this structure, in words; empty if it is none we know."""
        return {(768, SD_WIDTHS): "SD 1.5", (2048, XL_WIDTHS): "SDXL"}.get((self.context_size, self.widths), "")

    @classmethod
    def sdxl(cls) -> Self:
        """Return the sizes of the adapter of SDXL, whose encoder is ViT-bigG."""
        return cls(embed_size=1280, context_size=2048, widths=XL_WIDTHS)

    @classmethod
    def tiny(cls) -> Self:
        """Return sizes for tests: those of a tiny UNet in the shape of Stable Diffusion 1.5."""
        return cls(
            embed_size=24, context_size=40, widths=(*(32,) * 2, *(64,) * 4, *(64,) * 6, *(32,) * 3, 96), tokens=4
        )

    @classmethod
    def tiny_xl(cls) -> Self:
        """Return sizes for tests: those of a tiny UNet in the shape of SDXL."""
        return cls(
            embed_size=24, context_size=56, widths=(*(64,) * 2, *(128,) * 4, *(128,) * 6, *(64,) * 3, *(128,) * 2)
        )
