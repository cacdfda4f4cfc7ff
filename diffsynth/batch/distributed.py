"""Many workers on one job: a driver that hands out units and holds nothing, and the promises that this rests on.

The same bytes for any number of workers: the plan alone decides which images are drawn together, and a worker draws a
unit as a single process does. Exactly one file per image: a worker publishes under the image's name, which a storage
gives away once, and deletes what it made if another was first. Nothing is lost: a worker notes each image in a ledger
of its own after its file is safe, so the ledgers together are the manifest of the job, and going on means "units minus
ledgers", for one process, shards and workers alike, and in any mixture. In a folder a ledger grows line by line; in an
object store it is a file per unit.

A unit whose worker died is given to another. Three times without an image more, and the batch at which it stands is
drawn image by image; an image that then ends three workers is noted as failed, and the others go on.

How many threads torch has may change the last digits of what a CPU computes; workers have an equal share of the
processors each.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffsynth.batch.cluster import Cluster, WorkerLost, cluster
from diffsynth.batch.expand import Entry
from diffsynth.batch.names import USUAL
from diffsynth.batch.output import Published
from diffsynth.batch.plan import Item, Unit
from diffsynth.batch.progress import OnProgress, OnStep, Progress, nobody
from diffsynth.batch.resume import State, look
from diffsynth.batch.run import Choose, all_units, make_output
from diffsynth.batch.storage import Storage
from diffsynth.batch.worker import Manner, Record, Task
from diffsynth.errors import Paused
from diffsynth.pipelines.base import ImagePipeline

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between two looks at the workers
TRIES = 3  # deaths of workers at one batch, or one image, without any image more
HOPELESS = 20  # deaths in a row, whatever was drawn, before the run gives up


def run_distributed(
    make_pipe: Callable[[], ImagePipeline[Any]],
    entries: Sequence[Entry],
    place: str | Path | Storage,
    *,
    address: str | None = None,
    workers: int | None = None,
    names: str = USUAL,
    batch_size: int | None = None,
    choose: Choose = all_units,
    manner: Manner = Manner(),  # noqa: B008 - frozen
    verify: bool = False,
    retry_failed: bool = False,
    on_step: OnStep = nobody,
    on_progress: OnProgress = nobody,
) -> Progress:
    """Draw a job with several worker processes, or go on with it; see ``run_plan``, which draws the same files.

    Args:
        make_pipe: loads the pipeline, in every worker; it must be a function that can be pickled.
        entries: of the job; see ``read_entries``.
        place: gets images and ledgers; every worker must reach it under this name.
        address: of a running Ray; None starts one on this machine.
        workers: how many; None for one per accelerator, or without any, one per machine.
        names: template of file names.
        batch_size: images that are drawn together; None for as many as 2 megapixels have room for, at most 8.
        choose: units → those that this run draws.
        manner: how images are written.
        verify: read every finished file and compare its hash.
        retry_failed: draw images again that have failed three times.
        on_step: called twice a second; raise Cancelled in it to stop.
        on_progress: called at the start and when images are settled.

    Returns:
        What was drawn and what failed.

    Raises:
        InvalidRequest: the job cannot be drawn, Ray is missing, or workers do not fit.
        Paused: the disk is full or broken, or workers die one after another; what is finished is kept.
        Cancelled: ``on_step`` has asked to stop.
        CheckpointError: a file of weights cannot be used.
    """
    output = make_output(manner.format, place, "ledger-driver.jsonl", manner.quality)  # refuses before anything starts
    if isinstance(place, Path) or (isinstance(place, str) and "://" not in place):
        place = Path(place).absolute()
    with cluster(address, workers) as machines:
        driver = Driver(machines, partial(called_in, Path.cwd(), make_pipe), place, manner, on_step, on_progress)
        try:
            plan = driver.plan(entries, names, batch_size)
            output.check(plan)
            return driver.run(list(choose(plan.units)), verify=verify, retry_failed=retry_failed)
        finally:
            driver.stop()


def called_in(folder: Path, make_pipe: Callable[[], ImagePipeline[Any]]) -> ImagePipeline[Any]:
    """Load a pipeline in the driver's working folder, if this machine has it, so that paths mean the same."""
    if folder.is_dir():
        os.chdir(folder)
    return make_pipe()


@dataclass
class _Work:
    """A unit on its way.

    Args:
        unit: the images.
        skip: keys of those that are settled.
        found: on the disk, but in no ledger.
        lost: see ``Task``.
        deaths: of workers, since the last image.
        record: the last that was heard of it.
    """

    unit: Unit
    skip: set[str]
    found: tuple[Published, ...] = ()
    lost: str = ""
    deaths: int = 0
    record: Record = field(default_factory=Record)

    @property
    def items(self) -> list[Item]:
        """Images that are not settled."""
        return [item for item in self.unit.items if item.key not in self.skip]


