"""DDIM: deterministic first-order steps, with noise on request (arXiv 2010.02502)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import ClassVar

from typing_extensions import override

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.base import Grid, Mix, Scheduler, Update
from diffsynth.schedulers.betas import Level
from diffsynth.schedulers.spacing import Leading, Spacing


@dataclass(frozen=True, kw_only=True)
class DDIMScheduler(Scheduler):
    """DDIM, each step leading to the next timestep of the grid.

    With ``spacing=EndToEnd()`` this is DiffSynth's sampler, whose denoising strength shortens the range of timesteps
    and not their count; with ``Leading(steps_offset=1)``, the default, HunyuanDiT's own "ddim".

    Args:
        eta: share of the DDPM noise added back at each step, 0 (deterministic) to 1.
    """

    last_alpha_bar: ClassVar[float] = 0.0

    spacing: Spacing = field(default_factory=partial(Leading, steps_offset=1))
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.eta <= 1.0:
            raise InvalidRequest(f"eta is {self.eta}; it must be 0 to 1.")

    @override
    def plan(self, grid: Grid) -> list[Update]:
        return [self._update(start, end) for start, end in pairwise(grid.levels)]

    def _update(self, start: Level, end: Level) -> Update:
        noise = self.eta * math.sqrt(posterior_variance(start, end))
        direction = math.sqrt(max(end.sigma**2 - noise**2, 0.0)) / start.sigma  # per unit of start's own noise
        advance = Mix(direction, (end.alpha - direction * start.alpha,))
        return Update(advance, noise=noise if self.eta > 0.0 else None)


def posterior_variance(start: Level, end: Level) -> float:
    """Return the variance of the latents at ``end``, given those at ``start`` and the clean data.

    This is the "fixed small" variance of DDPM (arXiv 2006.11239, equation 7).
    """
    added = 1.0 - (start.alpha / end.alpha) ** 2
    return (end.sigma / start.sigma) ** 2 * added
