"""Why two runs of a job are not the same: their images compared pair by pair, and equal findings counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffsynth.batch.records import Folder, Record
from diffsynth.batch.why import Explanation, explain, side_of
from diffsynth.errors import DiffSynthError, listed, printable


@dataclass(frozen=True)
class Findings:
    """What was found out about two folders.

    Args:
        folders: both.
        only: names of images that only the first has, and only the second.
        pairs: name → what was found out about the two images of that name.
        unread: name → why a pair could not be compared.
    """

    folders: tuple[Path, Path]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    pairs: Mapping[str, Explanation]
    unread: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{letter}  {printable(folder, 300)}" for letter, folder in zip("AB", self.folders, strict=True)]
        for letter, names in zip("AB", self.only, strict=True):
            if names:
                lines.append(f"only in {letter}: {len(names)}: {listed(names)}")
        equal = [each for each in self.pairs.values() if each.comparison.equal and not each.differences]
        if equal:
            same = sum(each.same_file for each in equal)
            lines.append(f"equal: {len(equal)}, {same} of them byte for byte")
        for group in self.groups():
            lines += [
                f"{len(group)} of the others: {listed(group)}",
                *(f"  {line}" for line in self.pairs[group[0]].lines()),
            ]
        lines += [f"cannot be compared: {name}: {reason}" for name, reason in self.unread.items()]
        return "\n".join(lines)

    def groups(self) -> list[list[str]]:
        """Return the names of images that differ, those together of which the same was found out; most first."""
        found: dict[tuple[object, ...], list[str]] = {}
        for name, each in self.pairs.items():
            if each.differences or not each.comparison.equal:
                differing = tuple(difference.name for difference in each.differences)
                found.setdefault((differing, each.unknown, each.verdict), []).append(name)
        return sorted(found.values(), key=len, reverse=True)


def compare_folders(first: str | Path, second: str | Path) -> Findings:
    """Compare images of two folders, such as two runs of one job, that have one name.

    Args:
        first: a folder with a ledger, or with images.
        second: likewise.

    Raises:
        InvalidRequest: one is no folder, or has no images.
        OSError: one cannot be read.
    """
    folders = Folder.read(first), Folder.read(second)
    ones, twos = ({name: record for record in each.drawn for name in _names(record)} for each in folders)
    pairs: dict[str, Explanation] = {}
    unread: dict[str, str] = {}
    for name in ones:
        if name not in twos:
            continue
        try:
            pairs[name] = explain(side_of(folders[0], ones[name], "A"), side_of(folders[1], twos[name], "B"))
        except (DiffSynthError, OSError) as error:
            unread[name] = printable(error, 300)
    only = tuple(name for name in ones if name not in twos), tuple(name for name in twos if name not in ones)
    return Findings((folders[0].path, folders[1].path), only, pairs, unread)


def _names(record: Record) -> tuple[str, ...]:
    return (record.name, *record.names)
