"""How far a run is, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias


class Step(Protocol):
    """What a caller is told while images are drawn, often enough to stop soon."""

    @property
    def step(self) -> int:
        """How many are done."""

    @property
    def steps(self) -> int:
        """How many there are."""


OnStep: TypeAlias = Callable[[Step], None]


@dataclass
class Progress:
    """How far a run is.

    Args:
        images: to be drawn in it.
        finished: of the job, were on the disk before.
        aside: of the job, are not tried again, since they failed too often.
        drawn: of those to be drawn, are on the disk.
        failures: file → why it could not be drawn.
        started: by ``time.perf_counter``.
    """

    images: int
    finished: int = 0
    aside: int = 0
    drawn: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def step(self) -> int:
        """Images that are settled."""
        return self.drawn + len(self.failures)

    @property
    def steps(self) -> int:
        """All images of the run."""
        return self.images

    @property
    def rate(self) -> float:
        """Images per second so far."""
        return self.step / max(time.perf_counter() - self.started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Until the end at this rate; None before the first image."""
        return (self.images - self.step) / self.rate if self.step else None


OnProgress: TypeAlias = Callable[[Progress], None]


def nobody(report: Any) -> None:
    """Tell nobody."""
