"""What is in a picture: the colour behind, and the object that looks most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from examples.emoji_painter.colors import COLORS, Color
from examples.emoji_painter.glyphs import sized
from examples.emoji_painter.objects import Thing, things

Floats = npt.NDArray[np.float32]

GRID = 24  # pixels of the square in which pictures are compared
INNER = 21  # of these, the object's longer side
NEAR = 45.0  # largest distance of a background from the colour it counts as, in RGB 0 to 255
STANDS_OUT = 20.0  # difference from the background that belongs to an object
SMALLEST = 12  # pixels of an object's longer side
SHIFTS = (-0.06, 0.0, 0.06)  # tried around the place that was found, as parts of its side
SCALES = (0.88, 0.94, 1.0, 1.07, 1.15)
BLURS = (0.0, 0.5, 1.0, 1.7)  # radii in the square: a blurred picture is compared with references as blurred
GRADIENT_WEIGHT = 2.0
CLEAN = 0.75


@dataclass(frozen=True)
class Seen:
    """An object that was recognised, and the doubt.

    ``doubt`` is the distance to it over that to the next best: at most about 0.7 for drawings of one object, blurred
    ones too, and above it, up to 1, for mixtures of several.
    """

    thing: Thing
    doubt: float

    @property
    def is_clean(self) -> bool:
        """Whether it looks like this object and no other."""
        return self.doubt < CLEAN


def background(image: Image.Image) -> Floats:
    """Return the middle colour (3,) of the picture's border, 0 to 255."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    sides = np.concatenate([pixels[:, :3].reshape(-1, 3), pixels[:, -3:].reshape(-1, 3)])
    return np.asarray(np.median(np.concatenate([border, sides]), axis=0), dtype=np.float32)


def color_of(image: Image.Image) -> Color | None:
    """Return the named colour that the background is near to, if any."""
    found = background(image)
    distances = [float(np.linalg.norm(found - np.array(color.rgb))) for color in COLORS]
    best = int(np.argmin(distances))
    return COLORS[best] if distances[best] <= NEAR else None


def recognise(image: Image.Image) -> Seen | None:
    """Return the object that a picture of one object shows; None if there is nothing on the background."""
    behind = background(image)
    return _nearest(image.convert("RGB"), _stands_out(image, behind), behind)


def recognise_pair(image: Image.Image) -> tuple[Seen | None, Seen | None]:
    """Return the objects in the left and in the right of a picture; they are parted where there is least."""
    behind = background(image)
    mask = _stands_out(image, behind)
    middle, reach = image.width // 2, image.width // 8
    columns = mask[:, middle - reach : middle + reach + 1].sum(axis=0) + 0.01 * np.abs(np.arange(-reach, reach + 1))
    cut = middle - reach + int(np.argmin(columns))
    is_left = np.arange(image.width) < cut
    rgb = image.convert("RGB")
    left, right = (_nearest(_only(rgb, side, behind), mask & side, behind) for side in (is_left, ~is_left))
    return left, right


def extent(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom of what is on the background; None if there is nothing, or next to it."""
    return _extent(_stands_out(image, background(image)))


def _extent(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    rows, columns = (np.flatnonzero(mask.sum(axis=axis) >= 2) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return None
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return (left, top, right, bottom) if max(bottom - top, right - left) >= SMALLEST else None


def _only(image: Image.Image, columns: npt.NDArray[np.bool_], behind: Floats) -> Image.Image:
    """Return a picture in which other columns are background."""
    return Image.fromarray(np.where(columns[None, :, None], np.asarray(image), behind.astype(np.uint8)))


def _stands_out(image: Image.Image, behind: Floats) -> npt.NDArray[np.bool_]:
    """Return a mask (height, width) of what is not background."""
    smooth = np.asarray(image.convert("RGB").filter(ImageFilter.BoxBlur(1)), dtype=np.float32)
    return np.asarray(np.abs(smooth - behind).max(axis=-1) > STANDS_OUT)


def _nearest(image: Image.Image, mask: npt.NDArray[np.bool_], behind: Floats) -> Seen | None:
    box = _extent(mask)
    if box is None:
        return None
    left, top, right, bottom = box
    side = max(bottom - top, right - left)
    crops = _crops(image, ((left + right) / 2, (top + bottom) / 2), side * GRID / INNER, behind)
    found, known = _features(crops), _features(_references(behind))
    squares = (found**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * found @ known.T
    distances = squares.min(axis=0).clip(1e-6).reshape(len(BLURS), -1).min(axis=0)
    best, second = (int(index) for index in np.argsort(distances)[:2])
    return Seen(things()[best], float(distances[best] / distances[second]))


def _crops(image: Image.Image, middle: tuple[float, float], side: float, behind: Floats) -> Floats:
    """Return squares (N, GRID, GRID, 3) around a place, at several shifts and sizes, values 0 to 1."""
    pad = image.width
    wide = Image.new("RGB", (image.width + 2 * pad, image.height + 2 * pad), tuple(round(float(v)) for v in behind))
    wide.paste(image, (pad, pad))
    crops = []
    for scale in SCALES:
        half = side * scale / 2
        for shift_x in SHIFTS:
            for shift_y in SHIFTS:
                x, y = middle[0] + pad + shift_x * side, middle[1] + pad + shift_y * side
                box = (x - half, y - half, x + half, y + half)
                crops.append(wide.resize((GRID, GRID), Image.Resampling.BILINEAR, box=box))
    return _unit(crops)


def _references(behind: Floats) -> Floats:
    """Return all objects on a background, (blurs x objects, GRID, GRID, 3), values 0 to 1."""
    drawn = _drawn()
    return np.asarray(drawn[..., :3] + behind / 255 * (1 - drawn[..., 3:]), dtype=np.float32)


@cache
def _drawn() -> Floats:
    """Return all objects with transparency, colours times opacity, at all blurs."""
    squares = []
    for thing in things():
        square = Image.new("RGBA", (GRID, GRID))
        picture = sized(thing, INNER)
        square.paste(picture, ((GRID - picture.width) // 2, (GRID - picture.height) // 2))
        squares.append(square.convert("RGBa"))
    blurred = [square.filter(ImageFilter.GaussianBlur(radius)) for radius in BLURS for square in squares]
    return _unit(blurred)


def _unit(pictures: Sequence[Image.Image]) -> Floats:
    """Return pictures of one size as an array with values 0 to 1."""
    return np.asarray(np.stack([np.asarray(each) for each in pictures]) / 255, dtype=np.float32)


def _features(pictures: Floats) -> Floats:
    """Return colours and their weighted gradients (N, values)."""
    across, down = np.diff(pictures, axis=2), np.diff(pictures, axis=1)
    weight = GRADIENT_WEIGHT**0.5
    return np.concatenate([part.reshape(len(pictures), -1) for part in (pictures, weight * across, weight * down)], 1)
