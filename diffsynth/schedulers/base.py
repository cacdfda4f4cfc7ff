"""The scheduler, the run it starts, and the one kind of step all solvers take.

Every solver here is a linear combination per step: of the latents, of the newest data predictions and, for some, of
fresh noise. The weights depend on the grid of timesteps alone, so they are computed in float64 before the first
step, and a step itself is a handful of multiply-adds that never wait for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.betas import CLEAN, TRAIN_TIMESTEPS, BetaSchedule, Level, NoiseSchedule, noise_schedule
from diffsynth.schedulers.spacing import Spacing

Prediction: TypeAlias = Literal["velocity", "epsilon", "sample"]
History: TypeAlias = Literal["data", "noise"]
FinalSigma: TypeAlias = Literal["zero", "sigma_min"]
DrawNoise: TypeAlias = Callable[[], Tensor]


@dataclass(frozen=True)
class Mix:
    """Weights of a linear combination.

    Args:
        sample: weight of the latents the step starts from.
        data: weights of the data predictions (for some solvers, of the noise predictions), the newest first.
    """

    sample: float
    data: tuple[float, ...]

    def apply(self, sample: Tensor, data: Sequence[Tensor]) -> Tensor:
        """Return a new tensor, the weighted sum."""
        result = sample * self.sample
        for weight, tensor in zip(self.data, data, strict=False):
            result.add_(tensor, alpha=weight)
        return result


@dataclass(frozen=True)
class Update:
    """What one step does once the network has been asked.

    Args:
        advance: leads from this level to the next.
        correct: if there is one, first replaces the latents, by a mix of the latents of the step before and the data
            predictions, today's included.
        noise: weight of fresh noise; with None, none is drawn.
    """

    advance: Mix
    correct: Mix | None = None
    noise: float | None = None


@dataclass(frozen=True)
class Grid:
    """Where a run goes.

    Args:
        timesteps: training timesteps at which the network is asked, noisiest first.
        levels: their noise levels, and one more: where the run ends.
        requested: steps of the whole range, before denoising strength left some out.
    """

    timesteps: tuple[float, ...]
    levels: tuple[Level, ...]
    requested: int


class SchedulerRun:
    """One walk from noise to clean latents, with the history a multistep solver needs. Use it for one batch only.

    ``timesteps`` are the training timesteps to ask the network at, first to last; ``levels`` their noise levels and
    the final one; ``stochastic`` tells whether steps draw noise; ``noise_scale`` is what N(0, 1) noise is multiplied
    by to start from it.
    """

    def __init__(
        self,
        grid: Grid,
        updates: Sequence[Update],
        prediction: Prediction,
        draw_noise: DrawNoise | None = None,
        *,
        history: History = "data",
        noise_scale: float = 1.0,
    ) -> None:
        self.timesteps = grid.timesteps
        self.levels = grid.levels
        self.stochastic = any(update.noise is not None for update in updates)
        if self.stochastic and draw_noise is None:
            raise ValueError("this scheduler adds noise at each step: start() needs draw_noise")
        self._updates = tuple(updates)
        self.noise_scale = noise_scale
        weights = _data_weights if history == "data" else _noise_weights
        self._to_data = tuple(weights(level, prediction) for level in grid.levels[:-1])
        self._draw_noise = draw_noise
        mixes = [mix for update in updates for mix in (update.advance, update.correct) if mix is not None]
        self._memory = max(len(mix.data) for mix in mixes)
        self._data: tuple[Tensor, ...] = ()  # data predictions, the newest first
        self._sample: Tensor | None = None  # the latents that the step before started from, corrected
        self._next = 0

    def step(self, prediction: Tensor, latents: Tensor, step: int) -> Tensor:
        """Move the latents from one noise level to the next.

        Args:
            prediction: what the network said about ``latents`` at ``timesteps[step]``; same shape, any float dtype.
            latents: (B, C, H, W), float32 (or float64).
            step: index into ``timesteps``; steps are taken in order, each once.

        Returns:
            New latents, same shape, dtype and device.

        Raises:
            ValueError: a step out of order, or latents in half precision.
        """
        if step != self._next or step >= len(self._updates):
            raise ValueError(f"step {step} of {len(self._updates)} was taken when step {self._next} was due")
        if latents.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"latents are {latents.dtype}; between steps they must be kept in float32")
        update = self._updates[step]

        from_latents, from_prediction = self._to_data[step]
        data = (latents * from_latents).add_(prediction.to(latents.dtype), alpha=from_prediction)
        self._data = (data, *self._data)[: self._memory]
        if update.correct is not None:
            assert self._sample is not None
            latents = update.correct.apply(self._sample, self._data)
        result = update.advance.apply(latents, self._data)
        if update.noise is not None:
            assert self._draw_noise is not None
            result.add_(_like(self._draw_noise(), result), alpha=update.noise)

        self._sample = latents
        self._next = step + 1
        return result

    def add_noise(self, clean: Tensor, noise: Tensor, step: int = 0) -> Tensor:
        """Bring clean latents to the level that a step starts from, by default the first.

        Args:
            clean: (B, C, H, W), latents of the input image.
            noise: N(0, 1) of the same shape, on any device.
            step: index into ``levels``.

        Returns:
            ``alpha * clean + sigma * noise``, in the dtype and on the device of ``clean``.
        """
        level = self.levels[step]
        return (clean * level.alpha).add_(_like(noise, clean), alpha=level.sigma)


@dataclass(frozen=True, kw_only=True)
class Scheduler(ABC):
    """An immutable description of a noise schedule, a spacing and a solver.

    Args:
        beta_start: variance added at the first training step.
        beta_end: variance added at the last.
        beta_schedule: how betas lie between the two.
        prediction: what the network predicts: "velocity" (alpha * noise - sigma * clean, arXiv 2202.00512), "epsilon"
            (the noise) or "sample" (the clean latents).
        spacing: which timesteps are visited.
        final_sigma: where the last step leads: "zero", to clean latents, or "sigma_min", to the level of timestep 0.
        zero_terminal_snr: whether the schedule is rescaled to end in pure noise (arXiv 2305.08891, section 3.1), for
            networks that were trained so; they predict the velocity.

    Raises:
        InvalidRequest: a value is unknown or out of range.
    """

    history: ClassVar[History] = "data"  # what the weights of a step's mix are for
    # Alpha-bar at the end of a rescaled schedule: nearly 0 for solvers that take its logarithm, as others have it.
    last_alpha_bar: ClassVar[float] = 2.0**-24

    beta_start: float = 0.00085
    beta_end: float
    beta_schedule: BetaSchedule = "scaled_linear"
    prediction: Prediction = "velocity"
    spacing: Spacing
    final_sigma: FinalSigma = "zero"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise InvalidRequest(f"unknown prediction {self.prediction!r}; known are: {_names(Prediction)}.")
        if self.final_sigma not in get_args(FinalSigma):
            raise InvalidRequest(f"unknown final_sigma {self.final_sigma!r}; known are: {_names(FinalSigma)}.")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise InvalidRequest(
                'zero_terminal_snr needs a network that predicts "velocity" (or "sample"): at the end of that schedule '
                "latents are noise alone, and knowing the noise tells nothing of the image. "
                'If this one does, say prediction="velocity".'
            )
        _ = self.noise_schedule  # raises for impossible betas

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The noise level of every training timestep."""
        last = self.last_alpha_bar if self.zero_terminal_snr else None
        return noise_schedule(self.beta_start, self.beta_end, self.beta_schedule, last=last)

    def start(
        self,
        num_inference_steps: int,
        *,
        denoising_strength: float = 1.0,
        draw_noise: DrawNoise | None = None,
    ) -> SchedulerRun:
        """Begin a run for one image or batch.

        Args:
            num_inference_steps: 1 to 1000. With a strength below 1 fewer may be run; see the spacing.
            denoising_strength: in (0, 1]; 1 starts from pure noise, less from an input image.
            draw_noise: returns fresh N(0, 1) noise shaped as the latents; needed by stochastic solvers only, which
                call it once a step.

        Raises:
            InvalidRequest: a number is out of range, or the two together leave no step to run.
        """
        if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
            raise InvalidRequest(f"num_inference_steps must be a whole number, not {num_inference_steps!r}.")
        if not 1 <= num_inference_steps <= TRAIN_TIMESTEPS:
            raise InvalidRequest(f"num_inference_steps is {num_inference_steps}; it must be 1 to {TRAIN_TIMESTEPS}.")
        if not 0.0 < denoising_strength <= 1.0:
            raise InvalidRequest(f"denoising_strength is {denoising_strength}; it must be above 0 and at most 1.")
        schedule = self.noise_schedule
        timesteps = self.visits(self.spacing.timesteps(num_inference_steps, denoising_strength, schedule))
        end = CLEAN if self.final_sigma == "zero" else schedule.level(0)
        levels = (*map(schedule.level, timesteps), end)
        grid = Grid(timesteps, levels, num_inference_steps)
        return SchedulerRun(
            grid,
            self.plan(grid),
            self.prediction,
            draw_noise,
            history=self.history,
            noise_scale=self.noise_scale(grid),
        )

    def visits(self, timesteps: tuple[float, ...]) -> tuple[float, ...]:
        """Return the timesteps at which the network is asked, made from those of the spacing."""
        return timesteps

    def noise_scale(self, grid: Grid) -> float:
        """Return what N(0, 1) noise is multiplied by to start a run from it."""
        return 1.0

    @abstractmethod
    def plan(self, grid: Grid) -> list[Update]:
        """Return the weights of every step, one update per timestep of the grid."""


def _data_weights(level: Level, prediction: Prediction) -> tuple[float, float]:
    """Return the weights of latents and prediction whose sum is the predicted clean data.

    A velocity is not turned into noise on the way: with alpha near 0 that division would lose the digits of half
    precision predictions.
    """
    if prediction == "velocity":
        return level.alpha, -level.sigma
    if prediction == "epsilon":
        return 1.0 / level.alpha, -level.sigma / level.alpha
    return 0.0, 1.0


def _noise_weights(level: Level, prediction: Prediction) -> tuple[float, float]:
    """Return the weights of latents and prediction whose sum is the predicted noise."""
    if prediction == "velocity":
        return level.sigma, level.alpha
    if prediction == "epsilon":
        return 0.0, 1.0
    return 1.0 / level.sigma, -level.alpha / level.sigma


def _like(noise: Tensor, latents: Tensor) -> Tensor:
    return noise.to(latents.device, latents.dtype, non_blocking=latents.is_cuda)


def _names(literal: object) -> str:
    return ", ".join(get_args(literal))
