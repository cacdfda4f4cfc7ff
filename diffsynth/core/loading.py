"""Build a network on the meta device and give it the tensors of a file.

Only the tensors that the network needs are read. A tensor that already has the dtype and device stays a view of
the mapped file, any other is converted one at a time, so there are never two copies of the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.core.convert import Conversion, Converter
from diffsynth.core.registry import Identified
from diffsynth.errors import StateDictMismatch, UnsupportedCheckpoint, listed
from diffsynth.types import StateDict

logger = logging.getLogger(__name__)


@runtime_checkable
class NeedsFinishing(Protocol):
    """A module that has to put itself in order after its weights were assigned, for example tie two of them."""

    def after_load(self) -> None:
        """Restore what assigning weights to a module on the meta device leaves open."""


def load_network(
    found: Identified, checkpoint: Checkpoint, *, dtype: torch.dtype | None, device: torch.device
) -> tuple[nn.Module, frozenset[int]]:
    """Build one network and fill it from its file.

    Args:
        found: what the file was recognised as.
        checkpoint: the opened file.
        dtype: of every floating-point weight; None keeps what the file has.
        device: where the weights go.

    Returns:
        The module, in evaluation mode, without gradients; and the addresses of those weights that are views of the
        mapped file.

    Raises:
        StateDictMismatch: keys or shapes are not those the config demands; nothing was read.
    """
    module = found.family.build_on_meta(found.config)
    ours = module.state_dict()
    steps = Converter(found.layout.rules(found.config)).from_ours(ours)
    check_header(found, checkpoint, ours)
    state: StateDict = {}
    views: set[int] = set()
    overflowed: dict[str, int] = {}
    for step in steps:
        tensors, mapped, infinite = _read(step, checkpoint, found.prefix, dtype, device)
        state.update(tensors)
        views |= mapped
        if infinite:
            overflowed[" + ".join(found.prefix + key for key in step.theirs)] = infinite
    checkpoint.check_unchanged()
    if overflowed:
        logger.warning(
            "%s: %d values are too large for float16 and became infinite, in %s. Load it with bfloat16 or float32.",
            checkpoint.path, sum(overflowed.values()), listed(f"{key} ({n})" for key, n in overflowed.items()),
        )  # fmt: skip
    module.load_state_dict(state, strict=True, assign=True)
    if isinstance(module, NeedsFinishing):
        with torch.random.fork_rng(devices=()):  # what it builds draws numbers that the caller's seed did not mean
            module.after_load()
    module.to(device)
    return module.eval().requires_grad_(requires_grad=False), frozenset(views)


def _read(
    step: Conversion, checkpoint: Checkpoint, prefix: str, dtype: torch.dtype | None, device: torch.device
) -> tuple[StateDict, set[int], int]:
    """Return the tensors of one conversion, the addresses of views of the file, and how many values overflowed."""
    keys = [prefix + key for key in step.theirs]
    read = [checkpoint[key] for key in keys]
    converted = step.to_ours(read)
    tied = len(converted) > 1 and all(tensor is converted[0] for tensor in converted)
    distinct = converted[: 1 if tied else None]
    placed = [_placed(tensor, dtype, device) for tensor in distinct]
    infinite = sum(_overflowed(before, after) for before, after in zip(distinct, placed, strict=True))
    memory = {address(tensor) for tensor in read} if checkpoint.mapped else set()
    views = memory & {address(tensor) for tensor in placed}
    for key in keys:  # a view finds its pages in the file again when it is used
        checkpoint.forget(key)
    return dict(zip(step.ours, placed * len(step.ours) if tied else placed, strict=True)), views, infinite


def address(tensor: Tensor) -> int:
    """Return where the memory begins that a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def _placed(tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=wanted).contiguous()


def _overflowed(before: Tensor, after: Tensor) -> int:
    """Count the values that were finite and are infinite in float16."""
    narrowed = after.dtype is torch.float16 and before.dtype in (torch.bfloat16, torch.float32, torch.float64)
    if not narrowed or not before.numel():
        return 0
    low, high = (float(value) for value in torch.aminmax(before))  # needs no memory; NaN if there is one
    if max(-low, high) <= torch.finfo(torch.float16).max:
        return 0
    return int(torch.isinf(after).sum()) - int(torch.isinf(before).sum())


def check_header(
    found: Identified, checkpoint: Checkpoint, ours: Mapping[str, Tensor], *, like: Path | None = None
) -> None:
    """Compare the keys, shapes and kinds of number of a file with what a module needs, before anything is read.

    Args:
        found: what the file was recognised as.
        checkpoint: the opened file.
        ours: the state dict of the module, on the meta device.
        like: the file that the module's sizes were taken from, if it is another one, for the message.

    Raises:
        StateDictMismatch: with the file's own keys.
        UnsupportedCheckpoint: weights are whole or complex numbers.
    """
    converter = Converter(found.layout.rules(found.config))
    needed = {found.prefix + key: tensor for key, tensor in converter.to_theirs(ours).items()}
    expected = {key: tuple(tensor.shape) for key, tensor in needed.items()}
    inside = {key for key in found.keys - found.beside if not converter.drops(key[len(found.prefix) :])}
    missing = [key for key in expected if key not in checkpoint.header]
    unexpected = sorted(inside - expected.keys())
    shapes = {
        key: (shape, checkpoint.header[key].shape)
        for key, shape in expected.items()
        if key in checkpoint.header and checkpoint.header[key].shape != shape
    }
    if missing or unexpected or shapes:
        name = f"{found.family.name} (layout {found.layout.name!r})" + (f" of the sizes in {like}" if like else "")
        raise StateDictMismatch(checkpoint.path, name, missing=missing, unexpected=unexpected, shapes=shapes)
    strange = [
        f"{key} ({str(checkpoint.header[key].dtype).removeprefix('torch.')})"
        for key, tensor in needed.items()
        if tensor.is_floating_point() and not checkpoint.header[key].dtype.is_floating_point
    ]
    if strange:
        problem = f"holds {len(strange)} weights of {found.family.name} that are no floating-point numbers: "
        remedy = "Quantised weights are not read; give a file in float16, bfloat16 or float32."
        raise UnsupportedCheckpoint(checkpoint.path, problem + listed(strange), remedy)
