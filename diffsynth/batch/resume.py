"""What of a plan is on the disk already: ledgers and files must both say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from diffsynth.batch.jobs import Problems
from diffsynth.batch.ledger import Finished, History
from diffsynth.batch.output import NameTaken, Output, Published
from diffsynth.batch.plan import Group, Item, Unit


@dataclass
class State:
    """How a plan stands before a run.

    Args:
        finished: keys of images that are on the disk.
        aside: keys of images that failed too often to be tried again.
        found: images that are on the disk but in no ledger yet, with their groups.
    """

    finished: set[str] = field(default_factory=set)
    aside: set[str] = field(default_factory=set)
    found: list[tuple[Group, Published]] = field(default_factory=list)


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
            try:
                new = output.find(item, history.finished.get(item.key, ()), verify=verify)
            except NameTaken as error:
                problems.add(item.names[0], str(error))
                continue
            if new is not None:
                state.finished.add(item.key)
                state.found += [(unit.group, _adopted(item, file)) for file in new]
            elif history.set_aside(item.key) and not retry_failed:
                state.aside.add(item.key)
    problems.refuse("the job cannot be drawn into this folder")
    return state


def _adopted(item: Item, file: Finished) -> Published:
    return Published(item, file, {"note": "found on the disk, in no ledger"})
