"""How far the values of two images lie apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.comparison import compare
from diffsynth.pipelines.latent_image import LatentImage


def picture(*changes: tuple[int, int, int]) -> Image.Image:
    """Return 4 x 2 grey pixels, some of whose red values are changed: (x, y, by)."""
    pixels = np.full((2, 4, 3), 100, dtype=np.uint8)
    for x, y, by in changes:
        pixels[y, x, 0] += by
    return Image.fromarray(pixels)


def latents(*, off: float = 0.0, width: int = 4) -> LatentImage:
    values = torch.linspace(-1, 1, 4 * 2 * width).view(4, 2, width)
    values[0, 0, 0] += off
    return LatentImage(values=values, downscale=8, latent_scale=0.13025)


def test_equal_pictures_are_equal_in_whatever_mode_they_are_kept() -> None:
    assert compare(picture(), picture()).equal
    assert compare(picture(), picture().convert("L")).equal
    assert str(compare(picture(), picture())) == "equal, 4x2"


def test_the_largest_the_average_and_the_share_are_told() -> None:
    found = compare(picture(), picture((0, 0, 30), (3, 1, 18)))

    assert (found.largest, found.mean, found.share) == (30, 2.0, 2 / 24)
    assert str(found) == "8.33% of the values differ, by 30 of 255 at most and 2.00 on average"
    assert not found.small


def test_a_difference_of_one_is_small() -> None:
    assert compare(picture(), picture((1, 1, 1))).small
    assert not compare(picture(), picture((1, 1, 2))).small


def test_details_are_told_from_another_picture() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 190, (28, 28, 3), dtype=np.uint8)  # no multiple of a block
    noisy = pixels + rng.integers(-30, 31, pixels.shape)
    moved = pixels.copy()
    moved[8:16, 8:16] += 20

    details, another = (
        compare(Image.fromarray(pixels), Image.fromarray(each.astype(np.uint8))) for each in (noisy, moved)
    )

    assert details.mean > another.mean
    assert details.only_details
    assert not another.only_details
    assert another.coarse == 20
    assert compare(latents(), latents(off=0.1)).only_details
    assert not compare(latents(), latents(off=1.0)).only_details


def test_opacity_counts_where_a_picture_has_it() -> None:
    clear = picture().convert("RGBA")
    clear.putalpha(0)

    assert compare(picture(), clear).share == 1 / 4


def test_pictures_of_two_sizes_are_not_compared_further() -> None:
    found = compare(picture(), picture().resize((8, 4)))

    assert not found.same_size
    assert not found.equal
    assert str(found) == "other size: 4x2 | 8x4"


def test_latents_are_measured_by_their_own_spread() -> None:
    spread = float(latents().values.std(correction=0))

    assert compare(latents(), latents()).equal
    assert compare(latents(), latents(off=0.5e-3 * spread)).small
    assert not compare(latents(), latents(off=2e-3 * spread)).small
    assert "where they spread by" in str(compare(latents(), latents(off=0.5)))
    assert not compare(latents(), latents(width=6)).same_size


def test_a_picture_and_latents_cannot_be_compared() -> None:
    with pytest.raises(InvalidRequest, match="a picture and latents cannot be compared"):
        compare(picture(), latents())
