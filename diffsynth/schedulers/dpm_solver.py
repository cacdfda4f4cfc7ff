"""DPM-Solver++: multistep solvers of order 1 to 3 on data predictions (arXiv 2211.01095)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from typing_extensions import override

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.base import Grid, Mix, Scheduler, Update
from diffsynth.schedulers.betas import Level
from diffsynth.schedulers.exponential import constant, midpoint, polynomial, published_third, stay
from diffsynth.schedulers.spacing import Linspace, Spacing

Integration: TypeAlias = Literal["published", "exact"]

_FEW_STEPS = 15  # runs with fewer steps end with lower orders


@dataclass(frozen=True, kw_only=True)
class DPMSolverScheduler(Scheduler):
    """DPM-Solver++, multistep: each step uses the predictions of up to three steps.

    HunyuanDiT's own "dpmms" is order 2, ``Linspace`` and ``final_sigma="sigma_min"``, as the library it names was when
    the model came out: the last step leads to the level of timestep 0, and is of first order only in runs of fewer
    than 15 steps. Later versions of that library end at "zero".

    Args:
        order: 1 to 3. Use 2 with guidance; 3 can grow errors when steps are few.
        integration: "published" takes the weights of the authors' code. "exact" integrates the polynomial through
            the predictions without further approximation; its order 3 converges with order 3.
        stochastic: solve the stochastic equation instead (order 1 or 2, "published"), with noise at every step.
        lower_order_final: in runs of fewer than 15 steps, the last step is of first and the one before of at most
            second order. A last step that leads to "zero" is of first order in any case.
    """

    spacing: Spacing = field(default_factory=Linspace)
    order: int = 2
    integration: Integration = "published"
    stochastic: bool = False
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise InvalidRequest(f"order is {self.order}; it must be 1, 2 or 3.")
        if self.integration not in get_args(Integration):
            raise InvalidRequest(f"unknown integration {self.integration!r}; known are: published, exact.")
        if self.stochastic and (self.order == 3 or self.integration != "published"):
            raise InvalidRequest('the stochastic solver has order 1 or 2 and "published" weights only.')

    @override
    def plan(self, grid: Grid) -> list[Update]:
        return [self._update(grid.levels, step, self._order(grid, step)) for step in range(len(grid.timesteps))]

    def _order(self, grid: Grid, step: int) -> int:
        left = len(grid.timesteps) - step  # steps to take, this one included
        order = min(self.order, step + 1)  # the first steps have no past
        if self.lower_order_final and grid.requested < _FEW_STEPS:
            order = min(order, left)
        return 1 if left == 1 and self.final_sigma == "zero" else order

    def _update(self, levels: tuple[Level, ...], step: int, order: int) -> Update:
        start, end = levels[step], levels[step + 1]
        past = levels[step::-1][:order]  # levels of the predictions, the newest first
        if self.stochastic:
            return _stochastic(start, end, past)
        if start == end:
            return Update(stay())
        if order == 1:
            return Update(constant(start, end))
        if self.integration == "exact":
            return Update(polynomial(start, end, past))
        return Update(midpoint(start, end, *past[1:]) if order == 2 else published_third(start, end, *past[1:]))


def _stochastic(start: Level, end: Level, past: tuple[Level, ...]) -> Update:
    """Return a step of the stochastic solver: twice the span acts on the data, and the variance lost is redrawn."""
    if start == end:
        return Update(stay(), noise=0.0)
    span = end.log_snr - start.log_snr
    mass = -end.alpha * math.expm1(-2.0 * span)
    data: tuple[float, ...] = (mass,)
    if len(past) == 2:
        slope = 0.5 * mass * span / (start.log_snr - past[1].log_snr)
        data = (mass + slope, -slope)
    noise = end.sigma * math.sqrt(-math.expm1(-2.0 * span))
    return Update(Mix(end.sigma / start.sigma * math.exp(-span), data), noise=noise)
