"""Draw units: the texts of many first, then batch after batch, each image published and noted before the next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeVar

from diffsynth.batch.drawing import Drawer, Outcome
from diffsynth.batch.output import Output, Published
from diffsynth.batch.plan import Group, Item, Unit, versions
from diffsynth.batch.progress import OnProgress, OnStep, Progress, nobody
from diffsynth.batch.storage import Book
from diffsynth.batch.text_store import TextStore
from diffsynth.errors import InvalidRequest, Paused
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.texts import NO_TEXTS, Texts

logger = logging.getLogger(__name__)

T = TypeVar("T")

TEXT_BYTES = 2 * 1024**3  # of features that are computed ahead, for a window of units
HOPELESS = 20  # images that fail one after another before a run gives up


@dataclass
class Runner:
    """Draws units with one pipeline into one output and one ledger. Holds nothing that a crash could lose.

    Args:
        pipe: what draws.
        output: where images go.
        ledger: what is told of them.
        progress: how far the run is.
        skip: keys of images that are not drawn: those that are finished, or were set aside. Grows.
        text_bytes: of text features that are computed ahead; 0 takes the units one by one.
        low_memory: whether the texts of all units are encoded first, and the text encoders then given back.
        on_step: called at every step and between images; raise Cancelled in it to stop.
        on_progress: called when an image is settled.
    """

    pipe: ImagePipeline[Any]
    output: Output
    ledger: Book
    progress: Progress
    skip: set[str] = field(default_factory=set)
    text_bytes: int = TEXT_BYTES
    on_step: OnStep = nobody
    on_progress: OnProgress = nobody
    low_memory: bool = False

    def __post_init__(self) -> None:
        self._drawer = Drawer(self.pipe, self.progress, self.on_step)
        self._failed_in_a_row = 0

    def run(self, units: Iterable[Unit]) -> Progress:
        """Draw all images of units that are not to be skipped.

        Args:
            units: in any order; each is taken when its texts are to be encoded, not sooner. With ``low_memory`` all
                that the pipeline will ever draw.

        Raises:
            Cancelled: by ``on_step``; images in flight are lost, finished ones are not.
            Paused: the disk is full or broken, or image after image fails.
            CheckpointError: a file of weights was changed.
        """
        for window, texts in self._all_at_once(units) if self.low_memory else self._windows(units):
            for unit in window:
                self._draw(unit, texts)
        return self.progress

    def begin(self, found: Iterable[tuple[Group, Published]], facts: Mapping[str, Any]) -> None:
        """Note that a run begins, and what was found on the disk but in no ledger.

        Args:
            found: such images, with their groups.
            facts: what the run is.

        Raises:
            Paused: the ledger cannot be written.
        """
        self._write({"run": facts})
        self.adopt(found)

    def adopt(self, found: Iterable[tuple[Group, Published]]) -> None:
        """Note images that were found on the disk but in no ledger; see ``begin``."""
        self._write(*(image_line(group, each) for group, each in found))

    def give_up(self, unit: Unit, reason: str) -> None:
        """Note the images of a unit that are not to be skipped as failed, without drawing them."""
        for item in unit.items:
            if item.key not in self.skip:
                self._fail(unit.group, item, reason)
        self._saved(self.ledger.flush)

    def _windows(self, units: Iterable[Unit]) -> Iterator[tuple[list[Unit], Texts]]:
        """Yield units with the features of their texts: as many units as these have room for."""
        window: list[Unit] = []
        texts = NO_TEXTS
        for unit in units:
            if all(item.key in self.skip for item in unit.items):
                continue
            texts = self._drawer.encode(unit, self.skip, texts)
            window.append(unit)
            if texts.nbytes >= self.text_bytes:
                yield window, texts
                window, texts = [], NO_TEXTS
        if window:
            yield window, texts

    def _all_at_once(self, units: Iterable[Unit]) -> Iterator[tuple[list[Unit], Texts]]:
        """Yield all units with the features of their texts, after the text encoders have left memory."""
        wanted = [unit for unit in units if any(item.key not in self.skip for item in unit.items)]
        if not wanted:
            return
        with TextStore(self.text_bytes) as store:
            for unit in wanted:
                self._saved(partial(self._drawer.keep, unit, self.skip, store))
            self.pipe.release_text_encoders()
            yield wanted, Texts(store)

    def _draw(self, unit: Unit, texts: Texts) -> None:
        for batch in unit.batches():
            for outcome in self._drawer.draw(unit.group, batch, self.skip, texts):
                self._settle(unit.group, outcome)
        self._note(unit.group, self._saved(self.output.end_unit))
        self._saved(self.ledger.flush)

    def _settle(self, group: Group, outcome: Outcome) -> None:
        """Publish an image, or note why there is none."""
        if outcome.image is None:
            self._fail(group, outcome.item, outcome.reason)
            return
        item, image, facts = outcome.item, outcome.image, outcome.facts
        try:
            published = self._saved(lambda: self.output.add(item, image, facts))
        except InvalidRequest as error:  # its name was taken meanwhile, or it does not fit into the format
            self._fail(group, item, str(error))
            return
        self._failed_in_a_row = 0
        self._note(group, published)

    def _saved(self, write: Callable[[], T]) -> T:
        try:
            return write()
        except OSError as error:
            raise self._paused(error) from error

    def _note(self, group: Group, published: Sequence[Published]) -> None:
        if not published:
            return
        self._write(*(image_line(group, each) for each in published))
        for key in dict.fromkeys(each.item.key for each in published):
            self.skip.add(key)
            self.progress.drawn += 1
            self.on_progress(self.progress)

    def _fail(self, group: Group, item: Item, reason: str) -> None:
        logger.warning("%s could not be drawn: %s", item.names[0], reason)
        self._write(
            {"key": item.key, "failed": reason, "files": item.names, "time": now(), "request": asked(group, item)}
        )
        self.skip.add(item.key)
        self.progress.failures[item.names[0]] = reason
        self.on_progress(self.progress)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= HOPELESS:
            raise Paused(
                f"the last {HOPELESS} images all failed, this one because: {reason} The run stops; what is finished is "
                "kept, and the same command goes on when the cause is removed."
            )

    def _write(self, *lines: dict[str, Any]) -> None:
        self._saved(lambda: self.ledger.write(*lines))

    def _paused(self, error: OSError) -> Paused:
        done = f"{self.progress.drawn} of {self.progress.images} images"
        return Paused(f"{error.strerror}: {error.filename}. {done} of this run are finished and kept; "
                      "make room or mend the disk, and the same command goes on from here.")  # fmt: skip


def image_line(group: Group, published: Published) -> dict[str, Any]:
    """Return what a ledger says of an image that is on the disk."""
    item, file = published.item, published.file
    return {
        "key": item.key,
        "files": file.files,
        "sha256": file.sha256,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        "seed": item.seed,
        **published.facts,
        "time": now(),
        "versions": versions(),
        "request": asked(group, item),
    }


def asked(group: Group, item: Item) -> dict[str, Any]:
    """Return the complete request of an image, pictures as their hashes."""
    return {
        "prompt": item.prompt, "negative_prompt": item.negative_prompt, "seed": item.seed, **group.complete
    }  # fmt: skip


def now() -> str:
    """Return the time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
