"""What a job is to do, file by file: which files of a repository are meant, and where each goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffsynth.errors import DownloadError
from diffsynth.hub.catalog import WEIGHTS, Line
from diffsynth.hub.listing import Listing, safe_parts
from diffsynth.hub.progress import OnProgress


@dataclass(frozen=True)
class Options:
    """How a job is done.

    Attributes:
        folder: the folder of downloaded models.
        hubs: which hubs to ask, in this order.
        files: patterns; only files that fit one are wanted. Empty means all.
        offline: whether no hub may be asked.
        verify: whether hubs are asked and every file is read, even if all is remembered.
        reuse: folders of other tools to take files from.
        on_progress: told about progress, in place of the terminal.
        command: what the user may type to fetch the same, for messages.
    """

    folder: Path
    hubs: Sequence[str]
    files: Sequence[str] = ()
    offline: bool = False
    verify: bool = False
    reuse: Sequence[Path] = ()
    on_progress: OnProgress | None = None
    command: str = "diffsynth download"


@dataclass
class Item:
    """One file of a job.

    Attributes:
        line: what it was wanted by.
        path: its name in the repository.
        target: its place on disk.
        failed: why hubs did not give it, a sentence each.
    """

    line: Line
    path: str
    target: Path
    failed: list[str] = field(default_factory=list)


def line_items(line: Line, listing: Listing, options: Options) -> list[Item]:
    """Return the files that a line means in a listing.

    Raises:
        DownloadError: one of them has a name that leads out of the model's folder.
    """
    files = listing.select(line.path)
    if line.is_pattern and line.prefer:
        preferred = {file.path.rpartition("/")[0] for file in files if file.path.endswith(line.prefer)}
        others = tuple(suffix for suffix in WEIGHTS if suffix != line.prefer)
        files = [
            file for file in files if not (file.path.endswith(others) and file.path.rpartition("/")[0] in preferred)
        ]
    return [item_at(line, file.path, options) for file in files]


def item_at(line: Line, path: str, options: Options) -> Item:
    """Return one file of a line.

    Raises:
        DownloadError: its name leads out of the model's folder.
    """
    repository = next(iter(line.repositories.values()))
    home = options.folder / line.folder
    target = home / line.inside("/".join(safe_parts(path, repository)))
    if not target.parent.resolve().is_relative_to(home.resolve()):
        raise DownloadError(
            f"{target.parent} is a link that leads out of {home}, so nothing of {repository} is written there. "
            "Make the folder of the whole model a link, not one inside it."
        )
    return Item(line, path, target)
