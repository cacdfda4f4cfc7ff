"""Keep a file to one process at a time, where the system can do that."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import IO, Any

logger = logging.getLogger(__name__)

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows, which has no such locks
    fcntl = None


def lock(file: IO[Any]) -> bool:
    """Lock an open file and return whether that worked; the system takes the lock back when the process ends.

    Where there are no locks, as on some network disks, nobody is kept out.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("%s cannot be locked (%s); let no second process use it", file.name, error.strerror)
    return True


def is_unused(path: Path) -> bool:
    """Whether a file is there that no process has locked; False where that cannot be known.

    For a moment the file is locked by this, so that who wants to lock it should try again.
    """
    if fcntl is None:
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
