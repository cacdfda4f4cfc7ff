"""Two images → how far their values lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.latent_image import LatentImage

BLOCK = 8  # pixels
DETAILS = 16  # of 255; rounding and compression change averages of blocks by less, another seed by more
ROUNDING = 1e-3  # of the spread of latents; larger differences are more than rounding


@dataclass(frozen=True)
class Comparison:
    """How two images differ in their values.

    Args:
        sizes: (width, height) of both, in pixels.
        share: 0 to 1, of the values that differ.
        largest: difference, of 255; of latents in their own unit.
        mean: difference over all values, in the same unit.
        coarse: largest difference between averages of 8 x 8 pixels, likewise; of latents as ``largest``.
        spread: standard deviation of latents; None for pictures.
    """

    sizes: tuple[tuple[int, int], tuple[int, int]]
    share: float = 0.0
    largest: float = 0.0
    mean: float = 0.0
    coarse: float = 0.0
    spread: float | None = None

    @property
    def same_size(self) -> bool:
        """Whether both have one size; if not, no values were compared."""
        return self.sizes[0] == self.sizes[1]

    @property
    def equal(self) -> bool:
        """Whether every value is the same."""
        return self.same_size and self.largest == 0

    @property
    def small(self) -> bool:
        """Whether no value differs by more than another order of the same sums may cause."""
        return self.same_size and self.largest <= (1 if self.spread is None else ROUNDING * self.spread)

    @property
    def only_details(self) -> bool:
        """Whether they show the same, with other details, as rounding and compression leave it."""
        return self.same_size and self.coarse <= (DETAILS if self.spread is None else self.spread / 2)

    def __str__(self) -> str:
        (width, height), (other_width, other_height) = self.sizes
        if not self.same_size:
            return f"other size: {width}x{height} | {other_width}x{other_height}"
        if self.equal:
            return f"equal, {width}x{height}"
        share = f"{self.share:.2%} of the values differ"
        if self.spread is None:
            return f"{share}, by {self.largest:.0f} of 255 at most and {self.mean:.2f} on average"
        far = f"{self.largest:.2g} at most and {self.mean:.2g} on average"
        return f"{share}, by {far}, where they spread by {self.spread:.2g}"


def compare(first: Image.Image | LatentImage, second: Image.Image | LatentImage) -> Comparison:
    """Compare two pictures, or two latents.

    Raises:
        InvalidRequest: one is a picture, and one latents.
    """
    sizes = (first.size, second.size)
    if isinstance(first, LatentImage) and isinstance(second, LatentImage):
        one, two = (each.values.float().cpu().numpy() for each in (first, second))
        return _compare(one, two, sizes, float(one.std()) or 1.0)
    if isinstance(first, LatentImage) or isinstance(second, LatentImage):
        raise InvalidRequest("a picture and latents cannot be compared; compare two of one kind.")
    one, two = _pixels(first, second)
    return _compare(one, two, sizes, None)


def _pixels(first: Image.Image, second: Image.Image) -> list[NDArray[np.int16]]:
    """Return both with the same channels, those of opacity only if one has them."""
    mode = "RGBA" if any(each.has_transparency_data for each in (first, second)) else "RGB"
    return [np.asarray(each.convert(mode)).astype(np.int16) for each in (first, second)]


def _compare(
    one: NDArray[Any],
    two: NDArray[Any],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    spread: float | None,
) -> Comparison:
    if one.shape != two.shape:
        return Comparison(sizes, spread=spread)
    apart = one - two
    coarse = float(np.abs(_averages(apart) if spread is None else apart).max())
    apart = np.abs(apart)
    return Comparison(sizes, float((apart > 0).mean()), float(apart.max()), float(apart.mean()), coarse, spread)


def _averages(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the averages over blocks of (H, W, C) values; what is left over at two edges belongs to the last ones."""
    rows, columns = (np.arange(0, max(side - BLOCK + 1, 1), BLOCK) for side in values.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=0), columns, axis=1)
    heights, widths = (np.diff([*starts, side]) for starts, side in zip((rows, columns), values.shape[:2], strict=True))
    averages: NDArray[np.float64] = sums / (heights[:, None, None] * widths[None, :, None])
    return averages
