"""JSON from files that may be hostile: a safetensors header, an index of shards."""

from __future__ import annotations

import json
from pathlib import Path

from diffsynth.core.formats.content import DOWNLOAD_AGAIN
from diffsynth.errors import CorruptCheckpoint, printable

MAX_BYTES = 100 * 1024**2


def parse_object(data: bytes, path: Path, what: str) -> dict[str, object]:
    """Return a JSON object in which no name occurs twice.

    Args:
        data: UTF-8 text.
        path: the file, for messages.
        what: the part of the file, for messages: "header".

    Raises:
        CorruptCheckpoint: not JSON, not an object, a name twice, or nested too deeply.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise CorruptCheckpoint(path, f"its {what} names {printable(name, 120)} twice", DOWNLOAD_AGAIN)
            found[name] = value
        return found

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except CorruptCheckpoint:
        raise
    except RecursionError as error:
        raise CorruptCheckpoint(path, f"its {what} is nested too deeply", DOWNLOAD_AGAIN) from error
    except ValueError as error:
        raise CorruptCheckpoint(path, f"its {what} is not JSON ({printable(error)})", DOWNLOAD_AGAIN) from error
    if not isinstance(value, dict):
        raise CorruptCheckpoint(path, f"its {what} is no JSON object", DOWNLOAD_AGAIN)
    return value
