"""Progress of a drawing: who is told about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffsynth.pipelines.denoise import StepReport


@dataclass(frozen=True)
class Monitor:
    """Who is told about the progress of a drawing.

    Args:
        progress: wraps the timesteps, as tqdm does.
        bar: an object with ``progress(fraction)``, as Streamlit has them.
        callback: told after each step; what it raises stops the drawing.
        stage: which of the stages is drawn, from 1.
        stages: how many there are; two if an image is drawn over in a larger size.
    """

    progress: Callable[[Iterable[float]], Iterable[float]]
    bar: Any = None
    callback: Callable[[StepReport], None] | None = None
    stage: int = 1
    stages: int = 1

    def on_step(
        self, timesteps: Sequence[float], preview: Callable[[Tensor], list[Image.Image]]
    ) -> Callable[[int, Tensor], None]:
        """Return the function that the denoising loop calls after each step."""

        def report(step: int, latents: Tensor) -> None:
            if self.bar is not None:
                self.bar.progress((self.stage - 1 + (step + 1) / len(timesteps)) / self.stages)
            if self.callback is not None:
                known = StepReport(step + 1, len(timesteps), timesteps[step], latents, lambda: preview(latents))
                self.callback(replace(known, stage=self.stage, stages=self.stages))

        return report


def terminal_bar(timesteps: Iterable[float]) -> Iterable[float]:
    """Show a progress bar, unless standard error is not a terminal."""
    bar: Iterable[float] = tqdm(timesteps, disable=None, leave=False)
    return bar
