"""Checkpoints in several files: an index of shards, a folder, a list of files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffsynth.core.formats.content import DOWNLOAD_AGAIN, unreadable
from diffsynth.core.formats.json_text import parse_object
from diffsynth.core.formats.single import not_an_index
from diffsynth.core.formats.table import Table, TensorRecord
from diffsynth.errors import CorruptCheckpoint, MissingShard, NotACheckpoint, UnsafeCheckpoint, listed, printable

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
FORMATS = (".safetensors", ".bin")  # of which there are indexes, the preferred first
VARIANT = re.compile(r"\.(fp16|bf16|fp32|fp8|ema|non_ema)(?=[.-])")
INDEX = re.compile(r"(?P<stem>.*)(?P<format>\.safetensors|\.bin)\.index(?P<variant>\.\w+)?\.json")
NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
SHARD = re.compile(r"(?P<before>.*-)(?P<number>\d{5})-of-(?P<total>\d{5})(?P<after>.*)", re.DOTALL)
# The names that libraries give to the one weight file of a folder; in a row, the same weights in two formats.
STANDARD_NAMES = (
    ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    ("model.safetensors", "pytorch_model.bin"),
)


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Which file of a folder holds which tensor."""

    path: Path
    weight_map: Mapping[str, str]

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards, sorted by name."""
        return tuple(self.path.parent / name for name in sorted(set(self.weight_map.values())))


def read_index(path: Path, text: bytes) -> ShardIndex:
    """Return the index that a JSON text holds; all its shards are there and lie beside it.

    Args:
        path: the JSON file.
        text: what it holds.

    Raises:
        NotACheckpoint: JSON, but no index of shards.
        UnsafeCheckpoint: it points outside of its folder, or to itself.
        MissingShard: shards are absent; all are named.
        CorruptCheckpoint: not JSON, or an index that names no tensors.
    """
    try:
        weight_map = parse_object(text, path, "text").get("weight_map")
    except CorruptCheckpoint as error:
        raise error if path.suffix == ".json" else not_an_index(path, text) from error
    if not isinstance(weight_map, dict):
        raise not_an_index(path, text)
    if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptCheckpoint(
            path, "its weight_map is empty or names files by something else than text", DOWNLOAD_AGAIN
        )
    for name in set(weight_map.values()):
        if name in ("", ".", "..", path.name) or any(char in name for char in "/\\:\0"):
            problem = f"points to {printable(name) or 'an empty name'}, which is no file beside it"
            raise UnsafeCheckpoint(path, problem, "A shard's name must be that of a file in the same folder.")
    index = ShardIndex(path, weight_map)
    missing = [file.name for file in index.files if not os.path.exists(file)]
    if missing:
        total = len(index.files)
        problem = f"lists {total} shards of which {len(missing)} are missing: {listed(missing, 20)}"
        remedy = "Download these, or the whole folder again."
        if whole := _whole_file(path):
            remedy = f"{printable(whole, 120)} lies beside it: if that is the whole checkpoint, name it. Else: {remedy}"
        raise MissingShard(path, problem, remedy)
    return index


def _whole_file(index: Path) -> str:
    """Return the name of the file, if it is there, that holds all that an index of shards speaks of."""
    match = INDEX.fullmatch(index.name)
    names = [match["stem"] + (match["variant"] or "") + suffix for suffix in FORMATS] if match else []
    return next((name for name in names if (index.parent / name).is_file()), "")


def require_all_shards(files: Sequence[Path]) -> None:
    """Check that files which are shards by their names, such as ``x-00001-of-00005.bin``, are all there are.

    Raises:
        MissingShard: some are missing; all are named.
    """
    groups: dict[tuple[str, int, str], tuple[Path, set[int]]] = {}
    for file in files:
        if match := SHARD.fullmatch(file.name):
            group = (match["before"], int(match["total"]), match["after"])
            groups.setdefault(group, (file, set()))[1].add(int(match["number"]))
    for (before, total, after), (first, numbers) in groups.items():
        missing = [f"{before}{n:05}-of-{total:05}{after}" for n in range(1, total + 1) if n not in numbers]
        if missing:
            problem = f"belongs to {total} shards of which {len(missing)} are missing: {listed(missing, 20)}"
            remedy = "Name all shards, or the folder with their index; download those that are not there."
            raise MissingShard(first, problem, remedy)


def check_index(index: ShardIndex, tables: Sequence[Table]) -> None:
    """Check that each tensor lies in the shard that the index names.

    Raises:
        CorruptCheckpoint: a tensor is in no shard, or in another one.
        UnsafeCheckpoint: an index of safetensors points to a pickle.
    """
    match = INDEX.fullmatch(index.path.name)
    for table in tables:
        if match and match["format"] == ".safetensors" and table.format != "safetensors":
            problem = f"points to {printable(table.stamp.path.name)}, which is a {table.format} file, not safetensors"
            raise UnsafeCheckpoint(index.path, problem, DOWNLOAD_AGAIN)
    holders = {table.stamp.path.name: table.records for table in tables}
    lost = [key for key, name in index.weight_map.items() if key not in holders[name]]
    if lost:
        found = next((name for name, records in holders.items() if lost[0] in records), None)
        where = f"lies in {printable(found)}" if found else "is in no shard"
        more = f" (so are {len(lost) - 1} others misplaced)" if len(lost) > 1 else ""
        problem = f"says {printable(lost[0], 120)} lies in {printable(index.weight_map[lost[0]])}, but it {where}{more}"
        raise CorruptCheckpoint(index.path, problem, DOWNLOAD_AGAIN)


def merge(tables: Sequence[Table]) -> tuple[dict[str, TensorRecord], list[tuple[str, TensorRecord, TensorRecord]]]:
    """Return the records of all files, and the doubles: key, the record that was taken, the one that was not."""
    records: dict[str, TensorRecord] = {}
    doubles: list[tuple[str, TensorRecord, TensorRecord]] = []
    for table in tables:
        for key, record in table.records.items():
            first = records.setdefault(key, record)
            if first is not record:
                doubles.append((key, first, record))
    return records, doubles


def find_in_folder(folder: Path) -> Path:
    """Return the index of a folder, or else its one weight file.

    Raises:
        NotACheckpoint: there is none, or there are several and none has a standard name.
    """
    try:
        names = sorted(
            entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and not entry.is_dir()
        )
        folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise unreadable(folder, error) from error
    weights = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
    indexes = [match for name in names if (match := INDEX.fullmatch(name))]
    if found := _preferred([match for match in indexes if not match["variant"]]):
        return folder / _only(folder, found)
    standard = [found[0] for row in STANDARD_NAMES if (found := [name for name in row if name in names])]
    if standard:
        return folder / _only(folder, standard)
    twins = {match[0] for match in indexes if any(match["stem"] + suffix in names for suffix in WEIGHT_SUFFIXES)}
    if found := _preferred([match for match in indexes if match[0] not in twins]):
        return folder / _only(folder, found)
    if not weights:
        inside = f"holds {listed(names + [name + '/' for name in folders]) or 'nothing'}"
        remedy = "Name one of its folders." if folders else "Name the folder or the file that holds the weights."
        raise NotACheckpoint(folder, f"is a folder without a weight file; it {inside}", remedy)
    return folder / _only(folder, _without_twins(weights))


def _preferred(indexes: Sequence[re.Match[str]]) -> list[str]:
    """Return the names of those indexes that are in the best of the formats there are."""
    rows = ([match[0] for match in indexes if match["format"] == suffix] for suffix in FORMATS)
    return next((row for row in rows if row), [])


def _without_twins(names: Sequence[str]) -> list[str]:
    """Leave out files that are, by their names, the same weights again: a variant, or a pickle beside safetensors."""
    rank = {name: (bool(VARIANT.search(name)), not name.lower().endswith(".safetensors")) for name in names}
    base = {name: NUMBER.sub("", VARIANT.sub("", name).rsplit(".", 1)[0]) for name in names}
    best: dict[str, tuple[bool, bool]] = {}
    for name in names:
        best[base[name]] = min(best.get(base[name], rank[name]), rank[name])
    return [name for name in names if rank[name] == best[base[name]]]


def _only(folder: Path, names: Sequence[str]) -> str:
    if len(names) > 1:
        problem = f"is a folder with {len(names)} weight files: {listed(names, 10)}"
        shards = all(SHARD.fullmatch(name) for name in names)
        remedy = (
            "There is no index that lists these shards, so name all of them." if shards else "Name the one to load."
        )
        raise NotACheckpoint(folder, problem, remedy)
    return names[0]
