"""Where a batch keeps its files: a folder, or an object store. Names are relative, with ``/``; no file is replaced.

Everything rests on one act, ``create``: a file appears under its name whole, and only where the name is free. So
however many processes draw one image, one file of it exists, and who comes late deletes what it made. That an image
is finished is said by ledgers alone: lines that are written after its file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from typing_extensions import Self, override

from diffsynth.batch.ledger import PATTERN, Finished, History, Ledger, Line
from diffsynth.batch.publish import link, publish, remove_leftovers
from diffsynth.core.locks import is_unused
from diffsynth.errors import InvalidRequest, printable


class Stamp(NamedTuple):
    """What is known of a file without reading it.

    Args:
        size: in bytes.
        mtime_ns: when it was last written; 0 where that is not known.
    """

    size: int
    mtime_ns: int


class Book(Protocol):
    """The ledger that one process writes."""

    def write(self, *lines: Line) -> None:
        """Add lines."""

    def flush(self) -> None:
        """Make sure that others can read them."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Storage(ABC):
    """The files of a batch.

    Args:
        owner: which process this is, for temporary names.
    """

    def __init__(self, owner: str = "batch") -> None:
        self.owner = owner

    @abstractmethod
    def create(self, content: bytes, names: Sequence[str]) -> list[bool]:
        """Write content under names that are free, and return for each whether it was; the content is safe then.

        Raises:
            OSError: it cannot be written.
        """

    @abstractmethod
    def link(self, source: str, names: Sequence[str]) -> list[bool]:
        """Give a file more names where they are free; as ``create``."""

    @abstractmethod
    def stamp(self, name: str) -> Stamp | None:
        """Return what is known of a file; None if there is none."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file to be read.

        Raises:
            InvalidRequest: it is no regular file.
            OSError: it cannot be read.
        """

    @abstractmethod
    def glob(self, pattern: str) -> list[str]:
        """Return the names that fit a pattern such as ``*.tar``, sorted; those of inner folders are left out."""

    @abstractmethod
    def where(self, name: str) -> str:
        """Return the full name, for messages."""

    @abstractmethod
    def ledger(self, name: str) -> Book:
        """Open this process's own ledger, and remove what killed processes left unfinished.

        Raises:
            InvalidRequest: another process writes it.
            OSError: it cannot be written.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Make the place, where that has to be done.

        Raises:
            OSError: it cannot be made.
        """

    def is_prepared(self) -> bool:
        """Whether this machine has the place that another may have prepared."""
        return True

    def tidy(self) -> bool:
        """Remove what killed processes left unfinished; return whether nothing unfinished is there now."""
        return True

    def history(self) -> History:
        """Read all ledgers."""
        history = History()
        for name in self.glob(PATTERN):
            with self.open(name) as file:
                history.read(file, self.where(name))
        return history

    def owned_by(self, owner: str) -> Self:
        """Return the same place as another process sees it."""
        other = copy(self)
        other.owner = owner
        return other

    def remove_empty(self, name: str) -> bool:
        """Remove a file that was begun but never written, where that may happen; return whether this was one."""
        return False

    def digest(self, name: str) -> str:
        """Read a file and return its sha256."""
        hasher = hashlib.sha256()
        with self.open(name) as file:
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
        return hasher.hexdigest()

    def finished(self, names: Sequence[str], digest: str) -> Finished:
        """Return what a ledger says of a file that was just created under some names."""
        stamp = self.stamp(names[0])
        assert stamp is not None
        return Finished(tuple(names), digest, stamp.size, stamp.mtime_ns)


class Folder(Storage):
    """A folder of a file system that has links, which several machines may share.

    Args:
        path: the folder, made when the ledger is opened.
        owner: which process this is.
    """

    def __init__(self, path: str | Path, owner: str = "batch") -> None:
        super().__init__(owner)
        self.path = Path(path)
        self._root = os.path.join(self.path, "")

    @override
    def create(self, content: bytes, names: Sequence[str]) -> list[bool]:
        return publish(content, [self.path / name for name in names], self.owner)

    @override
    def link(self, source: str, names: Sequence[str]) -> list[bool]:
        return link(self.path / source, [self.path / name for name in names], self.owner)

    @override
    def stamp(self, name: str) -> Stamp | None:
        path = self.where(name)
        try:
            status = os.stat(path)  # pathlib takes longer than the disk
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.islink(path):
                return None
            status = os.lstat(path)  # a link that leads nowhere has the name
        return Stamp(status.st_size, status.st_mtime_ns)

    @override
    def open(self, name: str) -> BinaryIO:
        path = self.path / name
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise InvalidRequest(f"{printable(path, 300)} is a folder or no regular file; move it away.")
        return path.open("rb")

    @override
    def glob(self, pattern: str) -> list[str]:
        return sorted(path.name for path in self.path.glob(pattern))

    @override
    def where(self, name: str) -> str:
        return f"{self._root}{name}"

    @override
    def ledger(self, name: str) -> Ledger:
        self.prepare()
        ledger = Ledger(self.path / name)
        self.tidy()
        return ledger

    @override
    def prepare(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    @override
    def is_prepared(self) -> bool:
        return self.path.is_dir()

    @override
    def tidy(self) -> bool:
        return remove_leftovers(self.path, lambda owner: owner == self.owner or is_unused(self.path / f"{owner}.jsonl"))

    @override
    def remove_empty(self, name: str) -> bool:
        path = self.path / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size:
            return False
        with suppress(FileNotFoundError):
            path.unlink()
        return True


def open_storage(place: str | Path | Storage, owner: str = "batch") -> Storage:
    """Return the storage of a place.

    Args:
        place: a folder, or an address such as ``s3://bucket/run``, whose library fsspec must know.
        owner: which process this is, for temporary names.

    Raises:
        InvalidRequest: it is neither, or fsspec, or the library of this kind of address, is not installed.
    """
    if isinstance(place, Storage):
        return place.owned_by(owner)
    if not isinstance(place, (str, Path)) or not str(place) or "\0" in str(place):
        raise InvalidRequest(
            f"{printable(repr(place))} is no folder for images; name one, or give the address of an object store."
        )
    kind, separator, rest = str(place).partition("://")
    if not separator or kind == "file":
        return Folder(rest if separator else place, owner)
    from diffsynth.batch.objects import ObjectStore  # fsspec comes with an extra

    return ObjectStore.at(str(place), owner)
