"""Write a LoRA in any format: its matrices under the names that the format has for the layers of each network."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsynth.core.convert import Conversion, Converter
from diffsynth.core.family import ModelFamily
from diffsynth.core.files import replacing
from diffsynth.core.saving import save_tensors
from diffsynth.errors import InvalidRequest, listed, printable
from diffsynth.lora.pieces import Piece, Pieces, multiplied, to_theirs
from diffsynth.lora.spellings import FORMATS, NAMES, Format, format_named, is_xl, keys_of, role
from diffsynth.types import StateDict, TensorSpec

logger = logging.getLogger(__name__)

WEIGHTS, TABLE = "adapter_model.safetensors", "adapter_config.json"
SETTINGS = "lora_adapter_metadata"  # what Diffusers calls peft's settings in a header
FOLDED = "diffsynth_lora_folded"  # alpha and dtype of what was multiplied, for the way back: key of ``up`` → both


@dataclass(frozen=True, eq=False)
class NetworkChanges:
    """The changes of one network.

    Args:
        family: its kind.
        config: its sizes.
        pieces: our name of a weight, such as ``blocks.0.self_attn.qkv.weight`` → the changes of its rows.
    """

    family: ModelFamily
    config: Any
    pieces: Pieces


@dataclass
class Spelled:
    """A LoRA as a format has it: tensors, texts of the header, and the settings of peft."""

    tensors: StateDict = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    table: dict[str, Any] = field(default_factory=dict)


def save_lora(
    path: str | PathLike[str],
    networks: Sequence[NetworkChanges],
    to: str = "peft",
    *,
    xl: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a LoRA.

    Args:
        path: a safetensors file, or with ``to="peft"`` a folder; files in it are replaced, each in one step.
        networks: the changes of each network.
        to: the format: peft, diffusers, diffusers-old, kohya, diffsynth, comfyui or original.
        xl: the networks are of SDXL though nothing of them shows it, as its first text encoder alone.
        metadata: further texts for the header.

    Returns:
        The path.

    Raises:
        InvalidRequest: the format cannot say what changes; the message says why.
        OSError: it cannot be written.
    """
    target = checked_path(path, to)
    spelled = spell(networks, to, xl=xl)
    spec = {key: TensorSpec(tuple(tensor.shape), tensor.dtype) for key, tensor in spelled.tensors.items()}
    header = {**(metadata or {}), **spelled.header}
    if not spelled.table:
        return save_tensors(target, spec, spelled.tensors.items(), header)
    save_tensors(target / WEIGHTS, spec, spelled.tensors.items(), header)
    with replacing(target / TABLE) as temporary:
        temporary.write_text(json.dumps(spelled.table, indent=2) + "\n", "utf-8")
    return target


def checked_path(path: str | PathLike[str], to: str) -> Path:
    """Return a path that a format can be written to.

    Raises:
        InvalidRequest: there is no such format, or it is written as a folder, or as a file.
    """
    target, folder = Path(path), format_named(to).alpha == "table"
    is_file = target.suffix.lower() == ".safetensors"
    if folder and (is_file or target.is_file()):
        raise InvalidRequest(f"{to} is a folder with {WEIGHTS} and {TABLE}; {printable(target, 300)} is a file's name.")
    if not folder and not is_file:
        raise InvalidRequest(f"{to} is written as safetensors; call it {printable(target, 300)}.safetensors.")
    return target


def spell(networks: Sequence[NetworkChanges], to: str, *, xl: bool = False) -> Spelled:
    """Return the changes of networks as a format has them; see ``save_lora``.

    Raises:
        InvalidRequest: the format cannot say them.
    """
    kind = format_named(to)
    xl = xl or any(is_xl(network.family, network.config) for network in networks)
    if kind.only == "one network" and len(networks) > 1:
        families = listed([network.family.name for network in networks])
        raise InvalidRequest(f"{to} holds the changes of one network, not of {families}. Take diffusers or kohya.")
    result, folded = Spelled(), dict[str, tuple[float, str]]()
    for network in networks:
        names = NAMES.get(role(network.family, network.config, xl=xl), {})
        if to not in names:
            able = [name for name in names if len(networks) == 1 or not FORMATS[name].only]
            known = f"It can be written as {', '.join(able)}." if able else "No format has; load the LoRA as it is."
            raise InvalidRequest(f"{to} ({kind.text}) has no names for changes of {network.family.name}. {known}")
        outer, layout = names[to]
        layers = list(_layers(network, layout))
        _refuse_convolutions(layers, to, kind)
        for layer in layers:
            _add(layer, to, outer, result.tensors, folded)
        if kind.alpha == "table":
            result.table = _settings(layers) | {"base_model_name_or_path": None, "inference_mode": True}
        elif kind.alpha == "header" and any(layer.piece.alpha is not None for layer in layers):
            said = json.loads(result.header.get(SETTINGS, "{}"))
            said |= {f"{outer}{name}": value for name, value in _settings(layers).items()}
            result.header[SETTINGS] = json.dumps(said, indent=2, sort_keys=True)
    if folded:
        result.header[FOLDED] = json.dumps(folded)
    return result


