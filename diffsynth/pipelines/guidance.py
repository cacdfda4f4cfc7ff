"""Classifier-free guidance and its relatives, written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A part of the image with a prompt of its own.

    ``mask`` is (1, 1, H, W) in latent pixels, 0 to 1; ``scale`` its weight against the prompt of the whole image.
    """

    mask: Tensor
    scale: float


@dataclass(frozen=True)
class Guidance:
    """How predictions for several prompts become one.

    Args:
        scale: weight of the prompt against the negative prompt (arXiv 2207.12598); None asks only the prompt.
        rescale: 0 to 1, how far the guided prediction is brought back to the spread of the prompt's own
            (arXiv 2305.08891, section 3.4).
        perturbed_scale: weight against the prediction with perturbed self-attention (arXiv 2403.17377); 0 is off.
        regions: parts of the image with prompts of their own; they act on the prompt's side only.
    """

    scale: float | None = None
    rescale: float = 0.0
    perturbed_scale: float = 0.0
    regions: Sequence[Region] = ()

    def combine(
        self, positive: Tensor, *, negative: Tensor | None, perturbed: Tensor | None, regional: Sequence[Tensor]
    ) -> Tensor:
        """Return the guided prediction; every argument is (B, C, H, W), as is the result."""
        positive = self._mix_regions(positive, regional)
        guided = positive
        if negative is not None and self.scale is not None:
            guided = negative + self.scale * (positive - negative)
        if perturbed is not None:
            guided = guided + self.perturbed_scale * (positive - perturbed)
        if self.rescale > 0 and guided is not positive:
            guided = torch.lerp(guided, guided * (_spread(positive) / _spread(guided)), self.rescale)
        return guided

    def _mix_regions(self, positive: Tensor, regional: Sequence[Tensor]) -> Tensor:
        if not regional:
            return positive
        weights = [region.scale * region.mask for region in self.regions]
        mixed = sum((w * v for w, v in zip(weights, regional, strict=True)), start=positive)
        return mixed / sum(weights, start=torch.ones_like(weights[0]))


def _spread(prediction: Tensor) -> Tensor:
    """Return the standard deviation of each image's prediction, (B, 1, 1, 1)."""
    return prediction.flatten(1).std(dim=1).view(-1, 1, 1, 1)
