"""One worker of a batch that several processes draw: it holds a pipeline, draws units, and publishes them itself.

An image never leaves the worker but through its storage; what it answers is a ``Record`` of some 200 bytes. It knows
nothing of other workers, and nothing is lost with it.
"""

from __future__ import annotations

import os
import platform
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

from diffsynth.batch.expand import Entry
from diffsynth.batch.output import QUALITY, Output, Published
from diffsynth.batch.plan import Plan, Unit, make_plan, versions
from diffsynth.batch.progress import Progress, Step
from diffsynth.batch.run import make_output
from diffsynth.batch.runner import TEXT_BYTES, Runner, now
from diffsynth.batch.storage import Book, Storage, open_storage
from diffsynth.errors import Cancelled, InvalidRequest, printable
from diffsynth.pipelines.base import ImagePipeline


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do.

    Args:
        unit: the images.
        skip: keys of those that are not drawn.
        found: images of the unit that are on the disk but in no ledger; the worker notes them.
        lost: why the images are not to be drawn but noted as failed; empty to draw them.
    """

    unit: Unit
    skip: frozenset[str] = frozenset()
    found: tuple[Published, ...] = ()
    lost: str = ""


@dataclass(frozen=True)
class Record:
    """What became of a unit, or has become of it so far: all that a worker sends back.

    Args:
        unit: its name.
        drawn: images that are on the disk now.
        failures: file → why it could not be drawn.
    """

    unit: str = ""
    drawn: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manner:
    """How images are written.

    Args:
        format: "files" or "tar".
        quality: of JPEG and WebP.
        text_bytes: of text features that are computed ahead.
    """

    format: str = "files"
    quality: int = QUALITY
    text_bytes: int = TEXT_BYTES


class Worker:
    """Draws units, one after the other.

    Args:
        make_pipe: loads the pipeline, when it is first needed.
        place: gets images and the worker's own ledger; see ``run_plan``.
        slot: number of the worker, from which its ledger is called unless another process uses that.
        threads: of torch.
        manner: how images are written.
    """

    def __init__(
        self,
        make_pipe: Callable[[], ImagePipeline[Any]],
        place: str | Path | Storage,
        slot: int,
        threads: int,
        manner: Manner,
    ) -> None:
        self._make_pipe = make_pipe
        self._place = place
        self._slot = slot
        self._threads = threads
        self._manner = manner
        self._pipe: ImagePipeline[Any] | None = None
        self._runner: Runner | None = None
        self._unit = ""
        self._progress = Progress(0)
        self._stop = threading.Event()

    def load(self) -> ImagePipeline[Any]:
        """Load the pipeline, unless that is done, and return it."""
        if self._pipe is None:
            torch.set_num_threads(self._threads)
            self._pipe = self._make_pipe()
        return self._pipe

    def ready(self) -> None:
        """Load the pipeline before the first unit comes."""
        self.load()

    def plan(self, entries: Sequence[Entry], names: str, batch_size: int | None) -> Plan:
        """Plan a job with the pipeline that draws it; see ``make_plan``."""
        return make_plan(self.load(), entries, names=names, batch_size=batch_size)

    def draw(self, task: Task) -> Record:
        """Draw a unit.

        Raises:
            InvalidRequest: this worker's weights, settings or versions are not those of the plan.
            Paused, Cancelled, CheckpointError: see ``run_plan``.
        """
        task.unit.group.check(self.load())
        runner = self._ready_runner()
        self._progress.images = sum(item.key not in task.skip for item in task.unit.items)
        self._progress.drawn = 0
        self._progress.failures = {}
        self._unit = task.unit.name
        runner.skip = set(task.skip)
        if task.found:
            runner.adopt((task.unit.group, each) for each in task.found)
            runner.ledger.flush()
        if task.lost:
            runner.give_up(task.unit, task.lost)
        else:
            runner.run([task.unit])
        return self.record()

    def record(self) -> Record:
        """Say how far the present unit is; any thread may ask."""
        return Record(self._unit, self._progress.drawn, dict(self._progress.failures))

    def stop(self) -> None:
        """Let the unit that is drawn end with the present step; any thread may ask. Finished images are kept."""
        self._stop.set()

    def close(self) -> None:
        """Close the ledger; the end of the process does so too."""
        if self._runner is not None:
            self._runner.ledger.__exit__(None, None, None)

    def _ready_runner(self) -> Runner:
        if self._runner is None:
            output, book = open_book(self._place, self._slot, self._manner)
            runner = Runner(self.load(), output, book, self._progress, set(), self._manner.text_bytes, self._on_step)
            facts = {"time": now(), "host": platform.node(), "pid": os.getpid(), "versions": versions()}
            runner.begin((), {**facts, "device": str(self.load().device), "worker": self._slot})
            self._runner = runner
        return self._runner

    def _on_step(self, done: Step) -> None:
        if self._stop.is_set():
            raise Cancelled(f"stopped after step {done.step} of {done.steps}")


def open_book(place: str | Path | Storage, slot: int, manner: Manner) -> tuple[Output, Book]:
    """Return an output, and the first ledger of this machine that no other process uses.

    A worker that takes the place of one that died takes its ledger too, and removes what it left unfinished.

    Raises:
        InvalidRequest: this machine does not have the place.
        OSError: it cannot be written.
    """
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", platform.node()) or "host"
    if not open_storage(place).is_prepared():
        raise InvalidRequest(
            f"{platform.node()} does not have the folder {printable(place, 300)}, where images are to go: give one "
            "that every machine has under this name, or an object store."
        )
    for number in count(slot):
        name = f"ledger-{host}-{number}.jsonl"
        output = make_output(manner.format, place, name, manner.quality)
        try:
            return output, output.storage.ledger(name)
        except InvalidRequest:  # in use
            continue
    raise AssertionError("numbers do not end")