class Driver:
    """Hands out units and hears of them; all that it knows can be read from the storage again."""

    def __init__(
        self,
        machines: Cluster,
        make_pipe: Callable[[], ImagePipeline[Any]],
        place: str | Path | Storage,
        manner: Manner,
        on_step: OnStep = nobody,
        on_progress: OnProgress = nobody,
    ) -> None:
        self._cluster = machines
        self._place = place
        self._manner = manner
        self._on_step = on_step
        self._on_progress = on_progress
        self._progress = Progress(0)
        self._make_pipe = make_pipe
        self._slots: dict[Any, int] = {self._start(slot): slot for slot in range(machines.workers)}
        self._waiting: deque[_Work] = deque()
        self._running: dict[Any, tuple[Any, _Work]] = {}  # promise → worker and its work
        self._settled = 0
        self._deaths = 0

    def plan(self, entries: Sequence[Entry], names: str, batch_size: int | None) -> Any:
        """Let a worker plan the job, which takes a pipeline; see ``make_plan``."""
        first = next(iter(self._slots))
        promise = self._cluster.ask(first, "plan", self._cluster.share(list(entries)), names, batch_size)
        while not self._cluster.answered([promise], LOOK_SECONDS):
            self._on_step(self._progress)
        try:
            return self._cluster.answer(promise)
        except WorkerLost as error:
            raise Paused(f"the worker that was to plan the job died: {error}") from error

    def run(self, units: Sequence[Unit], *, verify: bool, retry_failed: bool) -> Progress:
        """Draw units; see ``run_distributed``."""
        state = self._look(units, verify=verify, retry_failed=retry_failed)
        skip = state.finished | state.aside
        self._waiting.extend(_works(units, skip, state))
        images = sum(len(work.items) for work in self._waiting)
        self._progress = Progress(images, len(state.finished), len(state.aside))
        self._on_progress(self._progress)
        while self._waiting or self._running:
            self._hand_out()
            for promise in self._cluster.answered(list(self._running), LOOK_SECONDS):
                self._hear(promise)
            self._report()
            self._on_step(self._progress)
        return self._progress

    def _start(self, slot: int) -> Any:
        return self._cluster.start(self._make_pipe, self._place, slot, self._cluster.threads, self._manner)

    def stop(self) -> None:
        """End all workers; what is drawn at the moment is given up."""
        self._cluster.stop(list(self._slots), list(self._running))

    def _look(self, units: Sequence[Unit], *, verify: bool = False, retry_failed: bool = False) -> State:
        """Compare units with what is stored at this moment."""
        output = make_output(self._manner.format, self._place, "ledger-driver.jsonl")  # it writes none
        return look(units, output.storage.history(), output, verify=verify, retry_failed=retry_failed)

    def _hand_out(self) -> None:
        busy = {worker for worker, _ in self._running.values()}
        for worker in [each for each in self._slots if each not in busy]:
            if not self._waiting:
                return
            work = self._waiting.popleft()
            work.record = Record()
            task = Task(work.unit, frozenset(work.skip), work.found, work.lost)
            self._running[self._cluster.ask(worker, "draw", task)] = worker, work

    def _hear(self, promise: Any) -> None:
        """Take note of what became of a unit."""
        worker, work = self._running.pop(promise)
        try:
            record = self._cluster.answer(promise)
        except WorkerLost as error:
            logger.warning("a worker was lost, and its images are given to another: %s", error)
            self._replace(worker)
            self._again(work)
        else:
            self._settled += record.drawn
            self._deaths = 0 if record.drawn else self._deaths
            self._fail(record.failures)

    def _replace(self, worker: Any) -> None:
        self._deaths += 1
        slot = self._slots.pop(worker)
        self._cluster.end(worker)
        if self._deaths >= HOPELESS:
            raise Paused(
                f"{HOPELESS} workers died one after another before any finished its images. The run stops; what is "
                "finished is kept, and the same command goes on when the cause is removed."
            )
        self._slots[self._start(slot)] = slot

    def _again(self, work: _Work) -> None:
        """Hand out what is left of a unit whose worker died."""
        self._fail(work.record.failures)
        failed = {item.key for item in work.unit.items if item.names[0] in work.record.failures}
        state = self._look([work.unit])
        new = state.finished - work.skip
        self._settled += len(new)
        found = tuple(published for _, published in state.found)
        deaths = 1 if new or failed else work.deaths + 1
        left = _Work(work.unit, work.skip | new | failed, found, work.lost, deaths)
        if left.items or left.found:
            self._waiting.extendleft(reversed(list(_narrowed(left)) if deaths >= TRIES else [left]))

    def _fail(self, failures: Mapping[str, str]) -> None:
        for name, reason in failures.items():
            if name not in self._progress.failures:
                logger.warning("%s could not be drawn: %s", name, reason)
                self._progress.failures[name] = reason

    def _report(self) -> None:
        """Ask the workers how far they are, and tell."""
        before = self._progress.drawn, len(self._progress.failures)
        records = self._cluster.records([worker for worker, _ in self._running.values()])
        for worker, work in self._running.values():
            record = records.get(worker)
            if record is not None and record.unit == work.unit.name:
                work.record = record
                self._fail(record.failures)
        self._progress.drawn = self._settled + sum(work.record.drawn for _, work in self._running.values())
        if (self._progress.drawn, len(self._progress.failures)) != before:
            self._on_progress(self._progress)


def _works(units: Iterable[Unit], skip: set[str], state: State) -> Iterator[_Work]:
    found: dict[str, list[Published]] = {}
    for _, published in state.found:
        found.setdefault(published.item.key, []).append(published)
    for unit in units:
        new = tuple(each for item in unit.items for each in found.get(item.key, ()))
        work = _Work(unit, skip & {item.key for item in unit.items}, new)
        if work.items or new:
            yield work


def _narrowed(work: _Work) -> Iterator[_Work]:
    """Yield the images of the batch at which workers die one by one, then the rest of the unit.

    An image that was alone already is noted as failed.
    """
    group = work.unit.group
    left = {item.key for item in work.items}
    batch = next(batch for batch in work.unit.batches() if any(item.key in left for item in batch))
    culprits = [item for item in batch if item.key in left]
    rest = _Work(work.unit, work.skip | {item.key for item in culprits}, work.found)
    if len(batch) == 1:
        reason = f"{TRIES} workers died while they drew it"
        yield _Work(Unit(group, tuple(culprits)), set(), lost=reason)
    else:
        alone = replace(group, batch_size=1)
        yield from (_Work(Unit(alone, (item,)), set()) for item in culprits)
    if rest.items or rest.found:
        yield rest
