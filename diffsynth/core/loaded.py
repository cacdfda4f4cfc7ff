"""A network in memory, with all that is known of where it came from."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.core.family import ModelFamily
from diffsynth.core.loading import address
from diffsynth.core.registry import Identified
from diffsynth.errors import CheckpointError, InvalidRequest

M = TypeVar("M", bound=nn.Module)


class Holder(Protocol):
    """Who keeps networks in memory until it is told to forget them."""

    def forget(self, entry: LoadedModel[Any]) -> None:
        """Keep a network no longer."""


class Adapter(Protocol):
    """What changes a network without being in its file, such as a LoRA."""

    @property
    def checkpoint(self) -> Checkpoint:
        """Its file."""

    def describe(self) -> dict[str, str | float | bool]:
        """Return the settings that the change depends on now; ``kind`` is what it is."""


@dataclass(frozen=True, eq=False)
class LoadedModel(Generic[M]):
    """A network in memory and where it came from.

    Args:
        module: the network.
        found: what its file was recognised as.
        checkpoint: the file.
        dtype: of its floating-point weights, as it was loaded.
        views: addresses of the weights that were views of the mapped file when it was loaded.
        holder: who keeps it, if anybody does.
        users: the pipelines that draw with it.
        adapters: what changes it, in the order in which that came.
        was_on: where its weights were, if it has none any more.
    """

    module: M
    found: Identified
    checkpoint: Checkpoint
    dtype: torch.dtype
    views: frozenset[int] = frozenset()
    holder: weakref.ref[Holder] | None = None
    users: weakref.WeakSet[object] = field(default_factory=weakref.WeakSet)
    adapters: list[Adapter] = field(default_factory=list)
    was_on: torch.device | None = None

    @property
    def mapped(self) -> bool:
        """Whether weights are still views of the file; they are not once they were converted or moved."""
        return bool(self.views) and any(address(weight) in self.views for weight in self.module.parameters())

    @property
    def family(self) -> ModelFamily:
        """The kind of network."""
        return self.found.family

    @property
    def config(self) -> Any:
        """Its sizes."""
        return self.found.config

    @property
    def path(self) -> Path:
        """The file, or the folder, that it was loaded from."""
        return self.checkpoint.path

    @property
    def device(self) -> torch.device:
        """Where its weights are, or were before they were given back."""
        return self.was_on or next(self.module.parameters()).device

    @property
    def nbytes(self) -> int:
        """Bytes of its weights in memory, those shared under two names counted once."""
        return sum(tensor.nbytes for tensor in self.module.parameters() if not tensor.is_meta)

    @property
    def label(self) -> str:
        """Its kind and its file, for messages."""
        return f"{self.family.name} from {self.path}" + (f" under {self.found.prefix!r}" if self.found.prefix else "")

    def check_unchanged(self) -> None:
        """Make sure that weights which are views of a file are what they were when it was opened.

        Raises:
            CorruptCheckpoint: the file was changed in place since.
        """
        if self.mapped:
            self.checkpoint.check_unchanged()

    def without_weights(self) -> LoadedModel[M]:
        """Return all that is known of it, with a network of its sizes that has no weights and refuses to be run."""
        twin: Any = self.family.build_on_meta(self.config)
        twin.requires_grad_(requires_grad=False).register_forward_pre_hook(partial(_refuse, self.label))
        users: weakref.WeakSet[object] = weakref.WeakSet()
        left = replace(self, module=twin, views=frozenset(), holder=None, users=users, was_on=self.device)
        weakref.finalize(self.module, left.forget_pages).atexit = False  # the checkpoint keeps the file mapped
        return left

    def forget_pages(self) -> None:
        """Give back the memory of its file's pages, if that is mapped; what was written into the weights is lost."""
        for key in self.found.keys:
            self.checkpoint.forget(key)

    def comes_from(self, checkpoint: Checkpoint, found: Identified) -> bool:
        """Whether it is this network of this file, whichever way the file's path was written."""
        if (self.family, self.found.prefix) != (found.family, found.prefix):
            return False
        return _resolved(self.checkpoint) == _resolved(checkpoint)

    def is_current(self) -> bool:
        """Whether its files are still those that were opened."""
        try:
            self.checkpoint.check_unchanged()
        except CheckpointError:
            return False
        return True

    def answers_to(self, variant: str) -> bool:
        """Whether a variant means this network: path, file name with or without ending, prefix, or its version."""
        return self.found.answers_to(variant, self.path)


def _refuse(label: str, *_: Any) -> None:
    raise InvalidRequest(f"{label} has given its weights back, so it cannot be run; load it again.")


def _resolved(checkpoint: Checkpoint) -> list[Path]:
    return [file.resolve() for file in checkpoint.files]
