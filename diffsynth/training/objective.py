"""What a denoiser is asked for: noise levels, targets, the weight of each level. Pure functions of tensors.

At a level, latents are ``alpha * clean + sigma * noise``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from diffsynth.schedulers.betas import TRAIN_TIMESTEPS, noise_schedule

Prediction: TypeAlias = Literal["velocity", "epsilon", "flow"]


@dataclass(frozen=True)
class Levels:
    """Noise levels of B images.

    Args:
        timestep: (B,) float32, what the network is told: 0 (clean) to 999, or 1000 for flows.
        alpha: (B,) float32, share of the clean latents.
        sigma: (B,) float32, share of the noise.
    """

    timestep: Tensor
    alpha: Tensor
    sigma: Tensor

    def to(self, device: torch.device) -> Levels:
        """Return the same on a device."""
        return Levels(self.timestep.to(device), self.alpha.to(device), self.sigma.to(device))

    def shares(self) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma as (B, 1, 1, 1)."""
        return self.alpha[:, None, None, None], self.sigma[:, None, None, None]


@dataclass(frozen=True)
class Objective:
    """How a denoiser is trained.

    Args:
        prediction: "velocity" (arXiv 2202.00512), "epsilon" (arXiv 2006.11239) or "flow" (arXiv 2210.02747, straight
            paths from picture to noise).
        beta_start: first beta of the scaled-linear schedule; flows have none.
        beta_end: last beta.
        timesteps: "uniform", or "logit_normal": the logistic function of normal numbers (arXiv 2403.03206).
        min_snr: limit of the signal-to-noise ratio in the weights; 0 gives every level the weight 1.
        zero_terminal_snr: whether the last timestep has no signal left (arXiv 2305.08891).
    """

    prediction: Prediction = "velocity"
    beta_start: float = 0.00085
    beta_end: float = 0.018
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    min_snr: float = 0.0
    zero_terminal_snr: bool = False

    def draw(self, count: int, generator: torch.Generator) -> Levels:
        """Draw a level for each of ``count`` images, on the CPU."""
        if self.timesteps == "uniform":
            time = torch.rand(count, generator=generator)
        else:
            time = torch.randn(count, generator=generator).sigmoid()
        return self.at(time)

    def at(self, time: Tensor) -> Levels:
        """Return levels by time, (B,) from 0 (clean) up to but not including 1 (noise; flows include it)."""
        if self.prediction == "flow":
            return Levels(time * TRAIN_TIMESTEPS, 1 - time, time)
        steps = (time * TRAIN_TIMESTEPS).long().clamp(0, TRAIN_TIMESTEPS - 1)
        bars = alpha_bars(self.beta_start, self.beta_end, zero_terminal_snr=self.zero_terminal_snr)[steps]
        return Levels(steps.float(), bars.sqrt().float(), (1 - bars).sqrt().float())

    def weight(self, levels: Levels) -> Tensor:
        """Return the weight of each level's squared error, (B,)."""
        if not self.min_snr:
            return torch.ones_like(levels.alpha)
        return min_snr_weight(self.prediction, levels.alpha, levels.sigma, self.min_snr)


@lru_cache(maxsize=8)
def alpha_bars(beta_start: float, beta_end: float, *, zero_terminal_snr: bool = False) -> Tensor:
    """Return the share of signal variance at each training timestep, (1000,) float64."""
    schedule = noise_schedule(beta_start, beta_end, last=0.0 if zero_terminal_snr else None)
    return torch.tensor(schedule.alpha_bars, dtype=torch.float64)


def add_noise(clean: Tensor, noise: Tensor, levels: Levels) -> Tensor:
    """Return noisy latents, (B, C, H, W)."""
    alpha, sigma = levels.shares()
    return alpha * clean + sigma * noise


def target(prediction: Prediction, clean: Tensor, noise: Tensor, levels: Levels) -> Tensor:
    """Return what the network should say about noisy latents, (B, C, H, W)."""
    alpha, sigma = levels.shares()
    if prediction == "velocity":
        return alpha * noise - sigma * clean
    return noise if prediction == "epsilon" else noise - clean


def separate(prediction: Prediction, said: Tensor, noisy: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    """Return the clean latents and the noise that the network's answer means."""
    alpha, sigma = levels.shares()
    if prediction == "velocity":
        return alpha * noisy - sigma * said, sigma * noisy + alpha * said
    if prediction == "epsilon":
        return (noisy - sigma * said) / alpha, said
    return noisy - sigma * said, noisy + alpha * said


def min_snr_weight(prediction: Prediction, alpha: Tensor, sigma: Tensor, limit: float) -> Tensor:
    """Return the weight of the squared error of a prediction (arXiv 2303.09556).

    The error of the clean latents has the weight min(SNR, limit), with SNR = alpha² / sigma². An error of the
    prediction is one of the clean latents times a factor, sigma for velocities and flows and sigma / alpha for the
    noise, whose square is multiplied in.

    Args:
        prediction: what is predicted.
        alpha: (B,).
        sigma: (B,).
        limit: called gamma in the paper, where it is 5.
    """
    ratio = (alpha / sigma).square()
    factor = sigma.square() if prediction != "epsilon" else 1 / ratio
    return torch.where(sigma > 0, ratio.clamp(max=limit) * factor, torch.zeros_like(sigma))
