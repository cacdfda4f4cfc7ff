"""Merge the weights of two or three files into a new one, with the recipe in its header."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from diffsynth import __version__, models
from diffsynth.core.blend import BlendWeights
from diffsynth.core.checkpoint import Checkpoint, open_checkpoint
from diffsynth.core.digest import sha256_of
from diffsynth.core.merging import Merge
from diffsynth.core.pairing import Source
from diffsynth.core.placement import floating_dtype
from diffsynth.core.registry import Registry
from diffsynth.core.saving import save_tensors
from diffsynth.errors import InvalidRequest, listed

logger = logging.getLogger(__name__)

AnyPath = str | PathLike[str]
RECIPE = "merge"  # the name of the recipe in the header


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged file and what became of the first one's content.

    Args:
        path: the new file.
        merged: labels of the networks that all files hold.
        kept: labels of those that are the first file's own.
        beside: keys that are no weights of a network we know, and are the first file's own too.
    """

    path: Path
    merged: tuple[str, ...]
    kept: tuple[str, ...]
    beside: tuple[str, ...]


def merge_models(
    first: AnyPath,
    second: AnyPath,
    output: AnyPath,
    *,
    weight: float,
    difference: AnyPath | None = None,
    blocks: Mapping[str, float] | None = None,
    torch_dtype: torch.dtype | None = None,
    kind: str | None = None,
) -> Merged:
    """Write ``first * (1 - weight) + second * weight``, or ``first + weight * (second - difference)``.

    Every network that all the files hold is merged, whatever its family and whatever the spelling in each file. The
    new file has the names of the first one, and the networks and other tensors of it that the others lack. It is
    computed in float32, one tensor at a time, so that files larger than the memory can be merged.

    Args:
        first: a file, or a folder with one; any format that the manager loads.
        second: what it is merged with.
        output: the safetensors file to write; replaced in one step if it exists.
        weight: how much of the second; numbers below 0 and above 1 go beyond the two.
        difference: what the second is taken as the difference to, usually the model that it was trained from.
        blocks: other weights for parts of a network: pattern → weight. A pattern is the name of a block or a tensor in
            our modules, such as ``mid_block`` or ``down_blocks.*.attentions``; it may begin with the family
            (``unet.mid_block``, or ``clip`` for all of it) or with the prefix in the first file. ``*`` stands for
            anything; of several that fit, the last one counts.
        torch_dtype: of the new file's weights; None keeps what the first has.
        kind: a family's name, to merge only that and keep the rest.

    Returns:
        The new file, and which networks were merged and which kept.

    Raises:
        CheckpointError: a file cannot be used, or the networks differ; the message names file, key and shapes.
        InvalidRequest: a weight is no number, a pattern fits nothing, or the output is one of the inputs.
        NonFiniteResult: NaN or infinity would be written.
        OSError: the file cannot be written.
    """
    weights = BlendWeights(default=weight, blocks=dict(blocks or {}))
    dtype = floating_dtype(torch_dtype)
    registry, path = Registry.collect(models), Path(output)
    checkpoints = [open_checkpoint(each) for each in (first, second, difference) if each is not None]
    _refuse_output(path, checkpoints)
    sources = [Source.of(checkpoint, registry, kind) for checkpoint in checkpoints]
    merge = Merge(sources[0], sources[1:], weights, dtype)
    recipe = json.dumps(_recipe(checkpoints, weights, merge), ensure_ascii=False)
    save_tensors(path, merge.header, merge.tensors(), {RECIPE: recipe})
    logger.info("merged %s into %s", listed(merge.merged), path)
    return Merged(path=path, merged=tuple(merge.merged), kept=tuple(merge.kept), beside=tuple(merge.beside))


def _recipe(checkpoints: list[Checkpoint], weights: BlendWeights, merge: Merge) -> dict[str, Any]:
    roles = ("first", "second", "difference")
    return {
        "method": "add difference" if len(checkpoints) == 3 else "weighted sum",
        "weight": weights.default,
        "blocks": dict(weights.blocks),
        "inputs": {
            role: [{"name": file.name, "sha256": sha256_of(file)} for file in checkpoint.files]
            for role, checkpoint in zip(roles, checkpoints, strict=False)
        },
        "merged": merge.merged,
        "kept": merge.kept,
        "version": f"diffsynth {__version__}",
    }


def _refuse_output(path: Path, checkpoints: list[Checkpoint]) -> None:
    """Make sure that a merged file overwrites none of its inputs and says by its name what it is.

    Raises:
        InvalidRequest: it does not.
    """
    if path.suffix.lower() != ".safetensors":
        raise InvalidRequest(f"a merged file is written as safetensors; call it {path.with_suffix('.safetensors')}.")
    inputs = [file for checkpoint in checkpoints for file in checkpoint.files]
    if path.exists() and any(path.samefile(file) for file in inputs):
        raise InvalidRequest(f"{path} is one of the files to merge; give the result another name.")
