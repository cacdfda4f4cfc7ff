"""Safetensors files: 8 bytes with the header's length, a JSON header, then the tensors one behind the other.

Format: https://github.com/huggingface/safetensors. The header maps each name to a dtype, a shape and the first
and last byte, counted from the end of the header. Tensors fill the rest of the file without holes or overlaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from diffsynth.core.formats.content import DOWNLOAD_AGAIN, FileStamp
from diffsynth.core.formats.json_text import MAX_BYTES, parse_object
from diffsynth.core.formats.table import Table, TensorRecord, are_sizes, dense_stride
from diffsynth.errors import CorruptCheckpoint, UnsupportedCheckpoint, printable
from diffsynth.types import Header

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(stream: BinaryIO, stamp: FileStamp) -> Table:
    """Read the header of a safetensors file.

    Args:
        stream: the open file, at its start.
        stamp: which file it is.

    Raises:
        CorruptCheckpoint: cut, too long, or a header that contradicts itself.
        UnsupportedCheckpoint: no tensors, or of a dtype torch does not have.
    """
    path = stamp.path
    length = int.from_bytes(stream.read(8), "little")
    if length > min(stamp.size - 8, MAX_BYTES):
        limit = f"; at most {MAX_BYTES} are read" if length > MAX_BYTES else ""
        problem = f"announces a header of {length} bytes and has {stamp.size}{limit}"
        raise CorruptCheckpoint(path, problem, DOWNLOAD_AGAIN)
    header = parse_object(stream.read(length), path, "header")
    metadata = _read_metadata(header.pop("__metadata__", {}), path)
    records = {key: _read_entry(key, entry, path, 8 + length) for key, entry in header.items()}
    _check_layout(records, stamp, 8 + length)
    if not records:
        raise UnsupportedCheckpoint(path, "holds no tensors", "Give the file that holds the weights.")
    return Table(stamp, "safetensors", records, metadata)


def _read_metadata(value: object, path: Path) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise CorruptCheckpoint(path, "its __metadata__ is not a mapping of text to text", DOWNLOAD_AGAIN)


def _read_entry(key: str, entry: object, path: Path, origin: int) -> TensorRecord:
    """Return the record for one entry of the header; ``origin`` is where the tensors begin."""
    name = printable(key, 120)
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if are_sizes(
            shape
        ) and are_sizes([begin, end]):
            pass
        case _:
            raise CorruptCheckpoint(path, f"its header describes {name} in a wrong way", DOWNLOAD_AGAIN)
    if dtype not in DTYPES:
        problem = f"the tensor {name} has the dtype {printable(dtype)}"
        raise UnsupportedCheckpoint(path, problem, f"We read {', '.join(DTYPES)}.")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        problem = f"the tensor {name} has {end - begin} bytes, its shape and dtype need {needed}"
        raise CorruptCheckpoint(path, problem, DOWNLOAD_AGAIN)
    return TensorRecord(DTYPES[dtype], tuple(shape), dense_stride(tuple(shape)), path, origin + begin, needed)


def _check_layout(records: dict[str, TensorRecord], stamp: FileStamp, origin: int) -> None:
    """Check that the tensors fill the file from ``origin`` to its end, without holes or overlaps."""
    position = origin
    for key, record in sorted(records.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if record.start != position:
            where = "leaves a hole before" if record.start > position else "overlaps what lies before"
            problem = f"its header {where} the tensor {printable(key, 120)} (byte {record.start}, expected {position})"
            raise CorruptCheckpoint(stamp.path, problem, DOWNLOAD_AGAIN)
        position += record.nbytes
    if position != stamp.size:
        part = f" ({100 * stamp.size / position:.1f} % present)" if stamp.size < position else ""
        raise CorruptCheckpoint(stamp.path, f"has {stamp.size} bytes, expected {position}{part}", DOWNLOAD_AGAIN)


def write_safetensors(
    path: Path, header: Header, tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write a file whose tensors come one at a time, in any order, so that only one of them need be in memory.

    Args:
        path: the file.
        header: key → shape and dtype of what will come, each a dtype of ``DTYPES``.
        tensors: each key of the header once, with its tensor.
        metadata: texts for the file's header.

    Raises:
        OSError: the file cannot be written.
    """
    begins: dict[str, int] = {}
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for key, spec in sorted(header.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):  # so all are aligned
        begins[key], end = position, position + spec.nbytes
        entries[key] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        origin = file.tell()
        for key, tensor in tensors:
            assert (tuple(tensor.shape), tensor.dtype) == (header[key].shape, header[key].dtype), key
            file.seek(origin + begins.pop(key))
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        assert not begins, f"never came: {sorted(begins)}"
