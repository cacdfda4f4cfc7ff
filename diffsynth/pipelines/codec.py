"""Images ↔ scaled latents: the autoencoder with all that a pipeline decides about it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor

from diffsynth.errors import InvalidRequest
from diffsynth.models.autoencoder_kl.model import AutoencoderKL, Posterior
from diffsynth.models.autoencoder_kl.tiled import decode_tiled, encode_tiled
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.latents import Noise, image_to_pixels, pixels_to_images
from diffsynth.pipelines.precision import finite

Picture: TypeAlias = Image.Image | LatentImage

P = TypeVar("P")

THROUGH_PIXELS = 'Hand over the picture itself (output_type="pil").'
REMEDY = "Run `diffsynth inspect --verify` on the autoencoder's file."


class Tiled(Protocol):
    """A request that may ask for tiles, whose side and distance are in latent pixels."""

    @property
    def tiled(self) -> bool:
        """Whether it does."""

    @property
    def tile_size(self) -> int:
        """Side of a tile."""

    @property
    def tile_stride(self) -> int:
        """Distance from one tile to the next."""


def distinct(pictures: Sequence[P]) -> Sequence[P]:
    """Return the first of several pictures that are one and the same, else all of them."""
    return pictures[:1] if all(picture is pictures[0] for picture in pictures) else pictures


@dataclass(frozen=True)
class Tiles:
    """Overlapping squares: their side and the distance from one to the next, in latent pixels."""

    size: int
    stride: int

    @classmethod
    def of(cls, request: Tiled) -> Tiles | None:
        """Return the tiles that a request asks for, if it does."""
        return cls(request.tile_size, request.tile_stride) if request.tiled else None


class Conventions(Protocol):
    """What a program decides about the autoencoder; the meanings are those of `ImageCodec`."""

    @property
    def samples_posterior(self) -> bool:
        """Whether an image's latents are drawn from the encoder's distribution, else its mean."""

    @property
    def truncates_pixels(self) -> bool:
        """Whether 8-bit values are cut off, else rounded."""

    @property
    def norm_out_eps(self) -> float:
        """Epsilon of the decoder's last norm."""


