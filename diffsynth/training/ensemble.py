"""What training needs of the networks that draw together, whatever their family; and what of them learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from diffsynth.core.family import ModelFamily
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.training.buckets import Frame
from diffsynth.training.objective import Objective

Predict: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents (B, C, H, W) and timesteps (B,) → what the denoiser says, (B, C, H, W)."""


class Ensemble(Protocol):
    """A denoiser, what tells it of captions, and the autoencoder of its latents."""

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser."""

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, which is frozen."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """All networks by name; these two are called ``denoiser`` and ``autoencoder``."""

    @property
    def family(self) -> ModelFamily:
        """Of the denoiser."""

    @property
    def blocks(self) -> tuple[type[nn.Module], ...]:
        """Parts of the denoiser whose insides can be computed again on the way back."""

    @property
    def objective(self) -> Objective:
        """What the denoiser is asked for."""

    @property
    def latent_scale(self) -> float:
        """Latents of the autoencoder times this have unit variance."""

    @property
    def multiple(self) -> int:
        """What the sides of pictures must be multiples of."""

    @property
    def source(self) -> str:
        """The denoiser's file; empty for a new one."""

    def digest(self, name: str) -> str:
        """Return the hash of the files that the ``autoencoder``, or a ``denoiser`` that is not new, came from."""

    def keep(self, texts: Sequence[str], device: torch.device, megabytes: int) -> bool:
        """Keep the features of texts if they stay the same and there is room; return whether they are kept."""

    def told(self, texts: Sequence[str], frames: Sequence[Frame], size: tuple[int, int]) -> Predict:
        """Return the denoiser as it is told of captions.

        Args:
            texts: B captions.
            frames: where the B pictures come from.
            size: height and width of the latents.
        """


@dataclass(frozen=True)
class Hint:
    """What a network is shown of each picture beside its noisy latents.

    Args:
        name: of the method.
        of: pictures → what is shown of them, both (B, 3, H, W) uint8.
    """

    name: str
    of: Callable[[Tensor], Tensor]


class Student(ABC):
    """What learns: networks of an ensemble, or something small beside them.

    Args:
        ensemble: the networks.
    """

    hint: Hint | None = None

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    @property
    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """What learns, by name."""

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates, as a share of the run's; 1 for those that are not named."""
        return {}

    def told(
        self, texts: Sequence[str], frames: Sequence[Frame], size: tuple[int, int], hints: Tensor | None
    ) -> Predict:
        """Return the denoiser as it is told of captions and, if there are any, shown hints.

        Args:
            texts: B captions.
            frames: where the B pictures come from.
            size: height and width of the latents.
            hints: (B, C, H, W), scaled latents of what is shown; None for a student without a hint.
        """
        return self.ensemble.told(texts, frames, size)

    @abstractmethod
    def save(self, folder: Path, dtype: torch.dtype, metadata: Mapping[str, str], *, complete: bool) -> None:
        """Write what learns; if ``complete``, also all that it needs to draw and that has no file elsewhere."""

    def describe(self) -> dict[str, Any]:
        """Return facts for the record."""
        return {}

    def freeze_ensemble(self) -> None:
        """Have no network of the ensemble learn."""
        for module in self.ensemble.modules.values():
            module.requires_grad_(requires_grad=False).eval()

    def base(self) -> dict[str, str]:
        """Return name and hash of the file of a denoiser that stays as it is."""
        return {"file": Path(self.ensemble.source).name, "sha256": self.ensemble.digest("denoiser")}
