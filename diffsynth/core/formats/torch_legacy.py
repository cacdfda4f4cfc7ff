"""Files of ``torch.save`` before version 1.6: five pickles, then the bytes of each storage.

The pickles are a magic number, the protocol 1001, facts about the writing machine, the value, and the list of
the storages' keys. In the order of that list follows, for each storage, the number of its elements as a signed
64-bit number and its bytes. The older tar form is not read.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from diffsynth.core.formats.content import CONVERT_ELSEWHERE, DOWNLOAD_AGAIN, FileStamp
from diffsynth.core.formats.table import Extent, Table
from diffsynth.core.formats.torch_pickle import Storage, TorchPickleReader, locate_tensors
from diffsynth.core.formats.wrappers import describe, find_tensors
from diffsynth.errors import CorruptCheckpoint, UnsupportedCheckpoint, printable

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
COUNT = struct.Struct("<q")


def read_torch_legacy(stream: BinaryIO, stamp: FileStamp) -> Table:
    """Read the pickles of a legacy torch file, and find its storages without reading them.

    Args:
        stream: the open file, at its start.
        stamp: which file it is.

    Raises:
        UnsafeCheckpoint: a pickle calls something that weights do not need.
        UnsupportedCheckpoint: a plain pickle, big-endian, or no mapping of names to tensors.
        CorruptCheckpoint: cut, too long, or its parts contradict one another.
    """
    path = stamp.path
    reader = TorchPickleReader(path)
    first = reader.read(stream)
    if first != MAGIC or type(first) is not int:
        problem = f"is a plain pickle that holds {describe(first)}, not a file of `torch.save`"
        raise UnsupportedCheckpoint(path, problem, "Give a file that holds named tensors.")
    if reader.read(stream) != PROTOCOL:
        raise UnsupportedCheckpoint(path, "is a torch file of an unknown protocol", CONVERT_ELSEWHERE)
    machine = reader.read(stream)
    if isinstance(machine, dict) and machine.get("little_endian", True) is not True:
        raise UnsupportedCheckpoint(path, "was written in another byte order than little-endian", CONVERT_ELSEWHERE)
    tensors, wrapper = find_tensors(reader.read(stream), path)
    extents = _find_storages(stream, stamp, reader.read(stream), reader.storages)
    records = locate_tensors(path, tensors, lambda storage: extents[storage.key])
    return Table(stamp, "torch legacy", records, wrapper=wrapper)


def _find_storages(stream: BinaryIO, stamp: FileStamp, keys: object, storages: dict[str, Storage]) -> dict[str, Extent]:
    """Walk over the storages at the end of the file, from count to count."""
    path = stamp.path
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise CorruptCheckpoint(path, "its list of storages is not the one its tensors name", DOWNLOAD_AGAIN)
    position = stream.tell()
    expected = position + sum(COUNT.size + storage.nbytes for storage in storages.values())
    if expected != stamp.size:
        part = f" ({100 * stamp.size / expected:.1f} % present)" if stamp.size < expected else ""
        raise CorruptCheckpoint(path, f"has {stamp.size} bytes, expected {expected}{part}", DOWNLOAD_AGAIN)
    extents: dict[str, Extent] = {}
    for key in keys:
        storage = storages[key]
        stream.seek(position)
        count = COUNT.unpack(stream.read(COUNT.size))[0]
        if count != storage.count:
            problem = f"its storage {printable(key)} has {count} elements, expected {storage.count}"
            raise CorruptCheckpoint(path, problem, DOWNLOAD_AGAIN)
        extents[key] = Extent(position + COUNT.size, storage.nbytes)
        position += COUNT.size + storage.nbytes
    return extents
