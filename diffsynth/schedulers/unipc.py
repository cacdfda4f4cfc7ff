"""UniPC: a multistep predictor whose result the next evaluation corrects, at no further cost (arXiv 2302.04867)."""

from __future__ import annotations

from dataclasses import dataclass, field

from typing_extensions import override

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.base import Grid, Mix, Scheduler, Update
from diffsynth.schedulers.betas import Level
from diffsynth.schedulers.exponential import constant, midpoint, polynomial, stay, trapezoid
from diffsynth.schedulers.spacing import LogUniform, Spacing


@dataclass(frozen=True, kw_only=True)
class UniPCScheduler(Scheduler):
    """UniPC on data predictions, the "bh2" kind; order 2 is DPM-Solver++ 2M with a corrector.

    When the network has been asked at a new level, its answer also improves the step that led there; the next step
    starts from the improved latents. Orders fall towards the end, so the last step is of first order.

    This with ``LogUniform`` spacing is the scheduler we recommend. Below about 12 steps on schedules that end
    near pure noise (``beta_end`` 0.03), ``Trailing`` is safer.

    Args:
        order: of the predictor, 1 to 3; the corrector's is one higher. Use 2 with guidance.
    """

    spacing: Spacing = field(default_factory=LogUniform)
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise InvalidRequest(f"order is {self.order}; it must be 1, 2 or 3.")

    @override
    def plan(self, grid: Grid) -> list[Update]:
        steps = len(grid.timesteps)
        orders = [min(self.order, step + 1, steps - step) for step in range(steps)]
        updates = []
        for step in range(steps):
            correct = _correct(grid.levels, step, orders[step - 1]) if step > 0 else None
            updates.append(Update(_predict(grid.levels, step, orders[step]), correct=correct))
        return updates


def _predict(levels: tuple[Level, ...], step: int, order: int) -> Mix:
    start, end = levels[step], levels[step + 1]
    past = levels[step::-1][:order]  # levels of the predictions, the newest first
    if start == end:
        return stay()
    if order == 1:
        return constant(start, end)
    return midpoint(start, end, past[1]) if order == 2 else polynomial(start, end, past)


def _correct(levels: tuple[Level, ...], step: int, order: int) -> Mix:
    """Take the step before once more, with the prediction at its end as one more node."""
    start, end = levels[step - 1], levels[step]
    if order == 1:
        return trapezoid(start, end)
    return polynomial(start, end, levels[step::-1][: order + 1])
