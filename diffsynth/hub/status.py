"""The catalogue as it stands: how large each model is, and how much of it is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from diffsynth.hub.bundled import files_of
from diffsynth.hub.catalog import CATALOG, CatalogModel, Repositories
from diffsynth.hub.hubs import Hubs
from diffsynth.hub.items import Options, line_items
from diffsynth.hub.listing import Listing
from diffsynth.hub.patience import Refusal
from diffsynth.hub.record import Record, is_right
from diffsynth.hub.settings import Patience, is_offline


@dataclass(frozen=True)
class ModelStatus:
    """One model of the catalogue.

    Attributes:
        name: what it is asked for by.
        about: what it is.
        bytes: of all its files; None if no hub has told.
        files: how many it has; None if no hub has told.
        here: how many of them are in place, whole and checked; unchecked ones if no hub has told.
    """

    name: str
    about: str
    bytes: int | None
    files: int | None
    here: int


def catalogue_status(
    local_dir: str | PathLike[str] = "models", hubs: Sequence[str] = (), *, offline: bool | None = None
) -> list[ModelStatus]:
    """Return every model of the catalogue with its size and what is here of it.

    A model that comes with the package is left out where the package was installed without it.

    Args:
        local_dir: the folder of downloaded models.
        hubs: the hubs to ask for sizes that are not remembered.
        offline: ask none; None leaves it to the environment.

    Raises:
        InvalidRequest: there is no such hub.
    """
    folder = Path(local_dir)
    asking = Hubs(hubs, Record(folder), Patience.from_environment())
    options = Options(folder=folder, hubs=hubs)
    return [
        _status(name, model, asking, options, is_offline(offline))
        for name, model in CATALOG.items()
        if not model.bundled or files_of(name)
    ]


def _status(name: str, model: CatalogModel, hubs: Hubs, options: Options, offline: bool) -> ModelStatus:
    if model.bundled:
        return _bundled_status(name, model, options.folder)
    size, files, here, known = 0, 0, 0, True
    for line in model.lines:
        listing = next(filter(None, (hubs.asked_or_remembered(hub, line) for hub in hubs.names)), None)
        if listing is None and not offline:
            listing = _asked(line.repositories, line.revision, hubs)
        items = line_items(line, listing, options) if listing else []
        if listing is None or not items:
            known = False
            here += (options.folder / line.place).is_file()
            continue
        size += sum(listing.by_path[item.path].size for item in items)
        files += len(items)
        here += sum(is_right(item.target, hubs.offers(line, item.path)) for item in items)
    return ModelStatus(name, model.about, size if known else None, files if known else None, here)


def _bundled_status(name: str, model: CatalogModel, folder: Path) -> ModelStatus:
    content = {place: source.read_bytes() for place, source in files_of(name).items()}
    here = sum((folder / place).is_file() and (folder / place).read_bytes() == content[place] for place in content)
    return ModelStatus(name, model.about, sum(map(len, content.values())), len(content), here)


def _asked(repositories: Repositories, revision: str | None, hubs: Hubs) -> Listing | None:
    for hub in hubs.names:
        if hub in repositories:
            try:
                return hubs.listing(hub, repositories[hub], revision)
            except Refusal:
                continue
    return None
