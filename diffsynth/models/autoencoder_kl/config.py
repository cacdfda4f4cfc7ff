"""Sizes of the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """Sizes of the autoencoder; the defaults are the released one of HunyuanDiT, SDXL and Stable Diffusion 1."""

    in_channels: int = 3  # of the image, going in and coming out
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)  # one width per level, the image's level first
    layers_per_block: int = 2  # residual blocks per level of the encoder; the decoder has one more
    norm_groups: int = 32  # no file tells it

    def __post_init__(self) -> None:
        if not self.channels or self.layers_per_block < 1:
            raise ValueError(f"needs a level and a layer, not channels={self.channels}, {self.layers_per_block} layers")
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"width {width} of channels is not a multiple of norm_groups {self.norm_groups}")

    @property
    def downscale(self) -> int:
        """Image pixels per latent pixel, along each side."""
        return int(2 ** (len(self.channels) - 1))

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the latents of an image of this size in pixels.

        Raises:
            ValueError: if a side is no multiple of `downscale`, so that a rim would be lost.
        """
        if height % self.downscale or width % self.downscale:
            raise ValueError(f"image is {width}x{height} px, but its sides must be multiples of {self.downscale}")
        return height // self.downscale, width // self.downscale

    @classmethod
    def tiny(cls) -> Self:
        """Return sizes for tests, all different, with the released downscale of 8 and the released groups."""
        return cls(channels=(32, 64, 96, 128), layers_per_block=1)
