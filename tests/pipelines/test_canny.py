"""Edges: where they are, how thick, and what joins them; held against the method written out in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from diffsynth.pipelines.canny import HIGH, LOW, canny

Pixels = NDArray[np.uint8]


def grey(values: NDArray[np.number]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def drawing(height: int = 60, width: int = 80, blur: float = 0.0) -> Pixels:
    picture = Image.new("RGB", (width, height), (200, 190, 180))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 8, 50, 44), fill=(20, 60, 90))
    draw.polygon([(40, 50), (76, 20), (70, 56)], fill=(240, 20, 30), outline="black")
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)))


def noise(height: int, width: int, *, blur: float = 0.0, levels: int = 256) -> Pixels:
    values = np.random.default_rng(3).integers(0, levels, (height, width, 3)) * (255 // (levels - 1))
    picture = Image.fromarray(values.astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(picture)


def in_plain_loops(pixels: Pixels) -> NDArray[np.bool_]:
    """Canny's method, one pixel at a time, directions told apart by their slopes."""
    height, width, _ = pixels.shape
    padded = np.pad(pixels.astype(int), ((1, 1), (1, 1), (0, 0)), mode="edge")
    window = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    slopes = {}
    for row, column in np.ndindex(height, width):
        around = padded[row : row + 3, column : column + 3]
        both = [(int((c * window).sum()), int((c * window.T).sum())) for c in np.moveaxis(around, 2, 0)]
        slopes[row, column] = max(both, key=lambda each: abs(each[0]) + abs(each[1]))
    strength = {place: abs(right) + abs(down) for place, (right, down) in slopes.items()}
    found = np.zeros((height, width), dtype=bool)
    todo = [place for place in slopes if strength[place] > HIGH and peak(place, slopes, strength)]
    while todo:
        row, column = todo.pop()
        found[row, column] = True
        for beside in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
            if strength.get(beside, 0) > LOW and not found[beside] and peak(beside, slopes, strength):
                todo.append(beside)
    return found


def peak(
    place: tuple[int, int], slopes: dict[tuple[int, int], tuple[int, int]], strength: dict[tuple[int, int], int]
) -> bool:
    (row, column), (right, down) = place, slopes[place]
    if abs(down) < abs(right) * (2**0.5 - 1):
        before, behind, ties = (row, column - 1), (row, column + 1), True
    elif abs(down) > abs(right) * (2**0.5 + 1):
        before, behind, ties = (row - 1, column), (row + 1, column), True
    else:
        lean = 1 if (right < 0) == (down < 0) else -1
        before, behind, ties = (row - 1, column - lean), (row + 1, column + lean), False
    here, next_one = strength[place], strength.get(behind, 0)
    return here > strength.get(before, 0) and (here >= next_one if ties else here > next_one)


@pytest.mark.parametrize(
    "pixels",
    [drawing(), drawing(blur=1.5), noise(23, 31), noise(40, 27, blur=1.2), noise(20, 20, levels=3), noise(3, 50)],
    ids=["drawing", "blurred", "noise", "soft noise", "few levels", "flat strip"],
)
def test_it_is_the_method_in_plain_loops(pixels: Pixels) -> None:
    found = canny(pixels)

    assert found.any()
    assert np.array_equal(found, in_plain_loops(pixels))


def test_edges_are_where_the_brightness_jumps() -> None:
    values = np.zeros((20, 30))
    values[:, 12:] = 255

    found = canny(grey(values))

    assert found.any(axis=1).all()
    assert set(np.flatnonzero(found.any(axis=0))) == {11}


@pytest.mark.parametrize("turns", range(4))
def test_an_edge_is_one_pixel_wide_whichever_way_it_runs(turns: int) -> None:
    values = np.rot90(np.repeat([[0] * 10 + [40, 128, 215] + [255] * 10], 15, axis=0), turns)

    found = canny(grey(values))

    rows = found.sum(axis=1 if turns % 2 == 0 else 0)
    assert set(rows) == {1}


def test_a_plain_picture_has_no_edges() -> None:
    assert not canny(grey(np.full((9, 7), 130))).any()


def test_a_weak_edge_stays_where_it_joins_a_strong_one() -> None:
    weak = np.zeros((21, 60))
    weak[10:] = 40  # a step whose gradient, 4 * 40, lies between the thresholds
    joined = weak.copy()
    joined[10:, 40:] = 90  # goes on into one above both

    assert not canny(grey(weak)).any()
    assert canny(grey(joined))[8:12, :38].any(axis=0).all()


@pytest.mark.parametrize(("step", "expected"), [(25, False), (26, False), (50, False), (51, True), (90, True)])
def test_an_edge_begins_above_the_high_threshold(step: int, expected: bool) -> None:
    values = np.zeros((12, 12))
    values[6:] = step

    assert canny(grey(values)).any() == expected


def test_an_edge_between_colours_of_one_brightness_is_seen() -> None:
    pixels = np.zeros((12, 12, 3), dtype=np.uint8)
    pixels[:, :6], pixels[:, 6:] = (200, 0, 0), (0, 102, 0)  # both 60 in grey

    assert canny(pixels).any(axis=1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (64, 48)])
def test_edges_have_the_size_of_the_picture_and_are_the_same_again(size: tuple[int, int]) -> None:
    pixels = noise(*size)

    found = canny(pixels)

    assert found.shape == size
    assert np.array_equal(found, canny(pixels.copy()))
