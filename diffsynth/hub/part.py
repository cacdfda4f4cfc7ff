"""The part of a file that has arrived: a temporary file beside the final name, held by one process at a time.

Whoever writes it holds a lock on it, so a second process waits and then finds the file finished; and a process that
is killed leaves its part unlocked, for the next one to go on with. Where files cannot be locked, every process has a
part of its own and begins anew.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from diffsynth.core.digest import remember_sha256
from diffsynth.hub.listing import RemoteFile

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Part:
    """What has arrived of one file; use it in a ``with`` block.

    Args:
        target: the final name.
        remote: what is to arrive.
        on_wait: called once if another process is at work on it.
    """

    def __init__(self, target: Path, remote: RemoteFile, on_wait: Callable[[], None] = lambda: None) -> None:
        self.target, self.remote = target, remote
        self.size = 0
        self._on_wait = on_wait
        self._stem = f".{target.name[:40]}.{zlib.crc32(target.name.encode()):08x}."
        self.path = target.with_name(f"{self._stem}{remote.identity[:16]}.part")
        self._fd = -1
        self._own = False  # whether the name is ours alone, because files cannot be locked

    def __enter__(self) -> Self:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
            self._take_stock()
        except BaseException:  # Ctrl-C too: a lock that stayed would hold up the next attempt for ever
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            if self._is_named() and (self.size == 0 or self._own):
                self.path.unlink()
        self._close()

    def append(self, piece: bytes) -> None:
        """Write more bytes.

        Raises:
            OSError: there is no room; what fits is kept.
        """
        view = memoryview(piece)
        while view:
            written = os.write(self._fd, view)
            self._hasher.update(view[:written])
            self.size += written
            view = view[written:]

    def restart(self) -> None:
        """Forget all bytes."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size, self._hasher = 0, self.remote.hasher()

    def hash(self) -> str:
        """Return the hash of all bytes."""
        return self._hasher.hexdigest()

    def begins(self) -> str:
        """Return the first bytes, for a message."""
        return os.pread(self._fd, 80, 0).decode("utf-8", "replace") if hasattr(os, "pread") else ""

    def finish(self) -> None:
        """Give the file its final name, and remove older parts of it."""
        os.fsync(self._fd)
        if self._own:
            self._close()  # some systems rename no open file
        self._name(self.path)
        self.size = 0

    def adopt(self, other: Path) -> None:
        """Give the final name to another file, which is known to be right, and forget what has arrived."""
        self.restart()
        self._name(other)

    def _name(self, ready: Path) -> None:
        os.replace(ready, self.target)
        if self.remote.sha256:
            remember_sha256(self.target, self.remote.sha256)
        with suppress(OSError):
            folder = os.open(self.target.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        self._sweep()

    def _close(self) -> None:
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def _open(self) -> None:
        while True:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
            if not self._locked(self._fd):
                self._own = True
                self._close()
                self.path.unlink()
                self.path = self.path.with_suffix(f".{secrets.token_hex(4)}.part")
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
                return
            if self._is_named():
                return
            self._close()  # it was finished or removed by the one we waited for

    def _take_stock(self) -> None:
        """Read what has arrived earlier; without a hash to check the whole by, it may be of another version."""
        self._hasher = self.remote.hasher()
        while piece := os.read(self._fd, CHUNK):
            self._hasher.update(piece)
            self.size += len(piece)
        if self.size > self.remote.size or not self.remote.has_hash:
            self.restart()

    def _locked(self, fd: int) -> bool:
        """Wait for the lock; return False if there are no locks here."""
        told = False
        while True:
            try:
                _lock(fd)
            except BlockingIOError:
                if not told:
                    self._on_wait()
                told = True
                time.sleep(0.1)
            except OSError as error:
                logger.debug("%s: no lock (%s)", self.path, error)
                return False
            else:
                return True

    def _is_named(self) -> bool:
        """Return whether the open file is still the one under the temporary name."""
        try:
            named, held = self.path.stat(), os.fstat(self._fd)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def _sweep(self) -> None:
        """Remove parts of the same file that nobody writes: of an older revision, or of a process that was killed."""
        pattern = glob.escape(str(self.target.with_name(self._stem)))
        for name in glob.glob(f"{pattern}*.part"):
            with suppress(OSError):
                fd = os.open(name, os.O_RDWR | NO_FOLLOW)
                try:
                    _lock(fd)
                    os.unlink(name)
                finally:
                    os.close(fd)


def _lock(fd: int) -> None:
    """Lock a file at once.

    Raises:
        BlockingIOError: another process has it.
        OSError: files cannot be locked here.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no locks on this system")
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
