"""What is finished: one line of JSON per image, so that a run that was stopped anywhere goes on.

A ledger only grows. Its lines, told apart by a name that only one kind has:

- ``{"run": {...}}``: a run began; what it was, with versions.
- ``{"key": …, "files": […], "sha256": …, …}``: an image is on the disk, under all of these names.
- ``{"key": …, "failed": reason, …}``: it could not be drawn.

A folder may have several ledgers, ``ledger.jsonl`` and ``ledger-NAME.jsonl``, one for each process that draws into it.
Each process reads all and writes its own.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, TypeAlias

from typing_extensions import Self

from diffsynth.core.files import write_all
from diffsynth.core.locks import lock
from diffsynth.errors import InvalidRequest, printable

logger = logging.getLogger(__name__)

Line: TypeAlias = Mapping[str, Any]

PATTERN = "ledger*.jsonl"
# How ``Ledger`` begins the line of an image with one plain name; read without the rest, which is long.
FINISHED = re.compile(
    rb'\{"key":"([0-9a-f]+)","files":\["([ !#-\[\]-~]+)"\],'
    rb'"sha256":"([0-9a-f]+)","size":(\d+),"mtime_ns":(\d+)(?:,"seed":\d+,"rows":(\d+))?[,}].*\}\n'
)
SET_ASIDE = 3  # failures of an image after which it is not tried again unasked


class Finished(NamedTuple):
    """What a ledger says of an image.

    Args:
        files: its names, relative to the folder; in an archive, that of the archive.
        sha256: of the file.
        size: of the file in bytes.
        mtime_ns: when the file was last written.
        rows: images that were drawn together with it, itself included; 1 also where that is not known.
    """

    files: tuple[str, ...]
    sha256: str
    size: int
    mtime_ns: int
    rows: int = 1


class History:
    """What ledgers say, taken together."""

    def __init__(self) -> None:
        self.finished: dict[str, list[Finished]] = {}
        self.failures: dict[str, list[str]] = {}

    def read(self, file: BinaryIO, where: object) -> None:
        """Take note of an open ledger's lines, in the order in which they were written.

        Args:
            file: the ledger; a last line that is not finished is left out.
            where: its name, for messages.
        """
        for number, line in enumerate(file, 1):
            if found := FINISHED.fullmatch(line):
                key, name, digest = found[1].decode(), found[2].decode(), found[3].decode()
                self._finish(key, Finished((name,), digest, int(found[4]), int(found[5]), int(found[6] or 1)))
            elif line.endswith(b"\n") and not self._add(_parsed(line)):
                _left_out(where, number)

    def _add(self, line: Line | None) -> bool:
        """Take note of a line, and return whether it is one."""
        try:
            if line is None:
                return False
            if "sha256" in line:
                size, rows = line["size"], line.get("rows", 1)
                self._finish(line["key"], Finished(tuple(line["files"]), line["sha256"], size, line["mtime_ns"], rows))
            elif "failed" in line:
                self.failures.setdefault(line["key"], []).append(line["failed"])
        except (LookupError, TypeError):
            return False
        return True

    def _finish(self, key: str, found: Finished) -> None:
        self.finished.setdefault(key, []).append(found)
        self.failures.pop(key, None)

    def set_aside(self, key: str) -> bool:
        """Whether an image failed so often that it is not tried again unasked."""
        return len(self.failures.get(key, ())) >= SET_ASIDE


class Ledger:
    """The ledger that one process writes, open and locked; use it in a ``with`` block.

    Args:
        path: the file, made if need be. A last line that is not whole, as a crash leaves it, is cut off.

    Raises:
        InvalidRequest: another process writes it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("ab")
        if not any(_locked(self._file, wait) for wait in (0, 0.05, 0.15)):  # for another may have had a look
            self._file.close()
            raise InvalidRequest(
                f"another process draws with {printable(path, 300)}. Wait for it, or name another ledger for this one "
                "(ledger=, --ledger), which may share the folder."
            )
        if cut := _torn(path):
            logger.warning("%s: its last line was not finished and is cut off", path)
            self._file.truncate(path.stat().st_size - cut)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def flush(self) -> None:
        """Nothing waits: what was written is on the disk."""

    def write(self, *lines: Line) -> None:
        """Add lines and wait until they are on the disk; if that fails, none of them is there.

        Raises:
            OSError: they cannot be written.
        """
        text = "".join(map(line_of, lines))
        before = os.fstat(self._file.fileno()).st_size
        try:
            write_all(self._file.fileno(), text.encode("utf-8", "surrogatepass"))
            os.fsync(self._file.fileno())
        except BaseException as error:
            with suppress(OSError):  # else the next run cuts off what is not whole
                self._file.truncate(before)
            if isinstance(error, OSError) and error.errno:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            raise


def _locked(file: IO[bytes], wait: float) -> bool:
    time.sleep(wait)
    return lock(file)


def line_of(content: Line) -> str:
    """Return a line of a ledger."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a ledger that are whole; another process may be writing it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            content = _parsed(line)
            if content is not None:
                yield content
            elif line.endswith(b"\n"):
                _left_out(path, number)


def _left_out(where: object, number: int) -> None:
    logger.warning("%s, line %d is damaged and left out", where, number)


def _torn(path: Path) -> int:
    """Return the bytes at the end of a ledger that are no whole line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        reach = 1 << 16
        while True:
            file.seek(max(size - reach, 0))
            tail = file.read()
            lines = tail.splitlines(keepends=True)
            if reach >= size or len(lines) > 1:
                break
            reach *= 4
    return len(lines[-1]) if lines and _parsed(lines[-1]) is None else 0


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and ("key" in content or "run" in content) else None
