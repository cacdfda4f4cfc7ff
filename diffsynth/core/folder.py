"""Folders that hold several networks: those of Diffusers, and those of the published repositories."""

from __future__ import annotations

from pathlib import Path

from diffsynth.core.formats.content import unreadable

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def component_folders(folder: Path) -> list[Path]:
    """Return the folders of a model's parts, or nothing if the path is not such a folder.

    A folder is one of several networks if it has a ``model_index.json``, or no weights of its own but
    folders with weights in it.

    Raises:
        NotACheckpoint: the system does not let us look into it.
    """
    try:
        if not folder.is_dir():
            return []
        if not (folder / "model_index.json").is_file() and _has_weights(folder):
            return []
        return [part for part in sorted(folder.iterdir()) if part.is_dir() and _has_weights(part)]
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(getattr(error, "filename", None) or folder, error) from error


def _has_weights(folder: Path) -> bool:
    return any(file.suffix.lower() in WEIGHT_SUFFIXES for file in folder.iterdir() if file.is_file())
