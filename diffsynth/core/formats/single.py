"""One file, whatever its format, to the table of its tensors."""

from __future__ import annotations

from pathlib import Path

from diffsynth.core.formats.content import HEAD_BYTES, Content, open_regular, recognise, unreadable, unrecognised
from diffsynth.core.formats.json_text import MAX_BYTES
from diffsynth.core.formats.safetensors import read_safetensors
from diffsynth.core.formats.table import Table
from diffsynth.core.formats.torch_legacy import read_torch_legacy
from diffsynth.core.formats.torch_zip import read_torch_zip
from diffsynth.errors import CorruptCheckpoint, NotACheckpoint, printable


def read_file(path: Path) -> Table | bytes:
    """Read where the tensors of a file lie.

    Args:
        path: a file; its name does not matter.

    Returns:
        The table; or the text of a JSON file, which may be an index of shards.

    Raises:
        CheckpointError: the file is something else, broken, unsafe, or holds nothing we can use.
    """
    try:
        with open_regular(path) as (stream, stamp):
            head = stream.read(HEAD_BYTES)
            content = recognise(head, stamp)
            stream.seek(0)
            match content:
                case Content.SAFETENSORS:
                    return read_safetensors(stream, stamp)
                case Content.ZIP:
                    return read_torch_zip(stream, stamp)
                case Content.PICKLE:
                    return read_torch_legacy(stream, stamp)
                case Content.JSON:
                    return stream.read(MAX_BYTES)
                case Content.UNKNOWN:
                    try:  # pickles of the protocols 0 and 1 begin with no mark
                        return read_torch_legacy(stream, stamp)
                    except CorruptCheckpoint as error:
                        raise unrecognised(head, stamp) from error
    except OSError as error:
        raise unreadable(path, error) from error


def read_tensors(path: Path) -> Table:
    """Read where the tensors of a file lie; a file of JSON is refused.

    Raises:
        CheckpointError: as ``read_file``.
    """
    found = read_file(path)
    if isinstance(found, bytes):
        raise not_an_index(path, found)
    return found


def not_an_index(path: Path, text: bytes) -> NotACheckpoint:
    """Return the error for a JSON file that is not an index of shards."""
    start = printable(text[:200].decode("utf-8", "replace"))
    return NotACheckpoint(path, f"is a JSON text, not weights: {start}", "Was the download refused?")
