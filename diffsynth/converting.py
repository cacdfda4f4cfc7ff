"""Write a LoRA of one format in another, by the tables of the networks that it changes; no weight of these is read."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffsynth import models
from diffsynth.core.checkpoint import Checkpoint, open_checkpoint
from diffsynth.core.family import ModelFamily
from diffsynth.core.folder import component_folders
from diffsynth.core.registry import Registry, without_copies
from diffsynth.errors import CorruptCheckpoint, InvalidRequest, UnknownCheckpoint, printable
from diffsynth.lora.choice import Choice, choose
from diffsynth.lora.formats import read_pairs
from diffsynth.lora.names import means_root
from diffsynth.lora.pieces import Piece
from diffsynth.lora.spellings import format_named, is_xl
from diffsynth.lora.writing import FOLDED, SETTINGS, NetworkChanges, checked_path, save_lora, spell
from diffsynth.models import bert_clip, clip, hunyuan_dit, mt5, unet
from diffsynth.models.bert_clip.config import BertClipConfig
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.mt5.config import MT5Config
from diffsynth.models.unet.config import UNetConfig

logger = logging.getLogger(__name__)

AnyPath = str | PathLike[str]


@dataclass(frozen=True, kw_only=True)
class ConvertedLoRA:
    """What was written.

    Args:
        path: the new file or folder.
        layers: kind of network → how many of its weights change.
    """

    path: Path
    layers: dict[str, int]


@dataclass(frozen=True, eq=False)
class Outline:
    """A network that is known by its sizes alone.

    Args:
        family: its kind.
        config: its sizes.
        path: its file, or the name of its release.
    """

    family: ModelFamily
    config: Any
    path: Path

    @cached_property
    def module(self) -> nn.Module:
        """The modules, without memory for weights."""
        return self.family.build_on_meta(self.config)

    @property
    def label(self) -> str:
        """Its kind and its file, for messages."""
        return f"{self.family.name} of {self.path}"


def releases() -> Iterator[list[list[Outline]]]:
    """Yield the networks of the models that most LoRAs are made for, those together that have layers in common."""
    clip_l = Outline(clip.FAMILY, ClipTextConfig(), Path("Stable Diffusion"))
    clip_g = Outline(clip.FAMILY, ClipTextConfig.big_g(), Path("SDXL"))
    yield [
        [Outline(unet.FAMILY, UNetConfig(), Path("Stable Diffusion 1.5")), clip_l],
        [Outline(unet.FAMILY, UNetConfig.sdxl(), Path("SDXL")), clip_l, clip_g],
        [Outline(unet.FAMILY, UNetConfig.sdxl_refiner(), Path("the SDXL refiner")), clip_g],
    ]
    bert = Outline(bert_clip.FAMILY, BertClipConfig(), Path("HunyuanDiT"))
    t5 = Outline(mt5.FAMILY, MT5Config(), Path("HunyuanDiT"))
    yield [[Outline(hunyuan_dit.FAMILY, HunyuanDiTConfig(), Path("HunyuanDiT v1.2")), bert, t5]]
    yield [[Outline(hunyuan_dit.FAMILY, HunyuanDiTConfig(size_conditioning=True), Path("HunyuanDiT v1.1")), bert, t5]]


def convert_lora(source: AnyPath, output: AnyPath, *, to: str, model: AnyPath | None = None) -> ConvertedLoRA:
    """Write a LoRA in another format.

    Names are translated by the tables of the networks that it was made for. Layers that are one in a format and
    several in another are taken apart or put together without rounding; where they had nothing in common, the one
    layer has the sum of their ranks, and is taken apart again on the way back. Alpha is kept where the format has a
    place for it, and multiplied into the outer matrix where it has none.

    Args:
        source: the LoRA, a file or the folder of one, in any format that ``load_lora`` reads.
        output: a safetensors file, or with ``to="peft"`` a folder; what is there is replaced.
        to: peft, diffusers, diffusers-old, kohya, diffsynth, comfyui or original.
        model: the file or folder of a model like the one that it was made for, of which only the headers are read;
            None tells by names and shapes which of HunyuanDiT, Stable Diffusion 1.5 and SDXL it is.

    Returns:
        The new file, and how many weights of which networks change.

    Raises:
        CheckpointError: the source is no LoRA, or does not fit the model.
        InvalidRequest: the format cannot say what changes, or the output is the source.
        OSError: the file cannot be written.
    """
    target = checked_path(output, to)
    checkpoint = open_checkpoint(source)
    _refuse_same(target, checkpoint)
    candidates = releases() if model is None else [[_outlines(model)]]
    fitting = _complete(checkpoint, candidates, named=model is not None)
    found = [(_changes(checkpoint, each.choice), each.xl) for each in fitting]
    if len(found) > 1 and len({tuple(spell(networks, to, xl=xl).tensors) for networks, xl in found}) > 1:
        names = " and ".join(str(each.networks[0].path) for each in fitting)
        raise InvalidRequest(
            f"{printable(checkpoint.path, 300)} fits {names} alike, which differ in {to}. Say with model= (--model) "
            "which of them it was made for."
        )
    networks, xl = found[0]
    kept = {name: text for name, text in checkpoint.metadata.items() if name not in ("format", SETTINGS, FOLDED)}
    save_lora(target, networks, to, xl=xl, metadata=kept)
    checkpoint.check_unchanged()
    logger.info("wrote %s as %s", target, format_named(to).text)
    layers = Counter[str]()
    for each in networks:
        layers[each.family.name] += len(each.pieces)
    return ConvertedLoRA(path=target, layers=dict(layers))


def _refuse_same(target: Path, checkpoint: Checkpoint) -> None:
    """Raise if the output would overwrite the source."""
    for file in checkpoint.files:
        if any(each.exists() and each.samefile(file) for each in (target, target / file.name)):
            raise InvalidRequest(f"{printable(target, 300)} is the LoRA itself; give the result another name.")


def _outlines(model: AnyPath) -> list[Outline]:
    """Return the networks that the headers of a model's files tell of.

    Raises:
        CheckpointError: a file cannot be read, or holds no network.
    """
    registry = Registry.collect(models)
    found: list[Outline] = []
    unknown: list[UnknownCheckpoint] = []
    for part in component_folders(Path(model)) or [Path(model)]:
        try:
            checkpoint = open_checkpoint(part)
            networks = without_copies(registry.identify(checkpoint).networks)
        except UnknownCheckpoint as error:
            unknown.append(error)
        else:
            found += [Outline(each.family, each.config, checkpoint.path) for each in networks]
    if not found:
        raise unknown[0]
    return found


@dataclass(frozen=True, eq=False)
class _Model:
    """The networks of a model, and which of their layers a LoRA changes."""

    networks: Sequence[Outline]
    choice: Choice[Outline]

    @property
    def xl(self) -> bool:
        """Whether it is SDXL."""
        return any(is_xl(each.family, each.config) for each in self.networks)


def _complete(
    checkpoint: Checkpoint, candidates: Iterable[Sequence[Sequence[Outline]]], *, named: bool
) -> list[_Model]:
    """Return the models that have all layers of a LoRA, of the first group where there are any.

    Raises:
        AdapterMismatch: there is none; the message is of the one that has most.
    """
    pairs, strays = read_pairs(checkpoint)
    tried: list[_Model] = []
    for group in candidates:
        these = [_Model(networks, choose(checkpoint, pairs, networks)) for networks in group]
        tried += these
        whole = [each for each in these if len(each.choice.found) == len(pairs)]
        if whole and not strays:
            numbered = any(pair.places[0].startswith(("lora_te1_", "lora_te2_")) for pair in pairs)
            return ([each for each in whole if each.xl] or whole) if numbered else whole
    best = max(tried, key=lambda each: len(each.choice.found)).choice
    left = [pair for pair in pairs if pair not in best.found]
    remedy = "Name the model that it was made for." if named else "Say with model= (--model) what it was made for."
    raise best.mismatch(left, strays, remedy)


def _changes(checkpoint: Checkpoint, choice: Choice[Outline]) -> list[NetworkChanges]:
    """Read the matrices and return the changes of our weights.

    Raises:
        CorruptCheckpoint: what the file says of alpha makes no sense.
    """
    folded = _folded(checkpoint)
    root = any(means_root(pair, place) for pair, (_, place) in choice.found.items())
    found: dict[Outline, dict[str, list[Piece]]] = {}
    for pair, (network, place) in choice.found.items():
        alpha = math.sqrt(pair.rank) if root and pair.alpha is None else pair.alpha
        up, down = pair.factors(checkpoint)
        if pair.up in folded:
            alpha, dtype = folded[pair.up]
            up = (up.double() / (alpha / pair.rank)).to(dtype)
        rows = [shape[0] for shape in place.shapes]
        for each in place.step.factors_to_ours(place.index, rows, up, down):
            own = found.setdefault(network, {}).setdefault(each.ours, [])
            own.append(Piece(each.first, each.up, each.down, alpha))
    return [NetworkChanges(each.family, each.config, pieces) for each, pieces in found.items()]


def _folded(checkpoint: Checkpoint) -> dict[str, tuple[float, torch.dtype]]:
    """Return alpha and dtype of what was multiplied when the file was written, by the key of the outer matrix."""
    try:
        told = json.loads(checkpoint.metadata.get(FOLDED, "{}"))
        return {key: (float(alpha), getattr(torch, dtype)) for key, (alpha, dtype) in told.items()}
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CorruptCheckpoint(checkpoint.path, f"its header says nothing sensible under {FOLDED}", "") from error
