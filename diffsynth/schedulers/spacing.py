"""Spacings: which training timesteps a run of n steps visits.

The names are those of Lin et al. (arXiv 2305.08891, table 2). Whole timesteps are rounded half to even, as numpy and
Python do. ``Karras`` and ``LogUniform`` give fractional timesteps, which sinusoidal embeddings take as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from typing_extensions import override

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.betas import NoiseSchedule


class Spacing(ABC):
    """A rule that places n timesteps between noise and clean."""

    @abstractmethod
    def place(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        """Return ``steps`` timesteps of the whole range, noisiest first."""

    def timesteps(self, steps: int, denoising_strength: float, schedule: NoiseSchedule) -> tuple[float, ...]:
        """Return the timesteps to visit when starting from an input image.

        The grid of all ``steps`` is placed, and its first ``steps - int(steps * denoising_strength)`` entries are left
        out: strength shortens the count. ``EndToEnd`` has a rule of its own.

        Args:
            steps: steps of the whole range, 1 to 1000.
            denoising_strength: share of the steps to run, in (0, 1].
            schedule: the noise schedule.

        Raises:
            InvalidRequest: no step is left, or the rule cannot place so many distinct timesteps.
        """
        grid = tuple(self.place(steps, schedule))
        falling = all(later < earlier for earlier, later in pairwise(grid))
        if not falling or not 0 <= grid[-1] <= grid[0] <= schedule.last:
            raise InvalidRequest(
                f"{type(self).__name__} spacing cannot place {steps} different timesteps from {schedule.last} to 0; "
                "ask for fewer steps."
            )
        run = int(steps * denoising_strength)
        if run < 1:
            raise InvalidRequest(
                f"{steps} steps with denoising_strength {denoising_strength} leave no step to run; "
                f"use more steps, or a strength of {math.ceil(1000 / steps) / 1000} or more."
            )
        return grid[steps - run :]


@dataclass(frozen=True)
class Trailing(Spacing):
    """Even steps counted from the noisy end: 999, 949, ..., 49 for 20."""

    @override
    def place(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        count = schedule.last + 1
        return [float(round(count - step * (count / steps)) - 1) for step in range(steps)]


@dataclass(frozen=True)
class Leading(Spacing):
    """Even whole steps counted from the clean end: 951, 901, ..., 1 for 20 and an offset of 1.

    It never visits the noisiest timesteps, so it suits samplers that must match others' pictures, not quality.
    """

    steps_offset: int = 0

    @override
    def place(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        ratio = (schedule.last + 1) // steps
        return [float(step * ratio + self.steps_offset) for step in reversed(range(steps))]


@dataclass(frozen=True)
class Linspace(Spacing):
    """Even steps from the noisiest timestep towards 0, which itself is left out: 999, 949, ..., 50 for 20."""

    @override
    def place(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        return [float(round(step * (schedule.last / steps))) for step in range(steps, 0, -1)]


@dataclass(frozen=True)
class EndToEnd(Spacing):
    """Even steps from the noisiest timestep to 0, both visited: 999, 946, ..., 53, 0 for 20.

    Here denoising strength shortens the range, not the count: all steps run, from timestep
    ``round(1000 * strength) - 1``. There are never more steps than whole timesteps in that range.
    """

    @override
    def place(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        return self.timesteps(steps, 1.0, schedule)

    @override
    def timesteps(self, steps: int, denoising_strength: float, schedule: NoiseSchedule) -> tuple[float, ...]:
        first = max(round((schedule.last + 1) * denoising_strength) - 1, 0)
        steps = min(steps, first + 1)
        if steps == 1:
            return (float(first),)
        return tuple(float(round(first - step * first / (steps - 1))) for step in range(steps))


@dataclass(frozen=True)
class Karras(Spacing):
    """Even steps in (sigma / alpha)^(1 / rho), crowded near the clean end (arXiv 2206.00364, equation 5)."""

    rho: float = 7.0

    @override
    def place(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        high, low = (ratio ** (1.0 / self.rho) for ratio in _noise_ratio_range(schedule))
        return [schedule.timestep(value**self.rho) for value in _even(high, low, steps)]


@dataclass(frozen=True)
class LogUniform(Spacing):
    """Even steps in log(sigma / alpha), from the noisiest timestep to 0; steps that are equal for the solver."""

    @override
    def place(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        high, low = (math.log(ratio) for ratio in _noise_ratio_range(schedule))
        return [schedule.timestep(math.exp(value)) for value in _even(high, low, steps)]


@dataclass(frozen=True)
class Explicit(Spacing):
    """Timesteps written out, noisiest first; the number of steps asked for must be their number."""

    values: tuple[float, ...]

    @override
    def place(self, steps: int, schedule: NoiseSchedule) -> Sequence[float]:
        if steps != len(self.values):
            raise InvalidRequest(f"{steps} steps were asked for, but {len(self.values)} timesteps were given.")
        return self.values


SPACINGS: dict[str, Callable[[], Spacing]] = {
    "trailing": Trailing,
    "leading": Leading,
    "linspace": Linspace,
    "end_to_end": EndToEnd,
    "karras": Karras,
    "log_uniform": LogUniform,
}


def _noise_ratio_range(schedule: NoiseSchedule) -> tuple[float, float]:
    return schedule.noise_ratios


def _even(first: float, last: float, count: int) -> list[float]:
    """Return ``count`` evenly spaced numbers, both ends exact; one number is the first end."""
    if count == 1:
        return [first]
    return [first + (last - first) * (index / (count - 1)) for index in range(count)]
