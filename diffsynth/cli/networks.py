"""Options of ``diffsynth generate`` that choose networks among all that the files hold, and words to learn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from diffsynth.errors import InvalidRequest

_WHICH = "if the files hold several: its file or folder, version, prefix or index."
Denoiser = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which denoiser, {_WHICH}")]
Clip = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which (first) CLIP text encoder, {_WHICH}")]
Clip2 = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which second text encoder of SDXL, {_WHICH}")]
T5 = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which mT5 encoder of HunyuanDiT, {_WHICH}")]
Vae = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which autoencoder, {_WHICH}")]
Refiner = Annotated[
    bool | None, typer.Option("--refiner/--no-refiner", help="Whether the SDXL refiner among the files finishes.")
]
RefinerName = Annotated[str | None, typer.Option(metavar="NAME", help=f"Let this refiner finish, {_WHICH}")]
Prediction = Annotated[
    str | None, typer.Option(help="What the UNet predicts, epsilon or velocity; as its file is marked by default.")
]
ZeroTerminalSnr = Annotated[
    bool | None, typer.Option(help="Whether drawing starts in pure noise; as the UNet's file is marked by default.")
]
Inversions = Annotated[
    list[str] | None,
    typer.Option("--textual-inversion", metavar="[WORD=]FILE", help="Learn a word from a file; repeat for each."),
]


def chosen_networks(names: dict[str, str | None]) -> dict[str, str | int | None]:
    """Return what ``from_model_manager`` takes: a text that is a whole number is an index."""
    return {
        role: int(name) if name is not None and re.fullmatch(r"-?[0-9]+", name) else name
        for role, name in names.items()
    }


def chosen_refiner(wanted: bool | None, name: str | None) -> str | int | bool | None:
    """Return which refiner is asked for, or whether any is; None if nothing is said.

    Raises:
        InvalidRequest: one is named, and none is wanted.
    """
    if name is not None and wanted is False:
        raise InvalidRequest("--no-refiner and --refiner-name contradict each other; give one of them.")
    return wanted if name is None else chosen_networks({"refiner": name})["refiner"]


def inversions_named(texts: Sequence[str]) -> list[tuple[Path, str | None]]:
    """Return the file of each textual inversion and the word that is given for it, if one is.

    Raises:
        CheckpointError: a file is none that can be read.
        OSError: it is not there.
    """
    from diffsynth.core.checkpoint import open_checkpoint

    found: list[tuple[Path, str | None]] = []
    for text in texts:
        word, equals, path = text.partition("=")
        named = bool(word and equals) and not Path(text).is_file()
        found.append((Path(path), word) if named else (Path(text), None))
        open_checkpoint(found[-1][0])
    return found
