"""Build a network on the meta device and give it the tensors of a file.

Only the tensors that the network needs are read. A tensor that already has the dtype and device stays a view of
the mapped file, any other is converted one at a time, so there are never two copies of the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.core.convert import Conversion, Converter
from diffsynth.core.registry import Identified
from diffsynth.errors import StateDictMismatch
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
    for step in steps:
        tensors, mapped = _read(step, checkpoint, found.prefix, dtype, device)
        state.update(tensors)
        views |= mapped
    checkpoint.check_unchanged()
    module.load_state_dict(state, strict=True, assign=True)
    if isinstance(module, NeedsFinishing):
        with torch.random.fork_rng(devices=()):  # what it builds draws numbers that the caller's seed did not mean
            module.after_load()
    module.to(device)
    return module.eval().requires_grad_(requires_grad=False), frozenset(views)


def _read(
    step: Conversion, checkpoint: Checkpoint, prefix: str, dtype: torch.dtype | None, device: torch.device
) -> tuple[StateDict, set[int]]:
    """Return the tensors of one conversion, and the addresses of those that are views of the file."""
    keys = [prefix + key for key in step.theirs]
    read = [checkpoint[key] for key in keys]
    converted = step.to_ours(read)
    tied = len(converted) > 1 and all(tensor is converted[0] for tensor in converted)
    placed = [_placed(tensor, dtype, device) for tensor in converted[: 1 if tied else None]]
    memory = {address(tensor) for tensor in read} if checkpoint.mapped else set()
    views = memory & {address(tensor) for tensor in placed}
    for key in keys:  # a view finds its pages in the file again when it is used
        checkpoint.forget(key)
    return dict(zip(step.ours, placed * len(step.ours) if tied else placed, strict=True)), views


def address(tensor: Tensor) -> int:
    """Return where the memory begins that a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def _placed(tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=wanted).contiguous()


def check_header(found: Identified, checkpoint: Checkpoint, ours: Mapping[str, Tensor]) -> None:
    """Compare the keys and shapes of a file with those that a module needs, before anything is read.

    Args:
        found: what the file was recognised as.
        checkpoint: the opened file.
        ours: the state dict of the module, on the meta device.

    Raises:
        StateDictMismatch: with the file's own keys.
    """
    converter = Converter(found.layout.rules(found.config))
    expected = {found.prefix + key: tuple(tensor.shape) for key, tensor in converter.to_theirs(ours).items()}
    inside = {key for key in found.keys - found.beside if not converter.drops(key[len(found.prefix) :])}
    missing = [key for key in expected if key not in checkpoint.header]
    unexpected = sorted(inside - expected.keys())
    shapes = {
        key: (shape, checkpoint.header[key].shape)
        for key, shape in expected.items()
        if key in checkpoint.header and checkpoint.header[key].shape != shape
    }
    if missing or unexpected or shapes:
        name = f"{found.family.name} (layout {found.layout.name!r})"
        raise StateDictMismatch(checkpoint.path, name, missing=missing, unexpected=unexpected, shapes=shapes)
