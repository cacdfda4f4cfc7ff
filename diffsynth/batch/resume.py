"""What of a plan is on the disk already: ledgers and files must both say so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffsynth.batch.jobs import Problems
from diffsynth.batch.ledger import Finished, History
from diffsynth.batch.output import NameTaken, Output, Published
from diffsynth.batch.plan import Group, Item, Unit

logger = logging.getLogger(__name__)


@dataclass
class State:
    """How a plan stands before a run.

    Args:
        finished: keys of images that are on the disk.
        aside: keys of images that failed too often to be tried again.
        found: images that are on the disk but in no ledger yet, with their groups.
        inexact: how many of the finished ones were drawn together with others, but are to be drawn alone.
    """

    finished: set[str] = field(default_factory=set)
    aside: set[str] = field(default_factory=set)
    found: list[tuple[Group, Published]] = field(default_factory=list)
    inexact: int = 0

    def remark(self) -> None:
        """Warn of finished images that are not quite what is asked for."""
        if self.inexact:
            logger.warning(
                "%d finished images were drawn together with others and are kept: drawn alone, their pixels may differ "
                "by 1 of 255; for that, name another folder",
                self.inexact,
            )


def look(
    units: Sequence[Unit], history: History, output: Output, *, verify: bool = False, retry_failed: bool = False
) -> State:
    """Compare units with ledgers and files.

    Args:
        units: all that this process may draw.
        history: what the ledgers say.
        output: where the files are.
        verify: read every file and compare its hash, in place of its size and time.
        retry_failed: set nothing aside.

    Raises:
        InvalidRequest: other files have names that images are to have; all are named.
        OSError: files cannot be read.
    """
    state, problems = State(), Problems()
    output.history = history
    for unit in units:
        for item in unit.items:
            known = history.finished.get(item.key, ())
            try:
                new = output.find(item, known, verify=verify)
            except NameTaken as error:
                problems.add(item.names[0], str(error))
                continue
            if new is not None:
                state.finished.add(item.key)
                state.inexact += unit.group.batch_size == 1 and any(file.rows > 1 for file in known)
                state.found += [(unit.group, _adopted(item, file)) for file in new]
            elif history.set_aside(item.key) and not retry_failed:
                state.aside.add(item.key)
    problems.refuse("the job cannot be drawn into this folder")
    return state


def _adopted(item: Item, file: Finished) -> Published:
    return Published(item, file, {"note": "found on the disk, in no ledger"})
