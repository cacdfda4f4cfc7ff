"""Files of ``torch.save`` since version 1.6: a zip archive of one pickle and one member per storage.

``<root>/data.pkl`` is the pickle, ``<root>/data/<key>`` the bytes of a storage, ``<root>/byteorder`` the order
of the bytes in a number. Members are stored, not compressed, so that they can be mapped; their checksums may be
left out by the writer and are not looked at.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from diffsynth.core.formats.content import CONVERT_ELSEWHERE, DOWNLOAD_AGAIN, FileStamp, readable_size
from diffsynth.core.formats.pickle_data import MAX_BYTES
from diffsynth.core.formats.table import Extent, Table
from diffsynth.core.formats.torch_pickle import Storage, TorchPickleReader, locate_tensors
from diffsynth.core.formats.wrappers import find_tensors
from diffsynth.errors import CorruptCheckpoint, NotACheckpoint, UnsupportedCheckpoint, listed, printable

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, 22 bytes the directory repeats, lengths of name and extra
ENCRYPTED = 0x1


def read_torch_zip(stream: BinaryIO, stamp: FileStamp) -> Table:
    """Read the directory and the pickle of a torch zip file.

    Args:
        stream: the open file.
        stamp: which file it is.

    Raises:
        NotACheckpoint: a zip archive of something else.
        UnsafeCheckpoint: the pickle calls something that weights do not need.
        UnsupportedCheckpoint: compressed, encrypted, big-endian, TorchScript, or no mapping of names to tensors.
        CorruptCheckpoint: cut, or members or tensors do not lie where they should.
    """
    archive = _Archive(stream, stamp)
    reader = TorchPickleReader(stamp.path)
    value = reader.read(io.BytesIO(archive.read("data.pkl")))
    tensors, wrapper = find_tensors(value, stamp.path)
    extents = {key: archive.storage(storage) for key, storage in reader.storages.items()}
    records = locate_tensors(stamp.path, tensors, lambda storage: extents[storage.key])
    return Table(stamp, "torch zip", records, wrapper=wrapper)


@dataclass(frozen=True, slots=True)
class _Member:
    """One member: where its own header begins, how long its bytes are, and where the next member begins."""

    header: int
    nbytes: int
    limit: int


class _Archive:
    """The members of a torch zip file, each checked to lie inside the file and beside the others."""

    def __init__(self, stream: BinaryIO, stamp: FileStamp) -> None:
        self._stream, self._path = stream, stamp.path
        entries = _directory(stream, stamp.path)
        root = _find_root([entry.filename for entry in entries], stamp.path)
        self._members = _check_members(entries, root, stamp)
        if "byteorder" in self._members and self.read("byteorder").strip() != b"little":
            raise UnsupportedCheckpoint(
                stamp.path, "was written in another byte order than little-endian", CONVERT_ELSEWHERE
            )

    def read(self, name: str) -> bytes:
        """Return the bytes of a small member."""
        extent = self._extent(name)
        if extent.nbytes > MAX_BYTES:
            raise CorruptCheckpoint(self._path, f"its {name} has {readable_size(extent.nbytes)}", DOWNLOAD_AGAIN)
        self._stream.seek(extent.start)
        return self._stream.read(extent.nbytes)

    def storage(self, storage: Storage) -> Extent:
        """Return where the bytes of a storage lie; their number must be the one that the pickle names."""
        name = f"data/{storage.key}"
        if name not in self._members:
            raise CorruptCheckpoint(self._path, f"has no storage {printable(storage.key)}", DOWNLOAD_AGAIN)
        found = self._members[name].nbytes
        if found != storage.nbytes:
            raise CorruptCheckpoint(
                self._path,
                f"its storage {printable(storage.key)} has {found} bytes, expected {storage.nbytes}",
                DOWNLOAD_AGAIN,
            )
        return self._extent(name)

    def _extent(self, name: str) -> Extent:
        """Return where a member's bytes lie: behind a header of its own, whose length the directory does not say."""
        member = self._members[name]
        self._stream.seek(member.header)
        header = self._stream.read(LOCAL_HEADER.size)
        if len(header) == LOCAL_HEADER.size:
            signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
            start = member.header + LOCAL_HEADER.size + name_length + extra_length
            if signature == b"PK\x03\x04" and start + member.nbytes <= member.limit:
                return Extent(start, member.nbytes)
        raise CorruptCheckpoint(
            self._path, f"its member {printable(name)} is not where the archive says", DOWNLOAD_AGAIN
        )


def _directory(stream: BinaryIO, path: Path) -> list[zipfile.ZipInfo]:
    """Read the list of members at the end of the archive."""
    try:
        with zipfile.ZipFile(stream) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OverflowError, struct.error) as error:
        problem = f"is a zip archive whose directory at its end is missing or broken ({printable(error)})"
        raise CorruptCheckpoint(path, problem, f"It may be cut. {DOWNLOAD_AGAIN}") from error


def _find_root(names: list[str], path: Path) -> str:
    """Return the folder in the archive that holds ``data.pkl``, with its slash."""
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        problem = "is a TorchScript program, not a mapping of names to tensors"
        raise UnsupportedCheckpoint(path, problem, CONVERT_ELSEWHERE)
    pickles = [name for name in names if name.rsplit("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        problem = f"is a zip archive of something else ({listed(names, 3) or 'nothing'})"
        raise NotACheckpoint(path, problem, "If the weights are in it, unpack it.")
    return pickles[0].removesuffix("data.pkl")


def _check_members(entries: list[zipfile.ZipInfo], root: str, stamp: FileStamp) -> dict[str, _Member]:
    """Return the members by their names below the root; none is read before all are known to be harmless."""
    path = stamp.path
    repack = "Unpack it and pack it again without compression or password (`zip -0 -r`)."
    members: dict[str, _Member] = {}
    limit = stamp.size
    for entry in sorted(entries, key=lambda entry: entry.header_offset, reverse=True):
        name = printable(entry.filename)
        if entry.flag_bits & ENCRYPTED:
            raise UnsupportedCheckpoint(path, f"its member {name} is encrypted", repack)
        if entry.compress_type != zipfile.ZIP_STORED:
            problem = f"its member {name} is compressed ({entry.compress_size} bytes to {entry.file_size})"
            raise UnsupportedCheckpoint(path, problem, repack)
        end = entry.header_offset + LOCAL_HEADER.size + len(entry.orig_filename) + entry.file_size
        if entry.header_offset < 0 or end > limit or entry.compress_size != entry.file_size:
            problem = f"its member {name} with {entry.file_size} bytes reaches into what follows it"
            raise CorruptCheckpoint(path, problem, DOWNLOAD_AGAIN)
        below = entry.filename.removeprefix(root)
        if below in members:
            raise CorruptCheckpoint(path, f"has two members {name}", DOWNLOAD_AGAIN)
        members[below] = _Member(entry.header_offset, entry.file_size, limit)
        limit = entry.header_offset
    return members
