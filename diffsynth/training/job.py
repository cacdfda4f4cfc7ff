"""What the loop needs of a job: networks that learn, batches, a loss, samples, and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from diffsynth.training.pictures import Batch


@dataclass(frozen=True)
class Samples:
    """What a job shows of itself: a sheet of pictures, and figures such as a signal-to-noise ratio in dB."""

    sheet: Image.Image
    figures: Mapping[str, float]


class Job(Protocol):
    """A kind of training."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that learn, by name."""

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates of networks, as a share of the run's; 1 for those that are not named."""

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield the batches of these numbers, counted over all epochs."""

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss under the name "loss", and its parts, without gradient, under theirs.

        Args:
            batch: pictures and captions.
            generator: on the CPU; everything random comes from it.
        """

    def samples(self, count: int, seed: int) -> Samples:
        """Show what the networks do as they are."""

    def save(self, folder: Path, dtype: torch.dtype, metadata: Mapping[str, str], *, complete: bool) -> None:
        """Write the networks that learn; if ``complete``, also those that do not, so that the folder can draw."""

    def describe(self) -> dict[str, Any]:
        """Return facts for the record: sizes of the networks, the data's hash."""
