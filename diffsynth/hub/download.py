"""Model names → files on disk: the right bytes, or one clear error."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from diffsynth.errors import InvalidRequest, printable
from diffsynth.hub.bundled import unpack
from diffsynth.hub.catalog import CatalogModel, Line, model_called
from diffsynth.hub.items import Item, Options
from diffsynth.hub.job import gather
from diffsynth.hub.listing import checked_repository, matches
from diffsynth.hub.progress import OnProgress
from diffsynth.hub.settings import is_offline
from diffsynth.hub.sources import SOURCES

HUBS = tuple(SOURCES)

Names = str | Sequence[str]
AnyPath = str | PathLike[str]


def download_models(
    model_id_list: Names,
    downloading_priority: Names = HUBS,
    *,
    local_dir: AnyPath = "models",
    files: Names = (),
    offline: bool | None = None,
    verify: bool = False,
    reuse: AnyPath | Sequence[AnyPath] = (),
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Return the files of models, in the order that ``ModelManager.load_models`` wants them; fetch what is missing.

    A file is in place when its size and hash are those that a hub publishes. Both are remembered, so a second call
    asks nobody and reads nothing.

    Args:
        model_id_list: names from the catalogue, such as ``HunyuanDiT``; a single one need not be in a list.
        downloading_priority: the hubs to ask, the next one for what the first does not give.
        local_dir: the folder of downloaded models.
        files: patterns such as ``*vae*``; only these files are fetched and returned.
        offline: ask no hub; files that no hub was ever asked about are then used unchecked. None leaves it to
            ``DIFFSYNTH_OFFLINE`` and ``HF_HUB_OFFLINE``.
        verify: ask the hubs anew and read every file, even if all is remembered.
        reuse: folders of other tools; what they hold is linked or copied after its hash is checked. The hubs' own
            caches are always looked into.
        on_progress: called with a ``DownloadReport`` now and then, in place of a progress bar on the terminal.

    Raises:
        InvalidRequest: a name is not in the catalogue, with the nearest; no such hub; no file fits ``files``.
        DownloadError: files could not be had; the message names each, and why, and what to do.
    """
    names = list(dict.fromkeys(_as_list(model_id_list)))
    models = [model_called(name) for name in names]
    options = _options(names, downloading_priority, local_dir, files, offline, verify, reuse, on_progress)
    lines: list[Line] = []
    for model in models:
        lines += [line for line in model.lines if line not in lines and not model.bundled]
    items = gather(lines, options) if lines else []
    _check_wanted(items, models, options)
    found: list[Path] = []
    for name, model in zip(names, models, strict=True):
        found += _unpacked(name, options) if model.bundled else _to_load(model, items, options)
    return list(dict.fromkeys(found))


def download_model(
    repo_id: str,
    patterns: Names = "*",
    *,
    source: Names = HUBS,
    revision: str | None = None,
    local_dir: AnyPath = "models",
    offline: bool | None = None,
    verify: bool = False,
    reuse: AnyPath | Sequence[AnyPath] = (),
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Return files of any repository, fetched to ``local_dir/owner/name``, where missing.

    Args:
        repo_id: the repository, as ``owner/name``.
        patterns: names of files, or patterns such as ``vae/*.safetensors``.
        source: the hub, or hubs, to ask in this order.
        revision: a branch, tag or commit; None is the newest.
        local_dir: the folder of downloaded models.
        offline: as in ``download_models``; so are the others.
        verify: see there.
        reuse: see there.
        on_progress: see there.

    Raises:
        InvalidRequest: the name is not of a repository, or there is no such hub.
        DownloadError: files could not be had; the message names each, and why, and what to do.
    """
    repository = checked_repository(repo_id)
    options = _options([repository], source, local_dir, patterns, offline, verify, reuse, on_progress, revision)
    repositories = dict.fromkeys(HUBS, repository)
    lines = [Line(repositories, pattern, repository, revision=revision) for pattern in _as_list(patterns)]
    items = gather(lines, Options(**{**vars(options), "files": ()}))
    return list(dict.fromkeys(item.target for item in items))


def _options(
    names: Sequence[str],
    hubs: Names,
    local_dir: AnyPath,
    files: Names,
    offline: bool | None,
    verify: bool,
    reuse: AnyPath | Sequence[AnyPath],
    on_progress: OnProgress | None,
    revision: str | None = None,
) -> Options:
    folder = Path(local_dir)
    command = ["diffsynth", "download", *names]
    command += [] if folder == Path("models") else ["--models", str(folder)]
    command += [] if revision is None else ["--revision", revision]
    command += [part for hub in _as_list(hubs) if tuple(_as_list(hubs)) != HUBS for part in ("--hub", hub)]
    command += [part for pattern in _as_list(files) if pattern != "*" for part in ("--files", pattern)]
    folders = [Path(each) for each in ([reuse] if isinstance(reuse, (str, PathLike)) else reuse)]
    if missing := [each for each in folders if not each.is_dir()]:
        raise InvalidRequest(f"reuse= (--reuse) names {printable(missing[0], 300)}, which is no folder.")
    return Options(
        folder=folder,
        hubs=tuple(_as_list(hubs)),
        files=tuple(_as_list(files)),
        offline=is_offline(offline),
        verify=verify,
        reuse=tuple(folders),
        on_progress=on_progress,
        command=shlex.join(command),
    )


def _check_wanted(items: Sequence[Item], models: Sequence[CatalogModel], options: Options) -> None:
    bundled = (line.path for model in models if model.bundled for line in model.lines)
    if options.files and not items and not any(matches(path, options.files) for path in bundled):
        raise InvalidRequest(f"no file of these models fits {' or '.join(options.files)}.")


def _unpacked(name: str, options: Options) -> list[Path]:
    """Put a model that comes with the package in place, and return what ``load_models`` gets."""
    paths = unpack(name, options.folder)
    inside = {path: path.relative_to(options.folder / name).as_posix() for path in paths}
    return [path for path in paths if not options.files or matches(inside[path], options.files)]


def _to_load(model: CatalogModel, items: Sequence[Item], options: Options) -> list[Path]:
    """Return what ``load_models`` gets for a model: its weight files, or its folder."""
    if model.as_folder is not None and not options.files:
        return [options.folder / model.as_folder]
    return [item.target for line in model.lines if line.loads for item in items if item.line == line]


def _as_list(names: Names) -> Sequence[str]:
    return [names] if isinstance(names, str) else names
