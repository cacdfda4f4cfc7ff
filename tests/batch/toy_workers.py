"""Pipelines of workers, which tests have die, wait or fail; each is loaded in the worker's process.

They are quick to load: without networks, unless there are files of some.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffsynth.batch import read_entries
from diffsynth.batch.distributed import run_distributed
from diffsynth.batch.expand import Entry
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.request import ImageRequest
from tests.batch.fake import FakePipeline

SMALL: dict[str, Any] = {"height": 32, "num_inference_steps": 1, "cfg_scale": 2.0}


def entries(images: int, copies: float = 0.2) -> list[Entry]:
    """Return a job of four units, in which every so many images are asked for twice."""
    distinct = round(images * (1 - copies))
    rows = [
        {"prompt": f"a cat number {number % distinct}", "seed": number % distinct,
         "width": 32 + 16 * (number % distinct % 4), **SMALL}
        for number in range(images)
    ]  # fmt: skip
    return read_entries(rows, ImageRequest)


def load(paths: list[Path]) -> ImagePipeline[Any]:
    """Load the toy of some files, if there are any; it computes on one thread, as the tests do."""
    torch.set_num_threads(1)
    if not paths:
        return FakePipeline()
    from tests.pipelines.toy import load_toy  # which takes seconds

    return load_toy(paths)


def load_slow(paths: list[Path], seconds: float) -> ImagePipeline[Any]:
    """Load the toy, which then takes its time for each image."""
    pipe = load(paths)
    _before(pipe, "decode", lambda *_: time.sleep(seconds))
    return pipe


def load_meeting(paths: list[Path], here: Path, there: Path) -> ImagePipeline[Any]:
    """Load the toy, which leaves a file before its third image, and waits until another leaves one too."""
    pipe = load(paths)
    drawn: list[Any] = []

    def meet(*arguments: Any) -> None:
        drawn.append(arguments)
        if len(drawn) == 3:
            here.touch()
            while not there.exists():
                time.sleep(0.02)

    _before(pipe, "decode", meet)
    return pipe


def load_dying(paths: list[Path], died: Path) -> ImagePipeline[Any]:
    """Load the toy; of all workers, the first that has drawn three images is killed, and leaves ``died``."""
    pipe = load(paths)
    drawn: list[Any] = []

    def die(*arguments: Any) -> None:
        drawn.append(arguments)
        if len(drawn) == 4:
            try:
                died.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    _before(pipe, "decode", die)
    return pipe


def _before(pipe: ImagePipeline[Any], name: str, action: Callable[..., object]) -> None:
    """Let something happen before every call of a method of a pipeline."""
    method = getattr(pipe, name)

    def with_action(*arguments: Any) -> Any:
        action(*arguments)
        return method(*arguments)

    setattr(pipe, name, with_action)


def be_driver(address: str, out: Path, images: int, paths: list[Path], meet: tuple[Path, Path] | None) -> None:
    """Draw the job with one worker, which is slow, or meets another at two files."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's processes ignore it
    make = partial(load_meeting, paths, *meet) if meet else partial(load_slow, paths, 0.15)
    run_distributed(make, entries(images), out, address=address, workers=1, batch_size=4)
