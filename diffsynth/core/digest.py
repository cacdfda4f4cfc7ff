"""The sha256 of a file, remembered by its size and modification time so that it is computed once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from diffsynth.core.files import replacing


def record_path() -> Path:
    """Return where digests are remembered: ``$DIFFSYNTH_CACHE``, or the user's cache folder.

    A user without a home has a folder for temporary files.
    """
    base = os.environ.get("DIFFSYNTH_CACHE")
    if base:
        return Path(base) / "sha256.json"
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        caches = Path(tempfile.gettempdir()) / f"cache-{getattr(os, 'getuid', int)()}"
    return caches / "diffsynth" / "sha256.json"


def sha256_of(path: Path, *, again: bool = False) -> str:
    """Return the sha256 of a file in hex; a file of the same size and time as before is not read again.

    Args:
        path: the file.
        again: read it in any case.

    Raises:
        OSError: the file cannot be read.
    """
    path = path.resolve()
    stamp = _stamp(path)
    known = _load().get(str(path))
    if not again and isinstance(known, dict) and known.get("stamp") == stamp and "sha256" in known:
        return str(known["sha256"])
    digest = digest_of(path)
    _remember(str(path), {"stamp": stamp, "sha256": digest})
    return digest


def remember_sha256(path: Path, digest: str) -> None:
    """Remember the sha256 of a file that was computed while it was written.

    Raises:
        OSError: the file is not there.
    """
    path = path.resolve()
    _remember(str(path), {"stamp": _stamp(path), "sha256": digest})


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def digest_of(path: Path) -> str:
    """Read a file and return its sha256 in hex; nothing is remembered."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def _load() -> dict[str, object]:
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads(record_path().read_text("utf-8"))
        if isinstance(record, dict):
            return record
    return {}


def _remember(key: str, entry: dict[str, object]) -> None:
    """Add one entry to the record; a record that cannot be written only costs time later."""
    with suppress(OSError), replacing(record_path()) as temporary:
        temporary.write_text(json.dumps(_load() | {key: entry}, indent=1), "utf-8")
