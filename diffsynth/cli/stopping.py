"""Stopping between two steps: Ctrl-C and requests to terminate let the present step end first."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from diffsynth.errors import Cancelled

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # what shells expect as exit codes


class Step(Protocol):
    """What is told of a step."""

    @property
    def step(self) -> int:
        """How many are done."""

    @property
    def steps(self) -> int:
        """How many there are."""


class Stopped(Cancelled):
    """The user asked to stop, and the step ended.

    Args:
        reason: where it stopped.
        number: of the signal.
    """

    def __init__(self, reason: str, number: int) -> None:
        super().__init__(reason)
        self.exit_code = 128 + number


class StoppedAtOnce(KeyboardInterrupt):
    """The user asked to stop before there was a step to end, or twice.

    Args:
        number: of the first signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


@contextmanager
def stopping() -> Iterator[Callable[[Step], None]]:
    """Yield a function to call after each step, which stops if that was asked for.

    A signal before the first call stops at once, for nothing is begun yet; so does a second one.

    Raises:
        Stopped: by that function.
        StoppedAtOnce: anywhere else.
    """
    asked: list[int] = []
    begun = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1 or not begun:
            raise StoppedAtOnce(asked[0])
        print("stopping after this step; once more stops at once", file=sys.stderr)

    def check(done: Step) -> None:
        nonlocal begun
        begun = True
        if asked:
            raise Stopped(f"stopped after step {done.step} of {done.steps}", asked[0])

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
