"""Checkpoint files: the header at once, tensors on demand.

Whatever the format, a file is first reduced to a table of where its tensors lie (``formats``), and tensors are
then views of the mapped file. Nothing in a file is ever executed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from diffsynth.core.formats.content import file_status
from diffsynth.core.formats.disk import on_network_disk
from diffsynth.core.formats.reader import BytesReader
from diffsynth.core.formats.shards import check_index, find_in_folder, merge, read_index, require_all_shards
from diffsynth.core.formats.single import read_file, read_tensors
from diffsynth.core.formats.table import Table
from diffsynth.errors import CorruptCheckpoint, NotACheckpoint, printable
from diffsynth.types import Header, TensorSpec

logger = logging.getLogger(__name__)

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one or more files, by name; ``open_checkpoint`` makes it.

    Looking up a key reads that tensor: a view of a private mapping, so that writing into it does not change the
    file. Two checkpoints are equal only if they are the same object.

    Attributes:
        path: what the user named: a file, a folder, or the first of several files.
        files: the files that hold tensors.
        stamps: what they were when they were opened: size, time of change, inode.
        header: key → shape and dtype; read-only.
        metadata: text that safetensors files carry beside their tensors.
        format: "safetensors", "torch zip" or "torch legacy"; with ", N shards" for several files.
        wrapper: the names of the dicts the tensors were found under, joined by dots; or empty.
        nbytes: bytes of all files.
        mapped: whether tensors are views of mapped files, else copies.
    """

    def __init__(self, path: Path, tables: Sequence[Table], *, mmap: bool = True) -> None:
        self.path = path
        self.mapped = mmap
        self.stamps = tuple(table.stamp for table in tables)
        self.files = tuple(stamp.path for stamp in self.stamps)
        formats = " and ".join(sorted({table.format for table in tables}))
        self.format = formats if len(tables) == 1 else f"{formats}, {len(tables)} shards"
        self.wrapper = ", ".join(sorted({table.wrapper for table in tables} - {""}))
        self.nbytes = sum(table.stamp.size for table in tables)
        self.metadata: Mapping[str, str] = MappingProxyType(
            {name: text for table in tables for name, text in table.metadata.items()}
        )
        self._readers = {table.stamp.path: BytesReader(table.stamp, mapped=mmap) for table in tables}
        self._records, doubles = merge(tables)
        self.header: Header = MappingProxyType(
            {key: TensorSpec(record.shape, record.dtype) for key, record in self._records.items()}
        )
        for key, kept, double in doubles:
            same_kind = (kept.shape, kept.dtype) == (double.shape, double.dtype)
            if not same_kind or not same_bits(*(self._readers[each.file].read(each) for each in (kept, double))):
                problem = (
                    f"{printable(key, 120)} lies in {kept.file.name} and, with another content, in {double.file.name}"
                )
                raise CorruptCheckpoint(path, problem, "Name only files that belong together.")

    def __getitem__(self, key: str) -> Tensor:
        record = self._records[key]
        return self._readers[record.file].read(record)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Checkpoint({printable(self.path, 200)}, {self.format}, {len(self)} tensors)"

    def forget(self, key: str) -> None:
        """Give back the memory of a tensor's pages; if it is looked at again, it is read from the file again.

        What was written into the tensor is lost. Does nothing if the file is not mapped.

        Raises:
            KeyError: there is no such tensor.
        """
        record = self._records[key]
        self._readers[record.file].forget(record)

    def check_unchanged(self) -> None:
        """Raise if a file is no longer the one that was opened.

        A mapped file that was written to has changed tensors that were handed out before; one that was cut
        stops the program when they are touched. So look before they are used, and again afterwards.

        Raises:
            CorruptCheckpoint: size, time of change or inode of a file differ.
            NotACheckpoint: a file is gone.
        """
        for reader in self._readers.values():
            reader.check_unchanged()

    def nonfinite(self) -> dict[str, int]:
        """Count the values in the files that are NaN or infinite, for each tensor that has any.

        Reads every tensor, one at a time, through a mapping of its own: what was written into tensors that were
        handed out is neither seen nor lost.

        Raises:
            CheckpointError: a file was changed, or is gone.
        """
        counts: dict[str, int] = {}
        readers = {stamp.path: BytesReader(stamp, mapped=self.mapped) for stamp in self.stamps}
        for key, record in self._records.items():
            if not (record.dtype.is_floating_point or record.dtype.is_complex):
                continue
            reader = readers[record.file]
            values = reader.read(record)
            values = values.float() if record.dtype.itemsize == 1 else values
            count = values.numel() - int(torch.isfinite(values).sum())
            if count:
                counts[key] = count
            del values
            reader.forget(record)
        return counts


