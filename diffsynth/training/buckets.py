"""Pictures of many shapes: which shape each is brought to, and in which order batches of one shape come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image

from diffsynth.training.randomness import generator_for

MULTIPLE = 16  # pixels; what the denoiser's patches of latents need


@dataclass(frozen=True, order=True)
class Shape:
    """Width and height in pixels."""

    width: int
    height: int


def make_shapes(size: int, aspect_limit: float) -> tuple[Shape, ...]:
    """Return the shapes that pictures may be brought to.

    Sides are multiples of 16, no shape has a larger area than the square, none is more than a row smaller than that,
    and none is longer than the limit.

    Args:
        size: side of the square, which is always one of them.
        aspect_limit: longest side over shortest, at least 1.
    """
    shapes = {Shape(size, size)}
    for height in range(MULTIPLE, size, MULTIPLE):
        width = size * size // height // MULTIPLE * MULTIPLE
        if width <= aspect_limit * height:
            shapes |= {Shape(width, height), Shape(height, width)}
    return tuple(sorted(shapes))


def nearest_shape(width: int, height: int, shapes: Sequence[Shape]) -> Shape:
    """Return the shape nearest in aspect to a picture of this size."""
    return min(shapes, key=lambda shape: (abs(math.log(width / height * shape.height / shape.width)), shape))


def too_small(width: int, height: int, shape: Shape) -> bool:
    """Whether a picture would have to be enlarged to fill a shape."""
    return width < shape.width or height < shape.height


@dataclass(frozen=True)
class Frame:
    """Where a prepared picture comes from, which SDXL is told.

    Args:
        height: of the picture as the data has it, in pixels.
        width: likewise.
        top: pixels cut off above, after scaling.
        left: pixels cut off at the left, after scaling.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0


def fit(
    image: Image.Image,
    shape: Shape,
    *,
    how: Literal["crop", "stretch"] = "crop",
    at: tuple[float, float] = (0.5, 0.5),
) -> Image.Image:
    """Bring a picture to a shape.

    Args:
        image: any size.
        shape: the size wanted.
        how: "crop" scales it so that it covers the shape and cuts off the rest, "stretch" scales both sides alone.
        at: where to cut: (0, 0) keeps left and top, (1, 1) right and bottom.
    """
    width, height = image.size
    if image.size == (shape.width, shape.height):
        return image
    box = None
    if how == "crop":
        scale, left, top = _cut(width, height, shape, at)
        box = (left, top, min(left + shape.width * scale, width), min(top + shape.height * scale, height))
    return image.resize((shape.width, shape.height), Image.Resampling.LANCZOS, box=box)


def frame_of(
    width: int, height: int, shape: Shape, *, how: Literal["crop", "stretch"], at: tuple[float, float], flipped: bool
) -> Frame:
    """Return the frame of a picture that `fit` brings to a shape, and that may be mirrored then."""
    if how == "stretch":
        return Frame(height, width)
    scale, left, top = _cut(width, height, shape, (1 - at[0] if flipped else at[0], at[1]))
    return Frame(height, width, round(top / scale), round(left / scale))


def _cut(width: int, height: int, shape: Shape, at: tuple[float, float]) -> tuple[float, float, float]:
    """Return the picture's pixels per pixel of the shape, and how many of them are cut off at the left and above."""
    scale = min(width / shape.width, height / shape.height)
    return scale, at[0] * (width - shape.width * scale), at[1] * (height - shape.height * scale)


class BatchOrder:
    """The order of batches: it depends on the seed and the epoch only.

    All batches are full and of one shape. The last batch of a shape is filled up with the first pictures of that
    shape's epoch, so that each picture is seen at least once in an epoch.

    Args:
        shapes: the shape of each picture, by its number.
        batch_size: pictures of a batch.
        seed: of the order.
    """

    def __init__(self, shapes: Mapping[int, Shape], batch_size: int, seed: int) -> None:
        members: dict[Shape, list[int]] = {}
        for number, shape in shapes.items():
            members.setdefault(shape, []).append(number)
        self._members = [torch.tensor(members[shape]) for shape in sorted(members)]
        self._batch_size, self._seed = batch_size, seed
        self._epoch, self._batches = -1, torch.empty(0)
        self.per_epoch = sum(math.ceil(len(each) / batch_size) for each in self._members)

    def batch(self, number: int) -> tuple[int, list[int]]:
        """Return the epoch of a batch, and the numbers of its pictures; batches are counted over all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        chosen: list[int] = self._batches[place].tolist()
        return epoch, chosen

    def _shuffled(self, epoch: int) -> torch.Tensor:
        generator = generator_for(self._seed, "order", epoch)
        batches = []
        for members in self._members:
            order = members[torch.randperm(len(members), generator=generator)]
            count = math.ceil(len(members) / self._batch_size)
            filled = order.repeat(math.ceil(count * self._batch_size / len(order)))[: count * self._batch_size]
            batches.append(filled.view(count, self._batch_size))
        every = torch.cat(batches)
        return every[torch.randperm(len(every), generator=generator)]
