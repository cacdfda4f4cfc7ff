"""One process, or several that train together, each on its own device, through the accelerate library."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffsynth.core.placement import resolve_device
from diffsynth.errors import InvalidRequest


@dataclass(frozen=True)
class Workers:
    """The processes of a run, seen from one of them.

    Args:
        device: of this process.
        rank: number of this process; 0 writes the record and the files.
        count: processes.
        accelerator: how they talk, if there are several.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def average_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""
        if self.accelerator is None:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = self.accelerator.reduce(torch.cat([each.flatten() for each in gradients]), reduction="mean")
        for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes."""
        if self.accelerator is None:
            return values
        mean: torch.Tensor = self.accelerator.reduce(values, reduction="mean")
        return mean

    def any(self, here: bool) -> bool:
        """Whether something holds in any of the processes."""
        if self.accelerator is None:
            return here
        return bool(self.average(torch.tensor(float(here), device=self.device)) > 0)

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def find_workers(device: str) -> Workers:
    """Return the processes that were started together, by ``accelerate launch`` or ``torchrun``; else only this one.

    Args:
        device: where to train; empty takes the best there is. Several processes have a device each, or share the CPU.

    Raises:
        InvalidRequest: several were started, but the library is not installed; or the device does not exist.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Workers(resolve_device(device or None))
    try:
        library: Any = importlib.import_module("accelerate")
    except ImportError as error:
        raise InvalidRequest("several devices need the accelerate library: pip install accelerate.") from error
    accelerator = library.Accelerator(cpu=device == "cpu")
    return Workers(accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator)
