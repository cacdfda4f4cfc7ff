"""Prepared pictures: drawn, brought to their shapes, kept in memory as bytes where they fit."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffsynth.errors import InvalidRequest
from diffsynth.training.buckets import BatchOrder, Frame, Shape, fit, frame_of, make_shapes, nearest_shape, too_small
from diffsynth.training.config import DataConfig
from diffsynth.training.dataset import Dataset, Example, Inspection
from diffsynth.training.randomness import random_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Pictures of one shape.

    Args:
        numbers: which they are among the prepared pictures.
        pixels: (B, 3, H, W) uint8; or their unscaled latents, (B, C, h, w) float.
        texts: captions of each.
        frames: where each comes from.
        hints: unscaled latents (B, C, h, w) of what a network is shown of each, where they are kept.
    """

    numbers: tuple[int, ...]
    pixels: Tensor
    texts: tuple[tuple[str, ...], ...]
    frames: tuple[Frame, ...]
    hints: Tensor | None = None


class Picture(NamedTuple):
    """A prepared picture: (3, H, W) uint8, its captions, and where it comes from."""

    pixels: Tensor
    texts: tuple[str, ...]
    frame: Frame


class Pictures:
    """The pictures of a dataset as a run uses them, each variant under a number of its own.

    Args:
        dataset: the data; all of it is looked at.
        config: how it is prepared.
        seed: of crops, flips and whatever the dataset draws.
        captions: whether each picture needs one.
        keep: whether prepared pictures stay in memory, if they fit.

    Raises:
        InvalidRequest: examples cannot be used; the message names them all.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, seed: int, *, captions: bool, keep: bool = True) -> None:
        self.dataset, self.config, self.seed = dataset, config, seed
        self._every_shape = make_shapes(config.size, config.aspect_limit)
        count = len(dataset) * max(config.variants, 1)
        if len(dataset) <= config.held_out:
            raise InvalidRequest(f"the dataset has {len(dataset)} examples, and {config.held_out} are held out.")
        self.fixed = config.variants > 0
        self.kept = keep and self.fixed and count * config.size**2 * 3 <= config.memory * 10**6
        self._pixels: list[Tensor] = []
        self.texts: list[tuple[str, ...]] = []
        self.shapes: list[Shape] = []
        self.frames: list[Frame] = []
        hasher = hashlib.sha256()
        inspection = Inspection(dataset, self._problem, captions=captions)
        for number in range(count):
            example = inspection.take(number % len(dataset), self._rng(number, 0))
            if example is None:
                continue
            hasher.update(example.image.tobytes() + "\0".join(example.texts).encode())
            self.texts.append(example.texts)
            shape = nearest_shape(*example.image.size, self._every_shape)
            self.shapes.append(shape)
            self.frames.append(self._frame(example, number, 0, shape))
            if self.kept:
                self._pixels.append(self._prepare(example, number, 0, shape))
        inspection.finish()
        self.digest = hasher.hexdigest()
        preparation = (config.size, config.aspect_limit, config.fit, config.crop, config.flip, config.variants, seed)
        self.prepared_digest = hashlib.sha256(f"{self.digest} {preparation}".encode()).hexdigest()
        logger.info("%d pictures%s", count, ", kept in memory" if self.kept else "")

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def trained(self) -> dict[int, Shape]:
        """The numbers of the pictures to learn from, and their shapes."""
        examples = len(self.dataset)
        last = examples - self.config.held_out
        return {number: shape for number, shape in enumerate(self.shapes) if number % examples < last}

    @property
    def measured(self) -> range:
        """The numbers of the pictures that are only measured, the first variant of each; if none are, the first."""
        examples = len(self.dataset)
        return range(examples - self.config.held_out if self.config.held_out else 0, examples)

    def picture(self, number: int, epoch: int = 0) -> Picture:
        """Return a prepared picture."""
        if self.kept:
            return Picture(self._pixels[number], self.texts[number], self.frames[number])
        example = self.dataset.__getitem__(number % len(self.dataset), self._rng(number, epoch))
        known = example, number, epoch, self.shapes[number]
        return Picture(self._prepare(*known), example.texts, self._frame(*known))

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> Batch:
        """Return pictures of one shape together."""
        pixels, texts, frames = zip(*(self.picture(number, epoch) for number in numbers), strict=True)
        return Batch(tuple(numbers), torch.stack(pixels), texts, frames)

    def check_sides(self, multiple: int) -> None:
        """Make sure that the sides of all shapes are multiples of what the networks need.

        Raises:
            InvalidRequest: they are not.
        """
        for shape in sorted(set(self.shapes)):
            if shape.width % multiple or shape.height % multiple:
                raise InvalidRequest(
                    f"pictures of {shape.width}x{shape.height} pixels do not fit these networks, which need multiples "
                    f"of {multiple}: data.size and data.aspect_limit decide on shapes."
                )

    def forget(self) -> None:
        """Free the memory of the pictures; those that are still asked for are prepared again."""
        self._pixels.clear()
        self.kept = False

    def _rng(self, number: int, epoch: int) -> Random:
        return random_for(self.seed, "picture", number, epoch if not self.fixed else 0)

    def _problem(self, width: int, height: int) -> str:
        shape = nearest_shape(width, height, self._every_shape)
        if self.config.enlarge or not too_small(width, height, shape):
            return ""
        return f"{width}x{height} pixels are too small for {shape.width}x{shape.height}"

    def _prepare(self, example: Example, number: int, epoch: int, shape: Shape) -> Tensor:
        """Return (3, H, W) uint8."""
        at, flipped = self._changes(number, epoch)
        image = fit(example.image.convert("RGB"), shape, how=self.config.fit, at=at)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def _frame(self, example: Example, number: int, epoch: int, shape: Shape) -> Frame:
        at, flipped = self._changes(number, epoch)
        return frame_of(*example.image.size, shape, how=self.config.fit, at=at, flipped=flipped)

    def _changes(self, number: int, epoch: int) -> tuple[tuple[float, float], bool]:
        """Return where a picture is cut, and whether it is mirrored."""
        rng = random_for(self.seed, "prepare", number, epoch if not self.fixed else 0)
        at = (rng.random(), rng.random()) if self.config.crop == "random" else (0.5, 0.5)
        return at, rng.random() < self.config.flip


def to_pixels(values: Tensor) -> Tensor:
    """Return uint8 values as float32 in [-1, 1]."""
    return values.float() * (2 / 255) - 1


class BatchStream:
    """Batches in their order, prepared ahead by threads where pictures are not kept.

    Args:
        order: which pictures each batch has.
        load: numbers and epoch → batch.
        workers: threads; 0 loads each batch when it is asked for.
    """

    def __init__(self, order: BatchOrder, load: Callable[[Sequence[int], int], Batch], workers: int) -> None:
        self._order, self._load, self._workers = order, load, workers

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield batches by their numbers, counted over all epochs."""
        if not self._workers:
            for number in numbers:
                yield self._get(number)
            return
        with ThreadPoolExecutor(self._workers) as pool:
            waiting: list[Future[Batch]] = []
            following = iter(numbers)
            try:
                for number in following:
                    epoch, chosen = self._order.batch(number)
                    waiting.append(pool.submit(self._load, chosen, epoch))
                    if len(waiting) > self._workers:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for each in waiting:
                    each.cancel()

    def _get(self, number: int) -> Batch:
        epoch, chosen = self._order.batch(number)
        return self._load(chosen, epoch)
