"""Where the tensors of a file lie: the one table that every format is reduced to.

A record names a dtype, a shape, strides in elements, and a range of bytes in a file. Nothing of a tensor has
to be read to make one, and a record that exists has been checked against the storage it lies in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffsynth.core.formats.content import DOWNLOAD_AGAIN, FileStamp
from diffsynth.errors import CorruptCheckpoint, UnsupportedCheckpoint, printable

MAX_RANK = 64
LARGEST = 2**63 - 1  # sizes, strides and offsets are signed 64-bit numbers in torch


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of bytes in a file."""

    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where one tensor lies: ``nbytes`` bytes from byte ``start`` of ``file``, strides in elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    file: Path
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Table:
    """All tensors of one file.

    Attributes:
        stamp: the file, and what identified it when it was read.
        format: "safetensors", "torch zip" or "torch legacy".
        records: key → where the tensor lies.
        metadata: the text that a safetensors file carries beside its tensors.
        wrapper: the names of the dicts the tensors were found under, joined by dots; or empty.
    """

    stamp: FileStamp
    format: str
    records: Mapping[str, TensorRecord]
    metadata: Mapping[str, str] = field(default_factory=dict)
    wrapper: str = ""


def dense_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor of this shape."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


def are_sizes(values: object) -> bool:
    """Tell whether ``values`` is a tuple or list of at most 64 whole numbers from 0 to 2^63 - 1."""
    return (
        isinstance(values, (tuple, list))
        and len(values) <= MAX_RANK
        and all(type(value) is int and 0 <= value <= LARGEST for value in values)
    )


def locate_view(
    path: Path,
    key: str,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    storage: Extent,
    offset: int,
) -> TensorRecord:
    """Return the record of a view of a storage, after checking that all of it lies inside.

    Args:
        path: the file.
        key: the tensor's name, for messages.
        dtype: what the bytes mean.
        shape: sizes, none negative.
        stride: elements between neighbours, one per axis, none negative.
        storage: the bytes of the file that the tensor is a view of.
        offset: the first element, counted in elements from the start of the storage.

    Raises:
        CorruptCheckpoint: the view reaches beyond its storage.
        UnsupportedCheckpoint: elements of the view share memory with one another.
    """
    count = math.prod(shape)
    if count == 0:
        return TensorRecord(dtype, shape, dense_stride(shape), path, storage.start, 0)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    end = (offset + span) * dtype.itemsize
    if end > storage.nbytes:
        raise CorruptCheckpoint(
            path,
            f"the tensor {printable(key, 120)} needs {end} bytes of a storage that has {storage.nbytes}",
            DOWNLOAD_AGAIN,
        )
    if count > span or any(size > 1 and step == 0 for size, step in zip(shape, stride, strict=True)):
        raise UnsupportedCheckpoint(
            path,
            f"the tensor {printable(key, 120)} was saved as an expanded view, whose elements share memory",
            "Save it again after `.contiguous()`.",
        )
    dense = dense_stride(shape)
    if all(size == 1 or step == want for size, step, want in zip(shape, stride, dense, strict=True)):
        stride = dense
    start = storage.start + offset * dtype.itemsize
    return TensorRecord(dtype, shape, stride, path, start, span * dtype.itemsize)
