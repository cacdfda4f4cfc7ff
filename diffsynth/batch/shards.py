"""Which units of a plan one process draws, when several share a job without talking to one another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffsynth.batch.plan import Unit
from diffsynth.errors import InvalidRequest, printable

PARTS = 16  # for each process, so that all end at nearly the same time


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 0: every ``count``-th unit, or piece of one if there are few.

    Args:
        index: which part.
        count: how many parts there are.
        whole: never cut a unit; an archive holds one, and would not be the same for any number of parts.
    """

    index: int
    count: int
    whole: bool = False

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``0/4``.

        Raises:
            InvalidRequest: it is no part of a whole.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or int(found[1]) >= int(found[2]):
            raise InvalidRequest(f"a shard is I/N with I from 0 to N - 1, such as 0/4, not {printable(text)!r}.")
        return cls(int(found[1]), int(found[2]))

    def __call__(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Return the units of this part."""
        return (units if self.whole else cut(units, self.count))[self.index :: self.count]

    @property
    def ledger(self) -> str:
        """The name of the part's own ledger."""
        return f"ledger-{self.index}-of-{self.count}.jsonl"


def cut(units: Sequence[Unit], processes: int) -> Sequence[Unit]:
    """Return units, in pieces if they are too few for several processes.

    A unit is cut between the batches that are drawn together, so that every image keeps its companions and its bytes.
    """
    if len(units) >= PARTS * processes:
        return units
    images = sum(len(unit.items) for unit in units) / (PARTS * processes)
    return [piece for unit in units for piece in _pieces(unit, images)]


def _pieces(unit: Unit, images: float) -> list[Unit]:
    """Return a unit in pieces of so many images, or somewhat more."""
    size = unit.group.batch_size
    step = max(1, -(-int(images) // size)) * size
    return [Unit(unit.group, unit.items[start : start + step]) for start in range(0, len(unit.items), step)]
