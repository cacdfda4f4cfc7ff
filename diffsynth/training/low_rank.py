"""Training a LoRA: thin matrices beside the layers of a denoiser that stays as it is (arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from diffsynth.core.convert import Converter
from diffsynth.core.family import ModelFamily
from diffsynth.errors import InvalidRequest, listed, printable
from diffsynth.lora.layers import Addition, Change, Strength
from diffsynth.lora.names import changeable
from diffsynth.lora.pieces import Piece
from diffsynth.lora.spellings import NAMES
from diffsynth.lora.writing import NetworkChanges, save_lora
from diffsynth.training.ensemble import Ensemble, Student
from diffsynth.training.kinds import LoRAConfig
from diffsynth.training.randomness import generator_for

FORMAT = "peft"
ATTENTION = {  # family → ends of the names of all projections around attentions
    "hunyuan_dit": ("Wqkv", "q_proj", "kv_proj", "out_proj"),
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
}


class Matrices(nn.Module):
    """The change of one layer: ``up @ down``.

    A new one changes nothing: ``up`` is zero, ``down`` random.

    Args:
        rows: of the layer's weight.
        columns: of the layer's weight.
        rank: of the change.
        generator: for ``down``.
    """

    def __init__(self, rows: int, columns: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(rows, rank))
        bound = 1 / math.sqrt(columns)
        self.down = nn.Parameter((2 * torch.rand(rank, columns, generator=generator) - 1) * bound)


class LowRank(Student):
    """A LoRA that learns on the denoiser of an ensemble; all of the ensemble is frozen.

    Args:
        ensemble: the networks; the changes are hooked to the denoiser's layers.
        config: settings.
        seed: of the new matrices.

    Raises:
        InvalidRequest: the denoiser has no such layers.
    """

    def __init__(self, ensemble: Ensemble, config: LoRAConfig, seed: int) -> None:
        super().__init__(ensemble)
        self.config = config
        self.freeze_ensemble()
        denoiser = ensemble.denoiser
        self.layers = choose_layers(denoiser, ensemble.family, config.layers)
        self.matrices = nn.ModuleDict()
        for ours in self.layers.values():
            layer: Any = denoiser.get_submodule(ours)
            rows, columns = layer.weight.flatten(1).shape
            own = Matrices(rows, columns, config.rank, generator_for(seed, "weights", "lora", ours))
            self.matrices[_key(ours)] = own
            change = Change(0, own.up, own.down, config.scale)
            layer.register_forward_hook(Addition(Strength(1.0), [change]))

    @property
    @override
    def networks(self) -> Mapping[str, nn.Module]:
        return {"lora": self.matrices}

    @override
    def save(self, folder: Path, dtype: torch.dtype, metadata: Mapping[str, str], *, complete: bool) -> None:
        """Write a folder as peft does; the base has its own files."""
        save_lora(folder, [self.changes(dtype)], FORMAT, metadata=metadata)

    def changes(self, dtype: torch.dtype) -> NetworkChanges:
        """Return what has been learnt, in a dtype."""
        pieces: dict[str, Sequence[Piece]] = {}
        for ours in self.layers.values():
            own: Any = self.matrices[_key(ours)]
            up, down = (half.detach().to("cpu", dtype, copy=True) for half in (own.up, own.down))
            pieces[f"{ours}.weight"] = [Piece(0, up, down, self.config.scale * self.config.rank)]
        denoiser: Any = self.ensemble.denoiser
        return NetworkChanges(self.ensemble.family, denoiser.config, pieces)

    @override
    def describe(self) -> dict[str, Any]:
        return {"base": self.base(), "layers": [*self.layers]}


def choose_layers(denoiser: nn.Module, family: ModelFamily, wanted: Sequence[str]) -> dict[str, str]:
    """Return layers of a denoiser: their names in published files → ours.

    Args:
        denoiser: the network.
        family: its family.
        wanted: ends of names in published files; empty takes the projections of all attentions.

    Raises:
        InvalidRequest: no layer has such a name.
    """
    config: Any = denoiser.config
    keys = [key for key in denoiser.state_dict() if changeable(denoiser, key)]
    rules = family.layout(NAMES[family.name][FORMAT][1]).rules(config)
    known = {
        step.theirs[0].removesuffix(".weight"): step.ours[0].removesuffix(".weight")
        for step in Converter(rules).from_ours(keys)
        if len(step.theirs) == len(step.ours) == 1
    }
    ends = wanted or ATTENTION[family.name]
    if unknown := [end for end in ends if not any(_ends(name, end) for name in known)]:
        near = [close for end in unknown for close in get_close_matches(end, known, n=1, cutoff=0.4)]
        hint = f" Did you mean {listed(near)}?" if near else f" It has layers such as {listed(known, 3)}."
        named = listed([printable(end) for end in unknown])
        raise InvalidRequest(f"lora.layers: {family.name} has no layer whose name ends in {named}.{hint}")
    return {name: ours for name, ours in known.items() if any(_ends(name, end) for end in ends)}


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _key(name: str) -> str:
    """Return a layer's name as a `ModuleDict` takes it."""
    return name.replace(".", "/")
