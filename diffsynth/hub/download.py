"""Model names → files on disk.

This version finds files that are in place and says exactly which are not; it does not fetch any. A model that comes
with the package is put in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from os import PathLike
from pathlib import Path

from diffsynth.errors import DownloadError, InvalidRequest, printable
from diffsynth.hub.bundled import unpack
from diffsynth.hub.catalog import BUNDLED, CATALOG, REPOSITORIES, TOKENIZERS


def download_models(
    model_id_list: str | Sequence[str],
    downloading_priority: str | Sequence[str] = ("ModelScope", "HuggingFace"),
    *,
    local_dir: str | PathLike[str] = "models",
) -> list[Path]:
    """Return the files of models, in the order that ``ModelManager.load_models`` wants them.

    Args:
        model_id_list: names from the catalogue, such as ``HunyuanDiT``; a single one need not be in a list.
        downloading_priority: the hubs that the message about missing files names, in this order.
        local_dir: the folder of downloaded models.

    Raises:
        InvalidRequest: a name is not in the catalogue; the message names the nearest.
        DownloadError: files are not in place; the message lists them and where to get them. Or the files of a model
            that comes with the package cannot be written.
    """
    folder = Path(local_dir)
    found: list[Path] = []
    hubs_wanted = _as_list(downloading_priority)
    for model_id in _as_list(model_id_list):
        if model_id not in CATALOG:
            near = get_close_matches(model_id, CATALOG, n=3, cutoff=0.4) or sorted(CATALOG)
            raise InvalidRequest(f"there is no model called {printable(model_id)!r}. Known are: {', '.join(near)}.")
        if model_id in BUNDLED:
            found += unpack(model_id, folder)
            continue
        files = [folder / name for name in (*CATALOG[model_id], *TOKENIZERS[model_id])]
        missing = [path for path in files if not path.is_file()]
        if missing:
            hubs = ", ".join(
                f"{REPOSITORIES[model_id][hub]} on {hub}" for hub in hubs_wanted if hub in REPOSITORIES[model_id]
            )
            lines = "".join(f"\n  {path}" for path in missing)
            raise DownloadError(
                f"{len(missing)} of {len(files)} files of {model_id} are not in place:{lines}\n"
                f"This version does not fetch files by itself. They are those of {hubs}, under the same names from "
                '"t2i/" on; put them there with the hub\'s own client.'
            )
        found += [folder / name for name in CATALOG[model_id]]
    return found


def _as_list(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names
