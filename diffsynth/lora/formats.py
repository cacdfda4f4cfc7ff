"""The spellings of LoRA files, told by the structure of their keys.

Whatever wrote a file, a layer's change is ``up @ down``, times alpha over rank. ``up`` and ``down`` are called
lora_B and lora_A by peft, newer Diffusers, DiffSynth and ComfyUI; lora_up and lora_down by kohya, whose names have
underscores in the place of dots; and other things by older Diffusers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.errors import CorruptCheckpoint, UnknownCheckpoint, UnsupportedCheckpoint, listed, printable

WAYS = {"A": "down", "B": "up"}
_PEFT = re.compile(r"(?P<name>.+)\.lora_(?P<way>[AB])(?:\.[^.]+)?\.weight")
_KOHYA = re.compile(r"(?P<name>.+)\.lora_(?P<way>down|up|mid)\.weight")
_DOTTED = re.compile(r"(?P<name>.+)(?P<mark>_lora|\.lora|\.lora_linear_layer)\.(?P<way>down|up)\.weight")
_ALPHA = re.compile(r"(?P<name>.+?)(?P<mark>_lora|\.lora|\.lora_linear_layer|\.weight)?\.alpha")
_REGEX = re.compile(r"[^\w.^$\\]")
OTHER_METHODS = {
    "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "LoRA of embeddings", "diff_b": "differences in full", "boft_": "BOFT", "ia3_": "IA3",
}  # fmt: skip
# What surrounds the name of a layer, written with underscores; which network is meant is told by name and shape.
_OUTER = re.compile(
    r"(?:lora_|lycoris_)?(?:unet_|te\d?_|text_encoders_\w+?_transformer_|text_encoder_(?:\d_)?"
    r"|clip_[a-z]_(?:transformer_)?|transformer_|(?:model_)?diffusion_model_)|base_model_model_|lora_|lycoris_|model_"
)


def squashed(name: str) -> str:
    """Return a name with one underscore for each dot or underscore, since files differ in them."""
    return re.sub(r"[._]+", "_", name)


@dataclass(frozen=True)
class Pair:
    """The change of one layer as it lies in a file.

    Args:
        name: of the layer, as the file has it.
        up: the key of the outer matrix.
        down: the key of the inner one.
        mid: the key of a kernel between them, or empty.
        shape: of the weight that it changes; that of a convolution has four sizes, that of a linear layer may.
        rank: of the change.
        alpha: what the change is multiplied by, times rank; None if the file does not say.
        dotted: whether ``up`` and ``down`` are levels of their own, as older Diffusers and the first web page of
            one family had them.
    """

    name: str
    up: str
    down: str
    mid: str
    shape: tuple[int, ...]
    rank: int
    alpha: float | None
    dotted: bool

    @property
    def places(self) -> tuple[str, list[str]]:
        """What surrounds the layer's name, and the names it may have, the longest first."""
        rest = squashed(self.name)
        names = [rest]
        while (outer := _OUTER.match(rest)) and outer.end() < len(rest):
            rest = rest[outer.end() :]
            names.append(rest)
        return names[0][: len(names[0]) - len(rest)], names

    def factors(self, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
        """Read ``up`` (rows, rank) and ``down`` (rank, columns)."""
        up, down = checkpoint[self.up].flatten(1), checkpoint[self.down]
        if self.mid:
            down = torch.einsum("rshw,si->rihw", checkpoint[self.mid].float(), down.flatten(1).float())
        return up, down.flatten(1)


def read_pairs(checkpoint: Checkpoint) -> tuple[list[Pair], list[str]]:
    """Return the changes that a file holds, and keys that are not part of any; no matrix is read.

    Raises:
        UnknownCheckpoint: it is no LoRA.
        UnsupportedCheckpoint: it changes layers in another way, which is named.
        CorruptCheckpoint: a matrix lacks its other half, or their shapes do not go together.
    """
    for mark, method in OTHER_METHODS.items():
        if found := [key for key in checkpoint.header if re.search(rf"(^|[._]){mark}", key)]:
            problem = f"is {method}, not a plain LoRA: {listed(found, 3)}"
            raise UnsupportedCheckpoint(checkpoint.path, problem, "Merge it with the program that made it.")
    layers: dict[str, dict[str, str]] = {}
    alphas: dict[str, str] = {}
    strays: list[str] = []
    dotted: set[str] = set()
    for key in checkpoint.header:
        if match := _PEFT.fullmatch(key) or _KOHYA.fullmatch(key) or _DOTTED.fullmatch(key):
            parts = match.groupdict()
            name = _modern(parts["name"], parts.get("mark", ""))
            dotted |= {name} if "mark" in parts else set()
            way = WAYS.get(parts["way"], parts["way"])
            if layers.setdefault(name, {}).setdefault(way, key) != key:
                raise CorruptCheckpoint(checkpoint.path, f"has two matrices {way!r} for {printable(name, 200)}", "")
        elif match := _ALPHA.fullmatch(key):
            alphas[squashed(_modern(match["name"], match["mark"] or ""))] = key
        else:
            strays.append(key)
    if not layers:
        raise UnknownCheckpoint(
            checkpoint.path,
            f"holds no LoRA, but {len(checkpoint.header)} tensors such as {listed(checkpoint.header, 3)}",
            "A network is loaded with load_model.",
        )
    said = _settings(checkpoint, any("lora_A" in parts.get("down", "") for parts in layers.values()))
    own = {name: _alpha_of(name, alphas, dotted=name in dotted) for name in layers}
    strays += [key for key in alphas.values() if key not in own.values()]
    pairs = [_pair(checkpoint, name, parts, own[name], name in dotted) for name, parts in layers.items()]
    return [_told(pair, said) for pair in pairs], strays


def _alpha_of(name: str, alphas: Mapping[str, str], *, dotted: bool) -> str | None:
    """Return the key of a layer's alpha; one family's first web page has it under the bare name of the weight."""
    flat = squashed(name)
    return alphas.get(flat) or (alphas.get(flat.removeprefix("unet_")) if dotted else None)


def _modern(name: str, mark: str) -> str:
    """Return a layer's name where the oldest files of Diffusers name what computed it."""
    if mark != "_lora":
        return name
    if ".processor." in name:
        return re.sub(r"\.to_out$", ".to_out.0", name.replace(".processor.", "."))
    return re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", name)


def _pair(checkpoint: Checkpoint, name: str, parts: Mapping[str, str], alpha: str | None, dotted: bool) -> Pair:
    shown = printable(name, 200)
    if gone := [way for way in ("up", "down") if way not in parts]:
        raise CorruptCheckpoint(checkpoint.path, f"the layer {shown} has no matrix {gone[0]!r}", "Get the file again.")
    shapes = {way: checkpoint.header[key].shape for way, key in parts.items()}
    strange = [key for key in parts.values() if not checkpoint.header[key].dtype.is_floating_point]
    if strange:
        raise UnsupportedCheckpoint(checkpoint.path, f"{listed(strange)} are no floating-point numbers", "")
    up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
    whole = {len(up), len(down)} <= {2, 4} and up[2:] in ((), (1, 1)) and up[1] == (mid or down)[0]
    if mid is not None:
        whole = whole and len(mid) == 4 and mid[1] == down[0] and down[2:] in ((), (1, 1))
    if not whole or not up[1]:
        raise CorruptCheckpoint(
            checkpoint.path, f"the matrices of {shown} do not go together: up {up}, down {down}" +
            (f", mid {mid}" if mid else ""), "Get the file again.",
        )  # fmt: skip
    value = None if alpha is None else _number(checkpoint, alpha)
    shape = (up[0], down[1], *(mid or down)[2:])
    return Pair(name, parts["up"], parts["down"], parts.get("mid", ""), shape, up[1], value, dotted)


def _number(checkpoint: Checkpoint, key: str) -> float:
    values = checkpoint[key].flatten()
    if len(values) != 1 or not math.isfinite(float(values[0])):
        raise CorruptCheckpoint(checkpoint.path, f"{printable(key, 200)} is not one finite number", "")
    return float(values[0])


def _settings(checkpoint: Checkpoint, peft: bool) -> dict[str, Any]:
    """Return what the file's header, or peft's ``adapter_config.json`` beside it, says of alpha."""
    if text := checkpoint.metadata.get("lora_adapter_metadata"):
        return _table(checkpoint.path, text)
    beside = checkpoint.files[0].parent / "adapter_config.json"
    if peft and checkpoint.files[0].stem.startswith("adapter_model") and beside.is_file():
        return _table(beside, beside.read_bytes())
    return {}


def _table(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(path, "its settings of the LoRA are no JSON", "") from error
    if not isinstance(table, dict):
        raise CorruptCheckpoint(path, "its settings of the LoRA are no table", "")
    for name, value in table.items():
        if name.endswith("use_dora") and value:
            raise UnsupportedCheckpoint(path, "says that the file is DoRA, not a plain LoRA", "")
        if name.endswith("alpha_pattern") and value:
            _check_patterns(path, value)
        if name.endswith("lora_alpha"):
            _check_alpha(path, value)
    return table


def _check_patterns(path: Path, patterns: Any) -> None:
    if not isinstance(patterns, dict):
        raise CorruptCheckpoint(path, "its alpha_pattern is no table", "")
    if strange := [text for text in patterns if _REGEX.search(text)]:
        problem = f"gives alpha by patterns that are not names of layers: {listed(strange)}"
        raise UnsupportedCheckpoint(path, problem, "")
    for value in patterns.values():
        _check_alpha(path, value)


def _check_alpha(path: Path, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise CorruptCheckpoint(path, f"alpha is {printable(repr(value))}, not a finite number", "")


def _told(pair: Pair, said: Mapping[str, Any]) -> Pair:
    """Complete a pair's alpha from settings, whose names may begin with a network's, such as ``unet.``."""
    if pair.alpha is not None or not said:
        return pair
    outer = next((name.rpartition(".")[0] for name in said if _begins(pair.name, name.rpartition(".")[0])), "")
    own = {name.rpartition(".")[2]: value for name, value in said.items() if name.rpartition(".")[0] == outer}
    alpha = own.get("lora_alpha")
    for layer, value in (own.get("alpha_pattern") or {}).items():
        plain = layer.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if f".{pair.name}".endswith(f".{plain}"):
            alpha = value
            break
    if alpha is None:
        return pair
    if own.get("use_rslora"):
        alpha *= math.sqrt(pair.rank)
    return replace(pair, alpha=float(alpha))


def _begins(name: str, outer: str) -> bool:
    return bool(outer) and name.startswith(f"{outer}.")
