"""JSON from files that may be hostile: a safetensors header, an index of shards."""

from __future__ import annotations

import json
from pathlib import Path

from diffsynth.core.formats.content import DOWNLOAD_AGAIN
from diffsynth.errors import CorruptCheckpoint, printable

MAX_BYTES = 32 * 1024**2  # the header of 20 000 tensors takes about 3 MB
MAX_VALUES = 1_000_000  # and has about 200 000 brackets and commas; each value costs about 200 bytes of memory


def parse_object(data: bytes, path: Path, what: str) -> dict[str, object]:
    """Return a JSON object in which no name occurs twice.

    Args:
        data: UTF-8 text.
        path: the file, for messages.
        what: the part of the file, for messages: "header".

    Raises:
        CorruptCheckpoint: not JSON, not an object, a name twice, nested too deeply, or of too many values.
    """
    if sum(map(data.count, (b"{", b"[", b","))) > MAX_VALUES:
        raise CorruptCheckpoint(path, f"its {what} holds more than {MAX_VALUES} values", DOWNLOAD_AGAIN)

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
