"""Waiting for hubs within bounds: give up on silence, try again after hiccups, stop at refusals."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

from diffsynth.hub.settings import Patience

logger = logging.getLogger(__name__)

T = TypeVar("T")
SILENT = 2  # attempts that may end in silence, each of which is a long one
DISTURBED = 20  # attempts that other threads may spoil
AHEAD = 16  # pieces that may arrive before the first is taken


class Refusal(Exception):
    """A hub will not give this, now or later; the message says why."""


class HubDown(Refusal):
    """A hub cannot be used for anything at present."""


class Hiccup(Exception):
    """Something that may pass by itself.

    Args:
        reason: what happened.
        retry_after: seconds that the hub asked to wait, if it did.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Exhausted(Refusal):
    """Something was tried as often as patience allows."""


class Silence(Hiccup):
    """Nothing came for a long time."""


class Disturbed(Hiccup):
    """The hub had no part in it: another thread closed the client that all threads share, as it does after an error."""


class NoSuchRange(Hiccup):
    """The hub's file does not reach as far as what is already there."""


class Pauses:
    """Counts attempts at one thing and waits between them, longer each time.

    Args:
        patience: how many, and how long.
        what: the thing, for the log.
    """

    def __init__(self, patience: Patience, what: str) -> None:
        self._patience, self._what = patience, what
        self.reset()

    def reset(self) -> None:
        """Start counting anew, because something was gained."""
        self._failed = self._disturbed = 0

    def wait(self, hiccup: Hiccup) -> None:
        """Wait before the next attempt.

        Raises:
            Exhausted: there have been enough of them.
        """
        if isinstance(hiccup, Disturbed):  # counted for itself: it says nothing about the hub
            self._disturbed += 1
            count, limit, before = self._disturbed, DISTURBED, 0
        else:
            self._failed += 1
            limit = min(self._patience.attempts, SILENT) if isinstance(hiccup, Silence) else self._patience.attempts
            count, before = self._failed, self._failed - 1
        if count >= limit:
            raise Exhausted(f"{hiccup}, {count} times in a row") from hiccup
        usual = self._patience.pause * 2**before * random.uniform(0.5, 1.5)
        seconds = min(usual if hiccup.retry_after is None else hiccup.retry_after, self._patience.longest)
        logger.info("%s: %s; trying again in %.1f s", self._what, hiccup, seconds)
        time.sleep(seconds)


def bounded(call: Callable[[], T], seconds: float) -> T:
    """Return what a call returns.

    Raises:
        Silence: it took too long.
    """

    def one() -> Generator[T, None, None]:
        yield call()

    return next(arriving(one(), seconds))


def arriving(source: Generator[T, None, None], silence: float) -> Generator[T, None, None]:
    """Iterate in a thread of its own, a few items ahead, so that a silent source cannot hold up the caller.

    Args:
        source: a generator; it is closed in its own thread, soon after the caller stops.
        silence: most seconds between two items.

    Raises:
        Silence: nothing came in that time. What the source raises is raised here too.
    """
    ready = threading.Condition()
    box: list[tuple[str, T | BaseException | None]] = []
    left = False

    def offer(kind: str, value: T | BaseException | None) -> None:
        with ready:
            ready.wait_for(lambda: len(box) < AHEAD or left)
            box.append((kind, value))
            ready.notify_all()

    def work() -> None:
        try:
            with closing(source):
                for item in source:
                    offer("item", item)
                    if left:
                        return
        except BaseException as error:  # noqa: BLE001 - raised again by the other thread
            offer("error", error)
        offer("end", None)

    threading.Thread(target=work, name="diffsynth-hub", daemon=True).start()
    try:
        while True:
            with ready:
                if not ready.wait_for(lambda: box, timeout=silence):
                    raise Silence(f"no answer for {silence:g} s")
                batch = tuple(box)  # all at once: waking up costs more than a piece
                box.clear()
                ready.notify_all()
            for kind, value in batch:
                if isinstance(value, BaseException) and kind == "error":
                    raise value
                if kind == "end":
                    return
                yield value  # type: ignore[misc]
    finally:
        with ready:
            left = True
            ready.notify_all()
