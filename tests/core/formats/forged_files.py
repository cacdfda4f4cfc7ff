"""Checkpoint files made byte by byte, so that tests can make them wrong."""

from __future__ import annotations

import collections
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

MAGIC = 0x1950A86A20F9469CFC6C
TEN_FLOATS = struct.pack("<10f", *range(10))


class Stored:
    """A storage that a forged pickle names."""

    def __init__(self, key: str = "0", count: int = 10, kind: Any = torch.FloatStorage, location: str = "cpu") -> None:
        self.identity = ("storage", kind, key, location, count)


class View:
    """A tensor in a forged pickle; the defaults are ten floats."""

    def __init__(
        self, stored: Stored | None = None, offset: Any = 0, shape: Any = (10,), stride: Any = (1,), *rest: Any
    ) -> None:
        self.arguments = (stored or Stored(), offset, shape, stride, False, collections.OrderedDict(), *rest)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Call:
    """A call of any function in a forged pickle."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, Stored) else None


def pickled(value: object, protocol: int = 2) -> bytes:
    """Pickle a value, storages by their identity."""
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def zip_file(
    path: Path,
    value: object,
    storages: dict[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    more: dict[str, bytes] | None = None,
) -> Path:
    """Write a torch zip file; ``value`` may be the bytes of a finished pickle."""
    storages = {"0": TEN_FLOATS} if storages is None else storages
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", value if isinstance(value, bytes) else pickled(value))
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in (more or {}).items():
            archive.writestr(name, data)
    return path


def legacy_file(
    path: Path,
    value: object,
    storages: dict[str, bytes] | None = None,
    *,
    head: bytes = pickled(MAGIC),
    protocol: int = 1001,
    little_endian: bool = True,
    keys: bytes | None = None,
    tail: bytes = b"",
) -> Path:
    """Write a legacy torch file of float storages; ``value`` may be the bytes of a finished pickle."""
    storages = {"0": TEN_FLOATS} if storages is None else storages
    data = head + pickled(protocol) + pickled({"protocol_version": 1001, "little_endian": little_endian})
    data += value if isinstance(value, bytes) else pickled(value)
    data += pickled(list(storages)) if keys is None else keys
    for raw in storages.values():
        data += struct.pack("<q", len(raw) // 4) + raw
    path.write_bytes(data + tail)
    return path


def safetensors_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file; ``header`` may be finished JSON, ``length`` may lie about it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: tuple[int, ...], dtype: str = "F32") -> dict[str, object]:
    """Return the entry of one tensor in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