@dataclass(frozen=True, kw_only=True)
class ImageCodec:
    """Turns images into latents of unit variance and back.

    Args:
        vae: the autoencoder.
        latent_scale: its latents times this have unit variance.
        samples_posterior: whether an image's latents are drawn from the encoder's distribution, else its mean.
        truncates_pixels: whether 8-bit values are cut off, else rounded.
        norm_out_eps: epsilon of the decoder's last norm.
    """

    vae: AutoencoderKL
    latent_scale: float
    samples_posterior: bool
    truncates_pixels: bool
    norm_out_eps: float

    @classmethod
    def following(cls, conventions: Conventions, vae: AutoencoderKL, latent_scale: float) -> ImageCodec:
        """Return the autoencoder as a program uses it."""
        return cls(
            vae=vae,
            latent_scale=latent_scale,
            samples_posterior=conventions.samples_posterior,
            truncates_pixels=conventions.truncates_pixels,
            norm_out_eps=conventions.norm_out_eps,
        )

    def encode(
        self, pictures: Sequence[Picture], height: int, width: int, *, noise: Noise, tiles: Tiles | None
    ) -> Tensor:
        """Return the scaled latents of pictures.

        Args:
            pictures: one for each image of ``noise``, or the same one; resized if need be. Latents are only scaled,
                and must have the size.
            height: in pixels.
            width: in pixels.
            noise: drawn from once if latents are sampled.
            tiles: encode in tiles.

        Returns:
            (B, C, height / downscale, width / downscale) float32, a row for each image of ``noise``.

        Raises:
            NonFiniteResult: numbers overflowed, in float32 too.
        """
        pictures = distinct(pictures)
        rows = [picture.values for picture in pictures if isinstance(picture, LatentImage)]
        if rows:
            latents = torch.stack(rows).float().to(noise.device)
            return latents.expand(len(noise), -1, -1, -1) * self.latent_scale
        images = [picture for picture in pictures if not isinstance(picture, LatentImage)]
        pixels = torch.cat([image_to_pixels(image, height, width) for image in images])
        return self.encode_pixels(pixels, noise=noise, tiles=tiles)

    def encode_pixels(self, pixels: Tensor, *, noise: Noise, tiles: Tiles | None) -> Tensor:
        """Return the scaled latents of (1 or B, 3, height, width) pixels in [-1, 1]; see ``encode``."""
        found = [self._posterior(row[None], tiles) for row in pixels]
        mean, std = (torch.cat([getattr(each, name) for each in found]) for name in ("mean", "std"))
        latents = Posterior(mean, std).sample(noise.draw()) if self.samples_posterior else mean
        return latents.float().to(noise.device).expand(len(noise), -1, -1, -1) * self.latent_scale

    def accept(self, latents: LatentImage, height: int | None, width: int | None) -> None:
        """Make sure that latents are of this autoencoder, as far as that can be known, and of a size.

        Raises:
            InvalidRequest: they are not.
        """
        config = self.vae.config
        if (latents.values.shape[0], latents.downscale) != (config.latent_channels, config.downscale):
            raise InvalidRequest(
                f"the latents have {latents.values.shape[0]} channels for {latents.downscale} x {latents.downscale} "
                f"pixels each; this autoencoder's have {config.latent_channels} for {config.downscale} x "
                f"{config.downscale}. {THROUGH_PIXELS}"
            )
        if not latents.belongs_to(self.vae) and latents.latent_scale != self.latent_scale:
            raise InvalidRequest(
                f"the latents are of another autoencoder: their scale is {latents.latent_scale}, here it is "
                f"{self.latent_scale}. {THROUGH_PIXELS}"
            )
        if (latents.height, latents.width) != (height, width):
            raise InvalidRequest(
                f"the latents are of a picture of {latents.height} x {latents.width} (height x width), but "
                f"{height} x {width} are to be drawn; bring them to that size with latents.resized({height}, {width})."
            )

    def hand_over(self, latents: Tensor) -> list[LatentImage]:
        """Return scaled (B, C, h, w) latents as images that stay in latent space."""
        vae = weakref.ref(self.vae)
        downscale, scale = self.vae.config.downscale, self.latent_scale
        return [LatentImage(values=row / scale, downscale=downscale, latent_scale=scale, vae=vae) for row in latents]

    def _posterior(self, pixels: Tensor, tiles: Tiles | None) -> Posterior:
        def compute() -> tuple[Posterior, str | None]:
            values = pixels.to(next(self.vae.parameters()))
            whole = self.vae.encode
            found = whole(values) if tiles is None else encode_tiled(self.vae, values, tiles.size, tiles.stride)
            good = found.mean.isfinite().all() and found.std.isfinite().all()
            return found, None if good else "encoding a picture"

        return finite(compute, (self.vae,), REMEDY)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, tiles: Tiles | None) -> list[Image.Image]:
        """Return the images of scaled latents.

        Args:
            latents: (B, C, h, w).
            tiles: decode in tiles.

        Raises:
            NonFiniteResult: numbers overflowed, in float32 too.
        """

        def compute() -> tuple[Tensor, str | None]:
            unscaled = (latents / self.latent_scale).to(next(self.vae.parameters()))
            eps = self.norm_out_eps
            if tiles is None:
                pixels = self.vae.decode(unscaled, norm_out_eps=eps)
            else:
                pixels = decode_tiled(self.vae, unscaled, tiles.size, tiles.stride, norm_out_eps=eps)
            return pixels, None if pixels.isfinite().all() else "decoding the image"

        return pixels_to_images(finite(compute, (self.vae,), REMEDY), truncate=self.truncates_pixels)
