"""Files of a batch in an object store, through fsspec: ``s3://bucket/run``, ``gs://…``, ``az://…``.

An object store has no links, and nothing can be added to a file. So an image with several names is written once for
each, and a ledger is a file per unit, ``ledger-NAME-….jsonl``, with the same lines as a ledger in a folder.

Images are made exactly once where the store itself refuses to write over a file (``mode="create"`` of fsspec): Amazon
S3 and stores that know its If-None-Match, Google Cloud Storage, Azure Blob Storage. With other file systems of fsspec
one looks first and writes then: safe for one process, or for several that never draw the same unit at one time, such
as shards. A folder, on a network disk too, needs none of this: give its path.
"""

from __future__ import annotations

import errno
import io
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from inspect import signature
from typing import Any, BinaryIO

from typing_extensions import Self, override

from diffsynth.batch.ledger import PATTERN, Finished, History, Line
from diffsynth.batch.storage import Stamp, Storage
from diffsynth.errors import InvalidRequest, printable

TOGETHER = 256  # ledgers that are asked for at one time


class ObjectStore(Storage):
    """Files below an address.

    Args:
        files: the fsspec file system.
        root: the folder in it.
        owner: which process this is.
    """

    def __init__(self, files: Any, root: str, owner: str = "batch") -> None:
        super().__init__(owner)
        self.files = files
        self.root = root.rstrip("/")
        self._sizes: dict[str, int] | None = None

    @classmethod
    def at(cls, address: str, owner: str = "batch") -> Self:
        """Open an address such as ``s3://bucket/run``.

        Raises:
            InvalidRequest: fsspec, or the library of this kind of address, is not installed.
        """
        try:
            import fsspec

            files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise InvalidRequest(
                f"{printable(address, 300)} cannot be used: {printable(error, 300)}. Object stores need "
                'pip install "diffsynth[distributed]" and the library of this store, such as s3fs, gcsfs or adlfs.'
            ) from error
        return cls(files, root, owner)

    @override
    def owned_by(self, owner: str) -> Self:
        return type(self)(self.files, self.root, owner)

    @override
    def prepare(self) -> None:
        """Nothing to be done."""

    @override
    def create(self, content: bytes, names: Sequence[str]) -> list[bool]:
        return [self._create(name, content) for name in names]

    def _create(self, name: str, content: bytes) -> bool:
        try:
            with self._failing(name):
                self._write(self.where(name), content)
        except FileExistsError:
            return False
        except OSError:
            if not self._is_there(name):
                raise
            return False  # it was refused in other words, or written though the answer was lost
        if self._sizes is not None:
            self._sizes[name] = len(content)
        return True

    def _write(self, path: str, content: bytes) -> None:
        from fsspec.spec import AbstractFileSystem

        if getattr(self.files.pipe_file, "__func__", None) is not AbstractFileSystem.pipe_file:
            if "mode" not in signature(self.files.pipe_file).parameters and self.files.exists(path):
                raise FileExistsError  # it may not know "create"
            self.files.pipe_file(path, content, mode="create")
            return
        self.files.makedirs(self.files._parent(path), exist_ok=True)
        with self.files.open(path, "xb") as file:  # the general pipe_file would look first and write then
            file.write(content)

    @override
    def link(self, source: str, names: Sequence[str]) -> list[bool]:
        if not names:
            return []
        with self.open(source) as file:
            return self.create(file.read(), names)

    @override
    def stamp(self, name: str) -> Stamp | None:
        size = self._listing().get(name)
        return None if size is None else Stamp(size, 0)

    @override
    def open(self, name: str) -> BinaryIO:
        with self._failing(name):
            return io.BytesIO(self.files.cat_file(self.where(name)))

    @override
    def glob(self, pattern: str) -> list[str]:
        return sorted(name for name in self._listing() if "/" not in name and fnmatch(name, pattern))

    @override
    def where(self, name: str) -> str:
        return f"{self.root}/{name}"

    @override
    def history(self) -> History:
        history = History()
        names = self.glob(PATTERN)
        for start in range(0, len(names), TOGETHER):
            paths = [self.where(name) for name in names[start : start + TOGETHER]]
            with self._failing(names[start]):
                found = self.files.cat_ranges(paths, None, None)  # at one time, where the library can do that
            for name, content in zip(names[start:], found, strict=False):
                with self._failing(name):
                    if isinstance(content, BaseException):
                        raise content
                history.read(io.BytesIO(content), self.where(name))
        return history

    @override
    def finished(self, names: Sequence[str], digest: str) -> Finished:
        known = (self._sizes or {}).get(names[0])  # unless another process was first
        return Finished(tuple(names), digest, self._size_now(names[0]) if known is None else known, 0)

    def _size_now(self, name: str) -> int:
        """Ask the store for the size of one file, which a listing of all may not have."""
        self.files.invalidate_cache()
        with self._failing(name):
            return int(self.files.info(self.where(name))["size"])

    def _is_there(self, name: str) -> bool:
        with suppress(OSError):
            return self._size_now(name) >= 0
        return False

    @override
    def ledger(self, name: str) -> LedgerInParts:
        return LedgerInParts(name.removesuffix(".jsonl"), self._create)

    def _listing(self) -> dict[str, int]:
        """Return sizes by name; the store is asked once, and what this process creates is added."""
        if self._sizes is None:
            self.files.invalidate_cache()
            with self._failing(""):
                found = self.files.find(self.root, detail=True)
            start = len(self.files._strip_protocol(self.root)) + 1
            self._sizes = {path[start:]: int(facts["size"]) for path, facts in found.items()}
        return self._sizes

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Give every error of the store a reason and the file's name, as a disk's errors have them."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            reason = error.strerror or printable(error, 300) or type(error).__name__
            code = errno.ENOENT if isinstance(error, FileNotFoundError) else error.errno or errno.EIO
            raise OSError(code, reason, self.where(name)) from error
        except Exception as error:  # libraries of stores have errors of their own: no credentials, no such account
            raise OSError(errno.EIO, f"{type(error).__name__}: {printable(error, 300)}", self.where(name)) from error


class LedgerInParts:
    """A ledger of which each ``flush`` makes a file; use it in a ``with`` block."""

    def __init__(self, stem: str, create: Callable[[str, bytes], bool]) -> None:
        self._stem = stem
        self._create = create
        self._lines: list[Line] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def write(self, *lines: Line) -> None:
        """Keep lines until they are flushed; an image whose line is lost is found by its file."""
        self._lines += lines

    def flush(self) -> None:
        """Write what was kept.

        Raises:
            OSError: it cannot be written.
        """
        if not any("key" in line for line in self._lines):
            return  # a run of which nothing can be told yet
        content = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self._lines).encode()
        while not self._create(f"{self._stem}-{secrets.token_hex(8)}.jsonl", content):
            pass
        self._lines.clear()
