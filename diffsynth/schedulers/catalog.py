"""Schedulers by name, for requests, command lines and job lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from diffsynth.errors import InvalidRequest, printable
from diffsynth.schedulers.base import FinalSigma, Prediction, Scheduler
from diffsynth.schedulers.betas import BetaSchedule
from diffsynth.schedulers.ddim import DDIMScheduler
from diffsynth.schedulers.ddpm import DDPMScheduler
from diffsynth.schedulers.dpm_solver import DPMSolverScheduler
from diffsynth.schedulers.euler import EulerScheduler
from diffsynth.schedulers.pndm import PNDMScheduler
from diffsynth.schedulers.spacing import SPACINGS, EndToEnd, Leading, Linspace, LogUniform, Spacing
from diffsynth.schedulers.unipc import UniPCScheduler

SCHEDULERS: dict[str, Callable[..., Scheduler]] = {
    # DiffSynth's sampler, then the three of HunyuanDiT's own program
    "ddim_diffsynth": partial(DDIMScheduler, spacing=EndToEnd()),
    "ddim": partial(DDIMScheduler, spacing=Leading(steps_offset=1)),
    "ddpm": partial(DDPMScheduler, spacing=Leading(steps_offset=1)),
    "dpmms": partial(DPMSolverScheduler, order=2, spacing=Linspace(), final_sigma="sigma_min"),
    # DPM-Solver++ as it is usually found today
    "dpm++2m": partial(DPMSolverScheduler, order=2, spacing=Linspace()),
    "dpm++2m_sde": partial(DPMSolverScheduler, order=2, stochastic=True, spacing=Linspace()),
    "dpm++3m": partial(DPMSolverScheduler, order=3, spacing=Linspace()),
    "dpm++3m_exact": partial(DPMSolverScheduler, order=3, integration="exact", spacing=Linspace()),
    # those that Stable Diffusion and SDXL came with
    "euler": partial(EulerScheduler, spacing=Leading(steps_offset=1)),
    "euler_a": partial(EulerScheduler, eta=1.0, spacing=Leading(steps_offset=1)),
    "pndm": PNDMScheduler,
    # the one we recommend
    "unipc": partial(UniPCScheduler, order=2, spacing=LogUniform()),
}

RECOMMENDED = "unipc"


def make_scheduler(
    name: str,
    *,
    beta_start: float,
    beta_end: float,
    prediction: str,
    spacing: str | Spacing | None = None,
    final_sigma: str | None = None,
    beta_schedule: str = "scaled_linear",
    zero_terminal_snr: bool = False,
) -> Scheduler:
    """Make a scheduler from its name.

    Args:
        name: a key of ``SCHEDULERS``.
        beta_start: first beta of the schedule the network was trained on.
        beta_end: last beta of that schedule.
        prediction: "velocity", "epsilon" or "sample".
        spacing: a key of ``SPACINGS``, or a spacing with settings of its own; None keeps the scheduler's own.
        final_sigma: "zero" or "sigma_min"; None keeps the scheduler's own.
        beta_schedule: "scaled_linear" or "linear".
        zero_terminal_snr: whether the schedule is rescaled to end in pure noise.

    Raises:
        InvalidRequest: a name is unknown (the message lists the known ones) or a number is out of range.
    """
    if name not in SCHEDULERS:
        raise InvalidRequest(f"unknown scheduler {printable(name)!r}; known are: {', '.join(SCHEDULERS)}.")
    changes: dict[str, object] = {}
    if spacing is not None:
        changes["spacing"] = spacing if isinstance(spacing, Spacing) else _spacing(spacing)
    if final_sigma is not None:
        changes["final_sigma"] = cast(FinalSigma, final_sigma)  # checked by the scheduler, as the two below
    return SCHEDULERS[name](
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=cast(BetaSchedule, beta_schedule),
        prediction=cast(Prediction, prediction),
        zero_terminal_snr=zero_terminal_snr,
        **changes,
    )


def _spacing(name: str) -> Spacing:
    if name not in SPACINGS:
        raise InvalidRequest(f"unknown spacing {printable(name)!r}; known are: {', '.join(SPACINGS)}.")
    return SPACINGS[name]()
