"""From a record to a tensor: a view of the mapped file, or a copy read into memory."""

from __future__ import annotations

import logging
import mmap

import torch
from torch import Tensor

from diffsynth.core.formats.content import FileStamp, file_status, open_regular, unreadable
from diffsynth.core.formats.table import TensorRecord, dense_stride
from diffsynth.errors import CorruptCheckpoint

logger = logging.getLogger(__name__)


class BytesReader:
    """Reads tensors of one file.

    The file is mapped when the first tensor is asked for, and stays mapped as long as a tensor that views it
    lives. The mapping is private: what is written into a tensor never reaches the file.

    Args:
        stamp: the file, as it was when its header was read.
        mapped: map the file; otherwise read each tensor into memory of its own.
    """

    def __init__(self, stamp: FileStamp, *, mapped: bool) -> None:
        self._stamp = stamp
        self._wanted = mapped
        self._map: mmap.mmap | None = None

    def read(self, record: TensorRecord) -> Tensor:
        """Return the tensor of a record.

        Raises:
            CorruptCheckpoint: the file is no longer the one whose header was read.
            NotACheckpoint: it can no longer be opened.
        """
        if record.nbytes == 0:
            return torch.empty(record.shape, dtype=record.dtype)
        mapped = self._mapping()
        if mapped is None:
            raw = self._copy(record)
        else:
            raw = torch.frombuffer(mapped, dtype=torch.uint8, count=record.nbytes, offset=record.start)
            if raw.data_ptr() % record.dtype.itemsize:
                raw = raw.clone()
        flat = raw.view(record.dtype)
        if record.stride == dense_stride(record.shape):
            return flat.view(record.shape)
        return flat.as_strided(record.shape, record.stride)

    def forget(self, record: TensorRecord) -> None:
        """Tell the system that the whole pages of a record are not needed; changes made to them are lost."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-record.start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (record.start + record.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def check_unchanged(self) -> None:
        """Raise if the file is not the one whose header was read.

        Raises:
            CorruptCheckpoint: its size, time of change or inode differ.
            NotACheckpoint: it is gone.
        """
        self._compare(FileStamp.of(self._stamp.path, file_status(self._stamp.path)))

    def _compare(self, now: FileStamp) -> None:
        if now != self._stamp:
            size = f" (it had {self._stamp.size} bytes and has {now.size})" if now.size != self._stamp.size else ""
            raise CorruptCheckpoint(self._stamp.path, f"changed while it was in use{size}", "Load it again.")

    def _mapping(self) -> mmap.mmap | None:
        if self._map is None and self._wanted:
            with open_regular(self._stamp.path) as (stream, now):
                self._compare(now)
                try:
                    self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
                except OSError as error:  # no memory mapping on this disk, or no room for one
                    logger.info("%s: cannot be mapped (%s), so it is read", self._stamp.path, error.strerror)
                    self._wanted = False
        return self._map

    def _copy(self, record: TensorRecord) -> Tensor:
        """Read the bytes of a record into fresh memory."""
        raw = torch.empty(record.nbytes, dtype=torch.uint8)
        try:
            with open_regular(self._stamp.path) as (stream, now):
                self._compare(now)
                stream.seek(record.start)
                count = stream.readinto(raw.numpy())  # type: ignore[attr-defined]
        except OSError as error:
            raise unreadable(self._stamp.path, error) from error
        if count != record.nbytes:
            raise CorruptCheckpoint(self._stamp.path, "changed while it was in use", "Load it again.")
        return raw