def open_checkpoint(
    path: str | PathLike[str] | Sequence[str | PathLike[str]], *, mmap: bool | None = None
) -> Checkpoint:
    """Open a checkpoint and read its header, but no tensor.

    Args:
        path: a safetensors file, a file of ``torch.save``, an index of shards, a folder that holds one of these,
            or several files whose tensors belong together. What a file is, its content decides, not its name.
            In the place of a ``.bin``, ``.pt``, ``.pth`` or ``.ckpt`` that is not there, the ``.safetensors`` of that
            name beside it is taken.
        mmap: map the files into memory, or read each tensor when it is asked for; None maps them unless they lie on
            a network disk, where a mapped file is lost with the connection.

    Raises:
        CheckpointError: one of its subclasses says what is wrong: ``NotACheckpoint``, ``CorruptCheckpoint``,
            ``UnsafeCheckpoint``, ``UnsupportedCheckpoint``, ``MissingShard``.
        ValueError: an empty list of paths.
    """
    paths = [path] if isinstance(path, (str, PathLike)) else path
    if not paths:
        raise ValueError("open_checkpoint needs at least one path")
    found = [_resolve(each) for each in paths]
    named, tables = found[0].path, [table for each in found for table in each.tables]
    require_all_shards([table.stamp.path for each in found if not each.listed for table in each.tables])
    if mmap is None:
        mmap = not any(on_network_disk(table.stamp.path) for table in tables)
    checkpoint = Checkpoint(named, tables, mmap=mmap)
    logger.debug("opened %r, found under %r", checkpoint, checkpoint.wrapper)
    return checkpoint


@dataclass(frozen=True)
class _Resolved:
    """A path, the tables of all files that it stands for, and whether an index lists these files."""

    path: Path
    tables: list[Table]
    listed: bool = False


def _resolve(path: str | PathLike[str]) -> _Resolved:
    """Read the tables of all files that a path stands for."""
    text = os.fspath(path)
    if not text:
        raise NotACheckpoint("", "an empty path was given", "Give the path of a weight file or its folder.")
    named = _present(text)
    file = find_in_folder(named) if named.is_dir() else named
    found = read_file(file)
    if isinstance(found, Table):
        return _Resolved(named, [found])
    index = read_index(file, found)
    tables = [read_tensors(shard) for shard in index.files]
    check_index(index, tables)
    return _Resolved(named, tables, listed=True)


def _present(text: str) -> Path:
    """Return a path, or that of the safetensors file in the place of a pickle that is not there.

    Raises:
        NotACheckpoint: nothing is there, or the system does not let us look.
    """
    try:
        file_status(text)  # before Path drops a slash at the end
    except NotACheckpoint as error:
        stem, suffix = os.path.splitext(text)
        if suffix.lower() not in PICKLES or not isinstance(error.__cause__, FileNotFoundError):
            raise
        twin = Path(f"{stem}.safetensors")
        if not twin.is_file():
            raise NotACheckpoint(
                text, f"{error.problem}; {printable(twin.name, 120)} is not there either", error.remedy
            ) from error
        logger.info("%s is not there, so %s is read in its place", printable(text, 400), printable(twin, 400))
        return twin
    return Path(text)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal to the last bit, NaN included."""
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)))
