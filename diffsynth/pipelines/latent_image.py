"""An image in latent space: what a pipeline drew and did not decode, for another pipeline to go on with."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from diffsynth.errors import InvalidRequest
from diffsynth.models.autoencoder_kl.model import AutoencoderKL


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentImage:
    """Latents as an autoencoder has them: no pipeline's scale is in them.

    A pipeline gives it with ``output_type="latent"`` and takes it as ``input_image``.

    Args:
        values: (C, h, w) float32.
        downscale: image pixels per latent pixel.
        latent_scale: what the pipeline that drew it multiplies them by.
        vae: the autoencoder they belong to, held weakly, so that this keeps no network in memory; None for latents
            from a file.
        info: ``seed`` and ``recipe``, as images have them.
    """

    values: Tensor
    downscale: int
    latent_scale: float
    vae: weakref.ref[AutoencoderKL] | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def belongs_to(self, vae: AutoencoderKL) -> bool:
        """Whether it was drawn with this very autoencoder."""
        return self.vae is not None and self.vae() is vae

    @property
    def height(self) -> int:
        """Height in image pixels."""
        return int(self.values.shape[-2]) * self.downscale

    @property
    def width(self) -> int:
        """Width in image pixels."""
        return int(self.values.shape[-1]) * self.downscale

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in image pixels, in the order of Pillow's images."""
        return self.width, self.height

    def resized(self, height: int, width: int) -> LatentImage:
        """Return it in another size, values between latent pixels interpolated linearly.

        Args:
            height: in image pixels.
            width: in image pixels.

        Raises:
            InvalidRequest: the size is no multiple of a latent pixel.
        """
        if height < 1 or width < 1 or height % self.downscale or width % self.downscale:
            raise InvalidRequest(
                f"latents cannot have the size {height} x {width} (height x width): "
                f"both must be multiples of {self.downscale} pixels."
            )
        size = (height // self.downscale, width // self.downscale)
        values = F.interpolate(self.values[None], size=size, mode="bilinear", align_corners=False)[0]
        return LatentImage(
            values=values, downscale=self.downscale, latent_scale=self.latent_scale, vae=self.vae, info={**self.info}
        )
