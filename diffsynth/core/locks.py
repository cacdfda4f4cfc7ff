"""Keep a file to one process at a time, where the system can do that."""

from __future__ import annotations

import logging
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
