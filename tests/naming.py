"""Names of parametrised cases."""

from __future__ import annotations

import re


def as_written(value: object) -> str:
    """Name a case the same in every process that collects it: without addresses in memory."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", str(value))
