"""Seeds and noise, images ↔ latents, cheap previews, region masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffsynth.errors import NonFiniteResult
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.pipelines.pictures import as_rgb, eight_bits
from diffsynth.pipelines.precision import finite


class Noise:
    """Random numbers for several images, each from a generator of its own.

    Drawn on the CPU in float32, so that a seed means the same on every device and in every dtype, and an image
    does not depend on the others it is drawn with.

    Args:
        seeds: one for each image.
        shape: (C, H, W), of what is drawn for each.
        device: where the numbers go.
        copies: how many rows are drawn for each image, such as one for the negative prompt and one for the prompt;
            the second of every image follow the first of every image.
    """

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device, *, copies: int = 1
    ) -> None:
        self._seeds = tuple(seeds)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape = (copies, *shape)
        self.copies = copies
        self.device = device

    def __len__(self) -> int:
        return len(self._generators) * self.copies

    def again(self, *, copies: int) -> Noise:
        """Return the random numbers of the same images from their beginning."""
        shape: tuple[int, int, int] = self._shape[1:]
        return Noise(self._seeds, shape, self.device, copies=copies)

    def draw(self) -> Tensor:
        """Return the next (B, C, H, W) standard normal numbers, float32."""
        rows = [
            torch.randn(self._shape, generator=each, dtype=torch.float32, device="cpu") for each in self._generators
        ]
        noise = torch.stack(rows, dim=1).flatten(0, 1)
        if self.device.type == "cuda":
            noise = noise.pin_memory()  # so that the copy need not be waited for
        return noise.to(self.device, non_blocking=True)


def seed_from(source: int | torch.Generator | None) -> int:
    """Return the seed that a caller means.

    A number is itself. A generator that nobody has drawn from means its own seed, any other one gives a seed by a
    draw; either way it moves on, so that the next image differs. None asks torch's global generator.
    """
    if isinstance(source, int):
        return source
    if source is None:
        return int(torch.randint(2**32, (), device="cpu"))
    fresh = torch.Generator(source.device).manual_seed(source.initial_seed())
    unused = torch.equal(fresh.get_state(), source.get_state())
    drawn = int(torch.randint(2**32, (), generator=source, device=source.device))
    return source.initial_seed() if unused else drawn


def rgb_of_size(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return an image in RGB, resized if need be; transparency is laid on white."""
    image = as_rgb(image)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def image_to_pixels(image: Image.Image, height: int, width: int) -> Tensor:
    """Return an image as (1, 3, H, W) float32 in [-1, 1], resized if need be; transparency is laid on white."""
    values = torch.from_numpy(np.array(rgb_of_size(image, height, width), dtype=np.float32))
    return (values * (2 / 255) - 1).permute(2, 0, 1)[None]


def pixels_to_images(pixels: Tensor, *, truncate: bool) -> list[Image.Image]:
    """Return (B, 3, H, W) pixels in about [-1, 1] as images.

    Args:
        pixels: any floating dtype; values outside [-1, 1] are clipped.
        truncate: cut 8-bit values off, instead of rounding to the nearest.
    """
    values = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
    array = (values if truncate else values.round()).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(each) for each in array]


class LatentPreview:
    """Turns latents into small pictures by a linear map, without running the decoder.

    The map is fitted once to what the decoder itself makes of a few random latents, so it fits any autoencoder.
    """

    def __init__(self, vae: AutoencoderKL, latent_scale: float) -> None:
        self._vae = vae
        self._scale = latent_scale
        self._map: Tensor | None = None

    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """Return one picture per image of (B, C, H, W) latents, one pixel per latent pixel."""
        if self._map is None:
            self._map = self._fit()
        values = latents.float().cpu().permute(0, 2, 3, 1)
        ones = torch.ones_like(values[..., :1])
        pixels = torch.cat([values, ones], dim=-1) @ self._map
        return pixels_to_images(pixels.permute(0, 3, 1, 2), truncate=False)

    @torch.no_grad()
    def _fit(self) -> Tensor:
        """Least squares from latents, and a constant, to the mean colour that the decoder gives them."""
        channels = self._vae.config.latent_channels
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (8 * channels, channels, 1, 1)
        flat = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").expand(-1, -1, 4, 4)
        known = torch.cat([flat[:, :, 0, 0], torch.ones_like(flat[:, :1, 0, 0])], dim=1)

        def decode() -> tuple[Tensor, str | None]:
            weight = next(self._vae.parameters())
            parts = [self._vae.decode((row / self._scale).to(weight)).float().cpu() for row in flat[:, None]]
            colors = torch.cat(parts).mean(dim=(2, 3))
            return colors, None if colors.isfinite().all() else "the preview"

        try:
            fitted: Tensor = torch.linalg.lstsq(known, finite(decode, (self._vae,), "")).solution
        except NonFiniteResult:
            return torch.zeros_like(known[: channels + 1, :1]).expand(
                -1, 3
            )  # grey, rather than an image lost for its preview
        return fitted


def region_mask(mask: Image.Image, height: int, width: int) -> Tensor:
    """Return a picture as a soft mask for latents.

    White is inside. It is resized to latent pixels, cut at half brightness and blurred (33 latent pixels wide,
    sigma 10, edges mirrored), as DiffSynth 1.x does.

    Args:
        mask: any picture.
        height: of the latents.
        width: of the latents.

    Returns:
        (1, 1, height, width) float32, 0 to 1.
    """
    pixels = np.array(eight_bits(mask).convert("RGB").resize((width, height)), dtype=np.float32)
    inside = torch.from_numpy(pixels / 127.5 - 1).mean(dim=2).gt(0).float()[None, None]
    offsets = torch.arange(-16, 17, dtype=torch.float32, device="cpu")
    kernel = torch.exp(-0.5 * (offsets / 10) ** 2)
    kernel = kernel / kernel.sum()
    for dim in (2, 3):
        inside = _blur(inside, kernel, dim)
    return inside


def _blur(values: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Blur along one side; the mirrored edge is repeated as often as a small side needs."""
    reach, size = len(kernel) // 2, values.shape[dim]
    positions = torch.arange(-reach, size + reach, device="cpu")
    if size > 1:
        period = 2 * (size - 1)
        positions = positions.remainder(period)
        positions = torch.where(positions < size, positions, period - positions)
    else:
        positions = torch.zeros_like(positions)
    padded = values.index_select(dim, positions)
    shape = (1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1)
    return F.conv2d(padded, kernel.view(shape))
