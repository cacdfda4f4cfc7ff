"""Images ↔ scaled latents: the autoencoder with all that a pipeline decides about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from diffsynth.models.autoencoder_kl.model import AutoencoderKL, Posterior
from diffsynth.models.autoencoder_kl.tiled import decode_tiled, encode_tiled
from diffsynth.pipelines.latents import Noise, image_to_pixels, pixels_to_images
from diffsynth.pipelines.precision import finite

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

    def encode(self, image: Image.Image, height: int, width: int, *, noise: Noise, tiles: Tiles | None) -> Tensor:
        """Return the scaled latents of an image.

        Args:
            image: resized if need be.
            height: in pixels.
            width: in pixels.
            noise: drawn from once if latents are sampled.
            tiles: encode in tiles.

        Returns:
            (B, C, height / downscale, width / downscale) float32, a row for each image of ``noise``.

        Raises:
            NonFiniteResult: numbers overflowed, in float32 too.
        """
        return self.encode_pixels(image_to_pixels(image, height, width), noise=noise, tiles=tiles)

    def encode_pixels(self, pixels: Tensor, *, noise: Noise, tiles: Tiles | None) -> Tensor:
        """Return the scaled latents of (1, 3, height, width) pixels in [-1, 1]; see ``encode``."""

        def compute() -> tuple[Posterior, str | None]:
            values = pixels.to(next(self.vae.parameters()))
            whole = self.vae.encode
            found = whole(values) if tiles is None else encode_tiled(self.vae, values, tiles.size, tiles.stride)
            good = found.mean.isfinite().all() and found.std.isfinite().all()
            return found, None if good else "encoding the input image"

        posterior = finite(compute, (self.vae,), REMEDY)
        latents = posterior.sample(noise.draw()) if self.samples_posterior else posterior.mean
        return latents.float().to(noise.device).expand(len(noise), -1, -1, -1) * self.latent_scale

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
