"""Which units of a plan one process draws, when several share a job without talking to one another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffsynth.batch.plan import Unit
from diffsynth.errors import InvalidRequest, printable


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 0: every ``count``-th unit."""

    index: int
    count: int

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
        return units[self.index :: self.count]

    @property
    def ledger(self) -> str:
        """The name of the part's own ledger."""
        return f"ledger-{self.index}-of-{self.count}.jsonl"
