"""The denoising loop, written once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from diffsynth.errors import DiffSynthError
from diffsynth.schedulers.base import SchedulerRun

Predict: TypeAlias = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class StepReport:
    """What a callback is told after each step: ``step`` of ``steps`` is done, these are the latents now.

    An image that is drawn over in a larger size has two stages, each with steps of its own.
    """

    step: int
    steps: int
    timestep: float
    latents: Tensor
    preview: Callable[[], Any]
    stage: int = 1
    stages: int = 1


OnStep: TypeAlias = Callable[[int, Tensor], None]
Keep: TypeAlias = Callable[[Tensor, int], Tensor]
Progress: TypeAlias = Callable[[Iterable[float]], Iterable[float]]


def no_report(step: int, latents: Tensor) -> None:
    """Tell nobody."""


def denoise(
    predict: Predict,
    latents: Tensor,
    run: SchedulerRun,
    *,
    progress: Progress = iter,
    on_step: OnStep = no_report,
    keep: Keep | None = None,
) -> tuple[Tensor, Tensor]:
    """Walk from noise to clean latents. Every pipeline uses this loop.

    Args:
        predict: (latents, step) → the network's prediction, both (B, C, H, W).
        latents: (B, C, H, W) float32 at the noise level of the first timestep.
        run: the steps of a scheduler.
        progress: wraps the timesteps, as tqdm does.
        on_step: called after each step; whatever it raises stops the loop.
        keep: (latents, step) → the latents to go on with after a step, such as with parts of another image put back.

    Returns:
        The clean latents, and for each step and image whether all values were finite, (steps, B) bool. The second
        stays on the device until somebody looks, so the loop never waits for it.
    """
    finite = torch.ones(len(run.timesteps), len(latents), dtype=torch.bool, device=latents.device)
    for step in _steps(run, progress):
        latents = run.step(predict(latents, step), latents, step)
        if keep is not None:
            latents = keep(latents, step)
        finite[step] = latents.isfinite().flatten(1).all(dim=1)
        on_step(step, latents)
    return latents, finite


def _steps(run: SchedulerRun, progress: Progress) -> Iterator[int]:
    done = 0
    for step, _ in enumerate(progress(run.timesteps)):
        yield step
        done = step + 1
    if done != len(run.timesteps):
        raise DiffSynthError(
            f"progress_bar_cmd passed on {done} of {len(run.timesteps)} timesteps; it must pass on every one of them."
        )


def first_bad(good: Tensor) -> str | None:
    """Return the step and the image where (steps, B) bool first is False, in words; None if it nowhere is."""
    bad = (~good).nonzero()
    if not len(bad):
        return None
    step, image = (int(number) for number in bad[0])
    return f"denoising, step {step + 1} of {len(good)}" + (f", image {image + 1}" if good.shape[1] > 1 else "")
