"""One file from one hub: fetched, resumed, checked, and only then given its name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass

from diffsynth.errors import printable
from diffsynth.hub.listing import NOTHING, RemoteFile
from diffsynth.hub.part import Part
from diffsynth.hub.patience import Exhausted, Hiccup, NoSuchRange, Pauses, Refusal, arriving
from diffsynth.hub.settings import Patience
from diffsynth.hub.sources import Head, Source

logger = logging.getLogger(__name__)

Moved = Callable[[int], None]  # told how many bytes more, or fewer, are there


class WrongBytes(Exception):
    """What arrived, or is announced, is not the file that the hub lists."""


@dataclass(frozen=True)
class Origin:
    """Where a file is fetched from."""

    source: Source
    repository: str
    revision: str | None
    remote: RemoteFile


def fetch(origin: Origin, part: Part, patience: Patience, moved: Moved) -> None:
    """Fetch a file, or the rest of it, check it, and give it its final name.

    Wrong bytes are thrown away and fetched once more; what arrived before a wrong answer is kept.

    Args:
        origin: the hub and the file.
        part: what is there of it.
        patience: how long to wait.
        moved: told about progress.

    Raises:
        Refusal: this hub does not give the right bytes; the message says what it gave.
        OSError: the file cannot be written; what has arrived is kept.
    """
    if not origin.remote.has_hash:
        logger.warning("%s publishes no hash of %s: only its size is checked.", origin.source.name, part.target)
    for last in (False, True):
        try:
            _fill(origin, part, patience, moved)
            if wrong_at_the_end := _wrong_at_the_end(origin.remote, part):
                _start_over(part, moved)
                raise WrongBytes(wrong_at_the_end)
        except WrongBytes as wrong:
            if last:
                raise Refusal(f"{wrong}. This was tried twice") from wrong
            logger.warning("%s: %s: %s. Trying once more.", origin.source.name, part.target, wrong)
        else:
            part.finish()
            return


def _fill(origin: Origin, part: Part, patience: Patience, moved: Moved) -> None:
    """Fetch until all bytes are there, going on after hiccups."""
    pauses = Pauses(patience, f"{origin.source.name}: {part.target}")
    furthest = part.size
    while part.size < origin.remote.size:
        try:
            _pour(origin, part, patience, moved)
        except Hiccup as hiccup:
            if part.size > furthest:
                furthest = part.size
                pauses.reset()
            try:
                pauses.wait(hiccup)
            except Exhausted as error:
                raise Exhausted(f"{error}; {part.size} of {origin.remote.size} bytes are here and kept") from error


def _pour(origin: Origin, part: Part, patience: Patience, moved: Moved) -> None:
    """Make one request and write what comes."""
    asked = part.size
    answer = origin.source.read(origin.repository, origin.revision, origin.remote.path, asked)
    with closing(arriving(answer, patience.silence)) as stream:
        try:
            head = next(stream)
        except NoSuchRange:
            _start_over(part, moved)
            raise
        assert isinstance(head, Head)
        if wrong := _wrong_from_the_start(origin.remote, head):
            with suppress(Hiccup):
                wrong += f" (beginning {printable(repr(bytes(next(stream, b''))[:60]), 80)})"  # type: ignore[arg-type]
            raise WrongBytes(wrong)
        if head.start != asked:  # the range was ignored, or is another one
            _start_over(part, moved)
            if head.start != 0:
                raise Hiccup(f"asked for bytes from {asked} on, the answer begins at {head.start}")
        for piece in stream:
            assert isinstance(piece, bytes)
            if part.size + len(piece) > origin.remote.size:
                _start_over(part, moved)
                raise WrongBytes(f"expected {origin.remote.size} bytes, got more")
            part.append(piece)
            moved(len(piece))
    if part.size < origin.remote.size:
        raise Hiccup(f"the connection ended after {part.size} of {origin.remote.size} bytes")


def _start_over(part: Part, moved: Moved) -> None:
    moved(-part.size)
    part.restart()


def _wrong_from_the_start(remote: RemoteFile, head: Head) -> str:
    """Return what is wrong with an answer, as far as its head tells, or nothing."""
    if head.total == remote.size:
        return ""
    if head.total == 0:
        return f"the server sent an empty file, expected {remote.size} bytes"
    if "text/html" in head.kind.lower() and not remote.path.endswith((".html", ".htm")):
        return f"the server sent a web page, expected {remote.size} bytes; a login or a filter may be in between"
    return "" if head.total is None else f"expected {remote.size} bytes, the server announces {head.total}"


def _wrong_at_the_end(remote: RemoteFile, part: Part) -> str:
    """Return what is wrong with all bytes together, or nothing."""
    got = part.hash()
    if got == remote.identity or not remote.has_hash:
        return ""
    if remote.size == 0:
        return f"the hub lists 0 bytes, and yet {remote.hash_name} {remote.identity}"
    if remote.sha256 == NOTHING:
        return f"the hub's listing gives the hash of an empty file for {remote.size} bytes"
    return (
        f"expected {remote.hash_name} {remote.identity}, got {got} "
        f"({part.size} bytes, beginning {printable(repr(part.begins()), 60)})"
    )
