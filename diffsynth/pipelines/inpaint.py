"""Paint parts of an image anew: by a network made for it, or by putting the rest back after each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from diffsynth.errors import InvalidRequest
from diffsynth.models.unet.config import UNetConfig
from diffsynth.pipelines.codec import ImageCodec, Tiles, distinct
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.latents import Noise, image_to_pixels
from diffsynth.pipelines.pictures import eight_bits
from diffsynth.pipelines.unet_request import UNetRequest
from diffsynth.schedulers.base import SchedulerRun


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpainting:
    """What is kept of an input image.

    Args:
        mask: (1, 1, h, w), 1 where the image is painted anew.
        run: the steps.
        clean: (B, C, h, w), latents of the image to put back; None for a network that is told of the image.
        fresh: the noise that the run started from.
        masked: (B, C, h, w), latents of the image with the mask cut out, for such a network.
    """

    mask: Tensor
    run: SchedulerRun
    clean: Tensor | None
    fresh: Tensor
    masked: Tensor | None

    @staticmethod
    def check(request: UNetRequest, config: UNetConfig) -> None:
        """Make sure that an inpainting network has something to paint in.

        Raises:
            InvalidRequest: it has not.
        """
        if not made_for_it(config):
            return
        if request.mask_image is None:
            raise InvalidRequest("this network is made for inpainting: give an input_image and a mask_image.")
        if isinstance(request.input_image, LatentImage) or (request.enlarges and request.hires_upscale == "latent"):
            raise InvalidRequest(
                "this network is made for inpainting and is shown pixels of the input image, not latents: "
                'draw the input_image with output_type="pil", and use hires_upscale="pixel".'
            )

    @staticmethod
    def ignores_image(request: UNetRequest, config: UNetConfig) -> bool:
        """Whether latents of the whole image are not needed: a network made for inpainting starts from noise."""
        return made_for_it(config) and request.denoising_strength == 1

    @classmethod
    def prepare(
        cls,
        requests: Sequence[UNetRequest],
        config: UNetConfig,
        codec: ImageCodec,
        run: SchedulerRun,
        *,
        clean: Tensor | None,
        fresh: Tensor,
        noise: Noise,
        tiles: Tiles | None,
    ) -> Self:
        """Make everything that stays the same over the loop.

        Args:
            requests: complete, with both pictures; they may differ in the input image.
            config: of the denoiser.
            codec: the autoencoder.
            run: the steps.
            clean: latents of the image.
            fresh: the noise that the run starts from.
            noise: drawn from if latents are sampled.
            tiles: encode in tiles.
        """
        request = requests[0]
        assert request.mask_image is not None
        assert request.height is not None
        assert request.width is not None
        mask = mask_pixels(request.mask_image, request.height, request.width)
        small = F.interpolate(mask, size=fresh.shape[-2:]).to(fresh.device)
        masked = None
        if made_for_it(config):
            images = [each.input_image for each in requests if isinstance(each.input_image, Image.Image)]
            size = (request.height, request.width)
            pixels = torch.cat([image_to_pixels(image, *size) for image in distinct(images)])
            masked = codec.encode_pixels(pixels * (1 - mask), noise=noise, tiles=tiles)
            clean = None
        return cls(mask=small, run=run, clean=clean, fresh=fresh, masked=masked)

    def inputs(self, latents: Tensor) -> Tensor:
        """Return what the denoiser sees: for a network made for inpainting, mask and image beside the latents."""
        if self.masked is None:
            return latents
        return torch.cat([latents, self.mask.expand(len(latents), -1, -1, -1), self.masked], dim=1)

    def keep(self, latents: Tensor, step: int) -> Tensor:
        """Put back what is not painted anew, at the noise of the next step, and clean after the last one."""
        if self.clean is None:
            return latents
        last = step + 1 == len(self.run.timesteps)
        known = self.clean if last else self.run.add_noise(self.clean, self.fresh, step + 1)
        return torch.lerp(known, latents, self.mask)


def made_for_it(config: UNetConfig) -> bool:
    """Whether a network takes a mask and a masked image beside the latents."""
    return config.in_channels == 2 * config.out_channels + 1


def mask_pixels(mask: Image.Image, height: int, width: int) -> Tensor:
    """Return a picture as (1, 1, height, width) of 0 and 1, cut at half brightness."""
    grey = eight_bits(mask).convert("L")
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(grey, dtype=np.float32) / 255)
    return values.ge(0.5).float()[None, None]
