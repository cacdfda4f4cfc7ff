"""Models that come with the package: put beside those that are downloaded, without network.

Each lies in a folder of its own beside this file, just as it is to lie in the folder of downloaded models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from diffsynth.core.files import replacing
from diffsynth.errors import DownloadError, listed
from diffsynth.hub.catalog import CATALOG

if TYPE_CHECKING:
    from importlib.abc import Traversable

logger = logging.getLogger(__name__)


def unpack(model_id: str, folder: Path) -> list[Path]:
    """Copy a model that comes with the package; files that are there already and right are left alone.

    Each file is replaced in one step, so that a reader never sees half of one, whatever happens.

    Args:
        model_id: the model's name.
        folder: the folder of downloaded models; made if need be.

    Returns:
        The weight files, in the order that ``ModelManager.load_models`` wants them.

    Raises:
        DownloadError: the package was installed without the model, or a file cannot be written; the message names it.
    """
    files = files_of(model_id)
    model = CATALOG[model_id]
    missing = [name for name in (*model.weights, *model.vocabularies) if name not in files]
    if missing:
        raise DownloadError(
            f"{model_id} comes with the package, but {len(missing)} of its files are not in this installation, under "
            f"{_home()}: {listed(missing, 2)}. Install diffsynth in a version that has them."
        )
    for name, source in files.items():
        target = folder / name
        try:
            if _put(source.read_bytes(), target):
                logger.debug("wrote %s", target)
        except OSError as error:
            place = error.filename or target
            reason = error.strerror or error
            raise DownloadError(
                f"{model_id} comes with the package, but could not be copied: {place}: {reason}. "
                "Make room or give permission there, or name another folder with local_dir=."
            ) from error
    return [folder / name for name in model.weights]


def files_of(model_id: str) -> dict[str, Traversable]:
    """Return the files of a model in the package by their names below the folder of downloaded models.

    There are none if the package was installed without it.
    """
    folder = _home() / model_id
    return dict(sorted(_walk(folder, model_id))) if folder.is_dir() else {}


def _home() -> Traversable:
    """Return where the models lie: a folder, or a place in the archive that the package is imported from."""
    return resources.files(__name__)


def _walk(folder: Traversable, name: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{name}/{entry.name}")
        elif not entry.name.startswith("."):
            yield f"{name}/{entry.name}", entry


def _put(content: bytes, target: Path) -> bool:
    """Have a file hold this content, and tell whether it had to be written."""
    with suppress(OSError):  # what cannot be read is replaced
        if target.is_file() and target.stat().st_size == len(content) and target.read_bytes() == content:
            return False
    with replacing(target) as temporary:
        temporary.write_bytes(content)
    return True
