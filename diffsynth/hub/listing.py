"""What a hub says that a repository holds, and which of these names may be written to disk."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

from diffsynth.errors import DownloadError, InvalidRequest, printable

NOTHING = hashlib.sha256(b"").hexdigest()
ODD = frozenset('\\:*?"<>|')  # characters with a meaning in the paths of some system
RESERVED = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[. ]", re.IGNORECASE
)  # what Windows reads as another name
RECORD = ".diffsynth.json"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Hasher(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Return the hash of what was taken in."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, as a hub lists it.

    Attributes:
        path: its name in the repository.
        size: bytes.
        sha256: of its content; empty if the hub does not tell.
        git_id: its id as a git blob (a sha1), for files that the hub tells no sha256 of.

    Raises:
        ValueError: one of them is none.
    """

    path: str
    size: int
    sha256: str = ""
    git_id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", _hexadecimal(self.sha256, 64))
        object.__setattr__(self, "git_id", _hexadecimal(self.git_id, 40))
        if not isinstance(self.path, str) or type(self.size) is not int or not 0 <= self.size < 1 << 60:
            raise ValueError(f"listed are {printable(self.path)} and a size of {printable(self.size)}")

    @property
    def hash_name(self) -> str:
        """Which of the hashes is compared."""
        return "sha256" if self.sha256 else "git id" if self.git_id else "size"

    @property
    def has_hash(self) -> bool:
        """Whether a hub tells any hash of its content."""
        return bool(self.sha256 or self.git_id)

    @property
    def identity(self) -> str:
        """What its content is known by."""
        return self.sha256 or self.git_id or f"size{self.size}"

    def hasher(self) -> Hasher:
        """Return a fresh computation of the hash that ``identity`` is compared with."""
        if self.git_id and not self.sha256:
            return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        return hashlib.sha256()


@dataclass(frozen=True)
class Listing:
    """The files of one repository on one hub.

    Raises:
        ValueError: a file is listed twice.
    """

    files: tuple[RemoteFile, ...]
    by_path: dict[str, RemoteFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_path", {file.path: file for file in self.files})
        if len(self.by_path) < len(self.files):
            raise ValueError("a file is listed twice")

    def select(self, pattern: str) -> list[RemoteFile]:
        """Return the files that a name or a pattern such as ``vae/*.safetensors`` means; ``*`` goes across folders."""
        if pattern in self.by_path:
            return [self.by_path[pattern]]
        return [file for file in self.files if fnmatchcase(file.path, pattern)]


def safe_parts(name: str, repository: str) -> tuple[str, ...]:
    """Return the parts of a file's name in a repository.

    Raises:
        DownloadError: the name leads out of the repository's folder, or could on some system.
    """
    parts = tuple(name.split("/"))
    if (
        "" in parts
        or any(not part.isprintable() or set(part) & ODD or RESERVED.fullmatch(part) for part in parts)
        or len(name) > 1000
        or len(parts) > 40
        or parts[-1] == RECORD
        or any(len(part.encode()) > 255 for part in parts)
    ):
        raise DownloadError(
            f"{repository} lists a file called {printable(name, 200)!r}, which is no plain name inside its folder. "
            "Nothing of it was written; name the files you want with files= (--files)."
        )
    return parts


def _hexadecimal(text: str | None, length: int) -> str:
    """Return a hash in small letters, or nothing if there is none; it becomes part of file names."""
    if not text:
        return ""
    if not isinstance(text, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", text.lower()):
        raise ValueError(f"{printable(text)} is no hash of {length} digits")
    return text.lower()


def checked_repository(name: str) -> str:
    """Return a repository's name.

    Raises:
        InvalidRequest: it is not of the form ``owner/name``.
    """
    if not REPOSITORY.fullmatch(name) or ".." in name:
        raise InvalidRequest(f"a repository is called owner/name, not {printable(name)!r}.")
    return name


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name, or its last part, fits one of the patterns."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name.rsplit("/", 1)[-1], pattern) for pattern in patterns)


def total(files: Iterable[RemoteFile]) -> int:
    """Return the bytes of several files."""
    return sum(file.size for file in files)
