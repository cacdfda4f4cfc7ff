"""The driver of many workers: hands out units, hears what became of them, and hands them out again if need be."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffsynth.batch.cluster import Cluster, WorkerLost
from diffsynth.batch.expand import Entry
from diffsynth.batch.output import Output, Published
from diffsynth.batch.plan import Item, Plan, Unit
from diffsynth.batch.progress import OnProgress, OnStep, Progress, nobody
from diffsynth.batch.resume import State, look
from diffsynth.batch.run import make_output
from diffsynth.batch.shards import cut
from diffsynth.batch.storage import Storage
from diffsynth.batch.worker import Manner, Record, Task
from diffsynth.errors import DeviceLost, Paused
from diffsynth.pipelines.base import ImagePipeline

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between two looks at the workers
TRIES = 3  # deaths of workers at one batch, or one image, without any image more
HOPELESS = 20  # deaths in a row, whatever was drawn, before the run gives up
LATE = 2.0  # times the longest that any image took, and a worker without work draws a unit too
LATE_SECONDS = 10.0  # more than that
TIDY_SECONDS = 3.0  # until ended workers are gone


@dataclass(eq=False)
class _Work:
    """A unit on its way.

    Args:
        unit: the images.
        skip: keys of those that are settled.
        found: on the disk, but in no ledger.
        lost: see ``Task``.
        deaths: of workers, since the last image.
        record: the last that was heard of it, from the worker that had it first.
        started: when the last worker got it, by ``time.monotonic``.
        done: a worker has ended it; another may still be at it.
    """

    unit: Unit
    skip: set[str]
    found: tuple[Published, ...] = ()
    lost: str = ""
    deaths: int = 0
    record: Record = field(default_factory=Record)
    started: float = 0.0
    done: bool = False

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
        self._slots: dict[Any, int] = {}
        self._loading: dict[Any, Any] = {}  # promise → worker
        self._waiting: deque[_Work] = deque()
        self._running: dict[Any, tuple[Any, _Work]] = {}  # promise → worker and its work
        self._settled = 0
        self._deaths = 0
        self._slowest = 0.0  # seconds for an image, of all units that are done
        self._next_look = 0.0
        self._told = 0, 0
        self._output().storage.prepare()
        for slot in range(machines.workers):
            self._start(slot)

    def plan(self, entries: Sequence[Entry], names: str, batch_size: int | None) -> Plan:
        """Let the first worker that is ready plan the job, which takes a pipeline; see ``make_plan``."""
        shared = self._cluster.share(list(entries))
        while not (idle := self._idle()):
            self._wait()
        promise = self._cluster.ask(idle[0], "plan", shared, names, batch_size)
        while not self._cluster.answered([promise], LOOK_SECONDS):
            self._on_step(self._progress)
        try:
            plan: Plan = self._cluster.answer(promise)
        except WorkerLost as error:
            raise Paused(f"the worker that was to plan the job died: {error}") from error
        return plan

    def run(self, units: Sequence[Unit], *, verify: bool, retry_failed: bool) -> Progress:
        """Draw units, the first ones first; see ``run_distributed``."""
        state = self._look(units, verify=verify, retry_failed=retry_failed)
        state.remark()
        skip = state.finished | state.aside
        left: Sequence[Unit] = [work.unit for work in _works(units, skip, state)]
        if self._manner.format != "tar":
            left = cut(left, self._cluster.workers)
        self._waiting.extend(_works(left, skip, state))
        images = sum(len(work.items) for work in self._waiting)
        self._progress = Progress(images, len(state.finished), len(state.aside))
        self._on_progress(self._progress)
        while self._waiting or self._open():
            self._hand_out()
            self._wait()
        return self._progress

    def stop(self) -> None:
        """End all workers; what is drawn at the moment is given up, and nothing of it is left."""
        self._cluster.stop(list(self._slots), list(self._running))
        storage = self._output().storage
        end = time.monotonic() + TIDY_SECONDS
        with suppress(OSError):
            while not storage.tidy() and time.monotonic() < end:  # they may not have ended yet
                time.sleep(0.1)

    def _start(self, slot: int) -> None:
        worker = self._cluster.start(self._make_pipe, self._place, slot, self._cluster.threads, self._manner)
        self._slots[worker] = slot
        self._loading[self._cluster.ask(worker, "ready")] = worker

    def _output(self) -> Output:
        return make_output(self._manner.format, self._place, "ledger-driver.jsonl")  # it writes none

    def _look(self, units: Sequence[Unit], *, verify: bool = False, retry_failed: bool = False) -> State:
        """Compare units with what is stored at this moment."""
        output = self._output()
        return look(units, output.storage.history(), output, verify=verify, retry_failed=retry_failed)

    def _idle(self) -> list[Any]:
        """Return the workers that are ready and have nothing to do."""
        busy = {*self._loading.values(), *(worker for worker, _ in self._running.values())}
        return [worker for worker in self._slots if worker not in busy]

    def _open(self) -> list[_Work]:
        """Return the units that workers draw, each once."""
        return list(dict.fromkeys(work for _, work in self._running.values() if not work.done))

    def _hand_out(self) -> None:
        for worker in self._idle():
            if self._waiting:
                work = self._waiting.popleft()
                work.started = time.monotonic()
                self._draw(worker, work, State())
            elif (late := self._late()) is not None:
                logger.warning("%s and others take long: another worker draws them too", late.unit.items[0].names[0])
                late.started = time.monotonic()
                self._draw(worker, late, self._look([late.unit]))

    def _draw(self, worker: Any, work: _Work, state: State) -> None:
        found = tuple(published for _, published in state.found)
        task = Task(work.unit, frozenset(work.skip | state.finished), work.found + found, work.lost)
        self._running[self._cluster.ask(worker, "draw", task)] = worker, work

    def _late(self) -> _Work | None:
        """Return a unit that is drawn much longer than is usual; its files are made once, whoever ends first."""
        if not self._slowest:
            return None
        for work in self._open():
            usual = LATE * self._slowest * len(work.items) + LATE_SECONDS
            if time.monotonic() - work.started > usual:
                return work
        return None

    def _wait(self) -> None:
        """Wait for the next worker that is ready or has ended a unit, though not for long, and tell how far it is."""
        for promise in self._cluster.answered([*self._loading, *self._running], LOOK_SECONDS):
            if promise in self._loading:
                self._hear(promise, self._loading.pop(promise))
            else:
                self._hear(promise, *self._running.pop(promise))
        self._report()
        self._on_step(self._progress)

    def _hear(self, promise: Any, worker: Any, work: _Work | None = None) -> None:
        """Take note of what became of a unit, or of a worker's start."""
        try:
            record = self._cluster.answer(promise)
        except (WorkerLost, DeviceLost) as error:
            logger.warning("a worker was lost, and its images are given to another: %s", error)
            self._replace(worker)
            if work in self._open() or work is None or work.done:
                return  # another has it
            self._again(work)
        else:
            if work is not None and not work.done:
                self._settle(work, record)

    def _settle(self, work: _Work, record: Record) -> None:
        work.done = True
        self._settled += len(work.items) - len(record.failures)
        self._deaths = 0 if record.drawn else self._deaths
        if record.drawn:
            self._slowest = max(self._slowest, (time.monotonic() - work.started) / len(work.items))
        for item in work.items:
            if item.names[0] not in record.failures:  # that another worker has seen, perhaps
                self._progress.failures.pop(item.names[0], None)
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
        self._start(slot)

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
        """Tell how far the workers are; they are asked now and then."""
        if time.monotonic() >= self._next_look:
            self._ask()
            self._next_look = time.monotonic() + LOOK_SECONDS
        self._progress.drawn = self._settled + sum(work.record.drawn for work in self._open())
        told = self._progress.drawn, len(self._progress.failures)
        if told != self._told:
            self._told = told
            self._on_progress(self._progress)

    def _ask(self) -> None:
        first = {work: worker for worker, work in reversed(self._running.values()) if not work.done}
        records = self._cluster.records(list(first.values()))
        for work, worker in first.items():
            record = records.get(worker)
            if record is not None and record.unit == work.unit.name:
                work.record = record
                self._fail(record.failures)


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
