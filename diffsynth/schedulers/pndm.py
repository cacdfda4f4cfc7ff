"""PNDM: a linear multistep method of order 4 on noise predictions (arXiv 2202.09778), without its Runge-Kutta start."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from typing_extensions import override

from diffsynth.schedulers.base import FinalSigma, Grid, History, Mix, Scheduler, Update
from diffsynth.schedulers.betas import Level
from diffsynth.schedulers.exponential import stay
from diffsynth.schedulers.spacing import Leading, Spacing

# Weights of the noise predictions at each step of a run, the newest first. The second step takes the first one again
# with the mean of both ends; its prediction is used for nothing else.
STARTING = (
    (1.0,),
    (1 / 2, 1 / 2),
    (3 / 2, 0.0, -1 / 2),
    (23 / 12, -16 / 12, 0.0, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, 0.0, -9 / 24),
)
RUNNING = (55 / 24, -59 / 24, 37 / 24, -9 / 24)
REPEATED = 1


@dataclass(frozen=True, kw_only=True)
class PNDMScheduler(Scheduler):
    """PNDM as Stable Diffusion 1.5 came with it; the network is asked twice at the second timestep.

    So a run asks it once more than there are steps. The last step leads to the level of timestep 0.
    """

    history: ClassVar[History] = "noise"

    spacing: Spacing = field(default_factory=partial(Leading, steps_offset=1))
    final_sigma: FinalSigma = "sigma_min"

    @override
    def visits(self, timesteps: tuple[float, ...]) -> tuple[float, ...]:
        return (*timesteps[: REPEATED + 1], *timesteps[REPEATED:])

    @override
    def plan(self, grid: Grid) -> list[Update]:
        levels = grid.levels
        updates = []
        for step in range(len(grid.timesteps)):
            weights = STARTING[step] if step < len(STARTING) else RUNNING
            if step == REPEATED:
                again = _transfer(levels[0], levels[step], weights)
                updates.append(Update(stay(), correct=again))
            else:
                updates.append(Update(_transfer(levels[step], levels[step + 1], weights)))
        return updates


def _transfer(start: Level, end: Level, weights: tuple[float, ...]) -> Mix:
    """Lead latents to a level by the weighted mean of noise predictions."""
    kept = end.alpha / start.alpha
    return Mix(kept, tuple((end.sigma - kept * start.sigma) * weight for weight in weights))
