"""Folders that hold several networks: those of Diffusers, and those of the published repositories."""

from __future__ import annotations

from pathlib import Path

from diffsynth.core.formats.content import unreadable

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
ONE_EACH = "controlnet"  # in a published repository, a folder of this name has one network in each file


def component_folders(folder: Path) -> list[Path]:
    """Return the folders of a model's parts, or nothing if the path is not such a folder.

    A folder is one of several networks if it has a ``model_index.json``, or no weights of its own but
    folders with weights in it. Of a part that is several networks, such as control networks for edges and for poses,
    each file is returned.

    Raises:
        NotACheckpoint: the system does not let us look into it.
    """
    try:
        if not folder.is_dir():
            return []
        of_diffusers = (folder / "model_index.json").is_file()
        if not of_diffusers and _weights(folder):
            return []
        parts = [part for part in sorted(folder.iterdir()) if part.is_dir() and _weights(part)]
        return parts if of_diffusers else [each for part in parts for each in _networks(part)]
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(getattr(error, "filename", None) or folder, error) from error


def _networks(part: Path) -> list[Path]:
    """Return the files of a part that has one network in each, else the part; shards belong together."""
    one_each = part.name == ONE_EACH and not list(part.glob("*.index.json"))
    return _weights(part) if one_each else [part]


def _weights(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix.lower() in WEIGHT_SUFFIXES and file.is_file()]