@dataclass(frozen=True, eq=False)
class _Layer:
    """The change of one layer of theirs: its name, and the shape of its weight."""

    name: str
    shape: tuple[int, ...]
    piece: Piece

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """``up`` and ``down`` in the shapes that files have; those of a convolution are convolutions."""
        up, down = self.piece.up, self.piece.down
        if len(self.shape) == 4:
            return up[:, :, None, None], down.reshape(len(down), *self.shape[1:])
        return up, down


def _layers(network: NetworkChanges, layout: str) -> Iterable[_Layer]:
    """Yield the changes of a network as changes of the layers that a layout has."""
    chosen = network.family.layout(layout)
    ours = network.family.build_on_meta(network.config).state_dict()
    _check_shapes(network, ours)
    rows = {key: len(weight) if weight.ndim else 1 for key, weight in ours.items()}
    for step in Converter(chosen.rules(network.config)).from_ours(network.pieces):
        shapes = [tuple(tensor.shape) for tensor in step.to_theirs([ours[key].to("meta") for key in step.ours])]
        for key, shape, piece in zip(step.theirs, shapes, _theirs(step, network.pieces, rows), strict=True):
            if piece is not None:
                yield _Layer(chosen.prefix + key.removesuffix(".weight"), shape, piece)


def _theirs(step: Conversion, pieces: Pieces, rows: Mapping[str, int]) -> list[Piece | None]:
    try:
        return to_theirs(step, pieces, rows)
    except ValueError as error:
        raise InvalidRequest(f"the changes of {listed(step.theirs)} cannot be written exactly: {error}.") from error


def _check_shapes(network: NetworkChanges, ours: Mapping[str, Tensor]) -> None:
    for key, pieces in network.pieces.items():
        if key not in ours:
            raise InvalidRequest(f"{network.family.name} has no weight {printable(key)} that could change.")
        shape = tuple(ours[key].shape)
        for piece in pieces:
            if piece.end > shape[0] or piece.down.shape != (piece.rank, math.prod(shape[1:])):
                found = f"up {tuple(piece.up.shape)} from row {piece.first} on, down {tuple(piece.down.shape)}"
                raise InvalidRequest(f"a change of {key} {shape} has other sizes: {found}.")


def _refuse_convolutions(layers: Sequence[_Layer], to: str, kind: Format) -> None:
    found = [layer.name for layer in layers if len(layer.shape) == 4]
    if found and not kind.convolutions:
        raise InvalidRequest(f"{to} ({kind.text}) cannot change convolutions: {listed(found)}.")


def _add(layer: _Layer, to: str, outer: str, tensors: StateDict, folded: dict[str, tuple[float, str]]) -> None:
    keys = keys_of(layer.name, to, outer)
    up, down = layer.halves
    alpha = layer.piece.alpha
    if alpha is not None and FORMATS[to].alpha == "nowhere":
        folded[keys.up] = alpha, str(up.dtype).removeprefix("torch.")
        up = _multiplied(layer, up)
    tensors |= {keys.up: up.contiguous(), keys.down: down.contiguous()}
    if FORMATS[to].alpha == "tensor" and (alpha is not None or to == "original"):
        value = float(layer.piece.rank) if alpha is None else alpha
        own = torch.tensor(value, dtype=up.dtype)
        tensors[keys.alpha] = own if float(own) == value else torch.tensor(value)


def _multiplied(layer: _Layer, up: Tensor) -> Tensor:
    """Return ``up`` times alpha over rank: in its own dtype if that is exact, else in float32."""
    product = multiplied(up, layer.piece.factor)
    if product is None:
        product = (up.double() * layer.piece.factor).float()
        logger.info("%s: alpha over rank is multiplied in and rounded to float32", layer.name)
    return product


def _settings(layers: Sequence[_Layer]) -> dict[str, Any]:
    """Return what peft needs to know, and reads in ``adapter_config.json``."""
    alphas = {layer.name: layer.piece.rank if layer.piece.alpha is None else layer.piece.alpha for layer in layers}
    ranks = {layer.name: layer.piece.rank for layer in layers}
    return {
        "peft_type": "LORA",
        "r": _usual(ranks),
        "lora_alpha": _number(_usual(alphas)),
        "rank_pattern": _pattern(ranks),
        "alpha_pattern": {name: _number(value) for name, value in _pattern(alphas).items()},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _usual(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _pattern(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nothing if all values are one, else all, longer names first: the first that ends a name counts."""
    if len(set(values.values())) == 1:
        return {}
    return dict(sorted(values.items(), key=lambda each: -len(each[0])))


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else float(value)
