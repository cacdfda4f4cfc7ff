"""Noise schedules: how much signal and how much noise the latents hold at each training timestep.

Everything here is a Python float made from float32 cumulative products, because those are the numbers the networks
were trained with; from there on all arithmetic is float64 on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffsynth.errors import InvalidRequest

TRAIN_TIMESTEPS = 1000

BetaSchedule: TypeAlias = Literal["scaled_linear", "linear"]


@dataclass(frozen=True)
class Level:
    """A noise level: latents there are ``alpha * clean + sigma * noise``, with alpha² + sigma² = 1."""

    alpha: float
    sigma: float

    @property
    def noise_ratio(self) -> float:
        """Noise over signal, sigma / alpha, or infinity: what Karras et al. (arXiv 2206.00364) call sigma."""
        return math.inf if self.alpha == 0.0 else self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """Half the log signal-to-noise ratio, log(alpha / sigma); infinite at the clean end and without signal.

        This is lambda, the time variable of DPM-Solver (arXiv 2206.00927).
        """
        if self.alpha == 0.0:
            return -math.inf
        return math.inf if self.sigma == 0.0 else math.log(self.alpha / self.sigma)


CLEAN = Level(alpha=1.0, sigma=0.0)


@dataclass(frozen=True)
class NoiseSchedule:
    """The share of signal variance at every training timestep, from least to most noise.

    Args:
        alpha_bars: strictly falling, each between 0 and 1 exclusive, but for the last, which may be 0.

    Raises:
        InvalidRequest: the numbers do not fall or leave that range; betas that large or small cannot be used.
    """

    alpha_bars: tuple[float, ...]

    def __post_init__(self) -> None:
        falling = all(later < earlier for earlier, later in pairwise((1.0, *self.alpha_bars)))
        if not falling or not self.alpha_bars[-1] >= 0.0:
            raise InvalidRequest("these betas give alpha-bars that do not fall strictly from 1 to 0 in float32.")

    @property
    def last(self) -> int:
        """The noisiest timestep; the least noisy one is 0."""
        return len(self.alpha_bars) - 1

    def level(self, timestep: float) -> Level:
        """Return the noise level at a timestep in [0, last]; between two, log(sigma / alpha) is interpolated."""
        if not 0 <= timestep <= self.last:
            raise ValueError(f"timestep {timestep} is outside 0 to {self.last}")
        if timestep == int(timestep):
            alpha_bar = self.alpha_bars[int(timestep)]
            return Level(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar))
        ratio = math.exp(np.interp(timestep, np.arange(len(self.alpha_bars)), self._log_ratios))
        alpha = 1.0 / math.hypot(1.0, ratio)
        return Level(alpha, alpha * ratio)

    @property
    def noise_ratios(self) -> tuple[float, float]:
        """Sigma / alpha at the noisiest timestep, or a large stand-in where there is no signal, and at timestep 0."""
        return math.exp(self._log_ratios[-1]), math.exp(self._log_ratios[0])

    def timestep(self, noise_ratio: float) -> float:
        """Return the timestep with this sigma / alpha, the inverse of ``level``, clipped to [0, last]."""
        return float(np.interp(math.log(noise_ratio), self._log_ratios, np.arange(len(self.alpha_bars))))

    @cached_property
    def _log_ratios(self) -> NDArray[np.float64]:
        ratios = np.array([-self.level(timestep).log_snr for timestep in range(len(self.alpha_bars))])
        if math.isinf(ratios[-1]):  # as far from its neighbour as that is from its own, so that one can interpolate
            ratios[-1] = 2 * ratios[-2] - ratios[-3]
        return ratios


@lru_cache(maxsize=32)
def noise_schedule(
    beta_start: float, beta_end: float, kind: BetaSchedule = "scaled_linear", *, last: float | None = None
) -> NoiseSchedule:
    """Build the schedule of 1000 timesteps from its first and last beta.

    Args:
        beta_start: variance added at the first training step, in (0, 1).
        beta_end: variance added at the last, in (0, 1), not below ``beta_start``.
        kind: "scaled_linear" spaces the square roots of the betas evenly (latent diffusion), "linear" the betas.
        last: rescale the schedule so that no signal is left at its last timestep (arXiv 2305.08891, algorithm 1),
            and write this alpha-bar there: 0, or nearly.

    Raises:
        InvalidRequest: betas out of range, or an unknown kind.
    """
    if not 0.0 < beta_start <= beta_end < 1.0:
        raise InvalidRequest(f"beta_start {beta_start} and beta_end {beta_end} must satisfy 0 < start <= end < 1.")
    if kind not in get_args(BetaSchedule):
        raise InvalidRequest(f"unknown beta schedule {kind!r}; known are: {', '.join(get_args(BetaSchedule))}.")
    power = 0.5 if kind == "scaled_linear" else 1.0
    # The device is named so that a default device set by the caller does not move this small host computation.
    roots = torch.linspace(
        beta_start**power, beta_end**power, TRAIN_TIMESTEPS, dtype=torch.float32, device=torch.device("cpu")
    )
    betas = roots**2 if kind == "scaled_linear" else roots
    alpha_bars = torch.cumprod(1.0 - betas, dim=0)
    if last is None:
        return NoiseSchedule(tuple(alpha_bars.tolist()))
    return NoiseSchedule((*_without_last_signal(alpha_bars)[:-1].tolist(), last))


def _without_last_signal(alpha_bars: Tensor) -> Tensor:
    """Shift the square roots so that the last is 0, then stretch them so that the first is what it was."""
    signal = alpha_bars.sqrt()
    first, rest = signal[0], signal[-1]
    return ((signal - rest) * (first / (first - rest))).square()
