"""Options of ``diffsynth generate``: which networks among all that the files hold, words to learn, and LoRAs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsynth.errors import InvalidRequest

if TYPE_CHECKING:
    from diffsynth.manager import ModelManager

_WHICH = "if the files hold several: its file or folder, version, prefix or index."
Denoiser = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which denoiser, {_WHICH}")]
Clip = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which (first) CLIP text encoder, {_WHICH}")]
Clip2 = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which second text encoder of SDXL, {_WHICH}")]
T5 = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which mT5 encoder of HunyuanDiT, {_WHICH}")]
Vae = Annotated[str | None, typer.Option(metavar="NAME", help=f"Which autoencoder, {_WHICH}")]
Controlnets = Annotated[
    list[str] | None,
    typer.Option("--controlnet", metavar="NAME", help=f"Which control network; repeat for each, {_WHICH}"),
]
Refiner = Annotated[
    bool | None, typer.Option("--refiner/--no-refiner", help="Whether the SDXL refiner among the files finishes.")
]
RefinerName = Annotated[str | None, typer.Option(metavar="NAME", help=f"Let this refiner finish, {_WHICH}")]
IPAdapterName = Annotated[
    str | None,
    typer.Option("--ip-adapter", metavar="NAME", help=f"Which IP-Adapter takes pictures as prompts, {_WHICH}"),
]
ImageEncoderName = Annotated[
    str | None, typer.Option("--image-encoder", metavar="NAME", help=f"Which image encoder it reads with, {_WHICH}")
]
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
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE[=SCALE]", help="Change the networks by a LoRA; repeat for each."),
]
LoraPartly = Annotated[
    bool, typer.Option("--lora-partly", help="Leave out what of a LoRA belongs to no network, in place of an error.")
]


def chosen_networks(names: dict[str, str | None]) -> dict[str, str | int | None]:
    """Return what ``from_model_manager`` takes for each network."""
    return {role: None if name is None else index_or_name(name) for role, name in names.items()}


def index_or_name(name: str) -> str | int:
    """Return what means a network among several: a text that is a whole number is an index."""
    return int(name) if re.fullmatch(r"-?[0-9]+", name) else name


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


@dataclass(frozen=True)
class Lora:
    """A LoRA to load, as the command line or a recipe names it."""

    path: Path
    scale: float = 1.0
    strict: bool = True
    merged: bool = False

    def load(self, manager: ModelManager) -> None:
        """Attach it, and merge it if it was merged when an image was drawn with it.

        Raises:
            CheckpointError: it does not fit the networks.
            AmbiguousModel: it fits several.
        """
        lora = manager.load_lora(self.path, self.scale, strict=self.strict)
        if self.merged:
            lora.merge()


def loras_named(texts: Sequence[str], *, strict: bool) -> list[Lora]:
    """Return the LoRAs that ``--lora`` names; only their headers are read.

    Raises:
        CheckpointError: a file is no LoRA that can be read.
        InvalidRequest: a scale is no finite number.
    """
    from diffsynth.core.checkpoint import open_checkpoint
    from diffsynth.lora.apply import checked
    from diffsynth.lora.formats import read_pairs

    found = []
    for text in texts:
        path, scale = Path(text), 1.0
        front, _, number = text.rpartition("=")
        if front and not path.exists():
            with suppress(ValueError):
                path, scale = Path(front), float(number)
        read_pairs(open_checkpoint(path))
        found.append(Lora(path, checked(scale), strict))
    return found


def loras_of(recipe: dict[str, Any]) -> list[Lora]:
    """Return the LoRAs that a recipe names."""
    return [
        Lora(Path(each["path"]), each["scale"], each.get("strict", True), each.get("merged", False))
        for each in recipe.get("adapters", [])
    ]
