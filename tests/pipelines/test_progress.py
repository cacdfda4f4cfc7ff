"""Who is told about a drawing while it goes on, and how it is stopped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.errors import Cancelled, DiffSynthError, ModelNotLoaded
from diffsynth.pipelines.denoise import StepReport

from .toy import PROMPT, largest_difference, load_toy, values

SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 3, "seed": 7}


class Bar:
    """Stands in for a Streamlit progress bar."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def progress(self, fraction: float) -> None:
        self.seen.append(fraction)


def mean_difference(first: Image.Image, second: Image.Image) -> float:
    return float(np.abs(values(first) - values(second)).mean())


def test_a_progress_bar_wraps_the_timesteps(pipe: HunyuanDiTImagePipeline) -> None:
    seen: list[float] = []

    def watch(timesteps: Iterable[float]) -> Iterable[float]:
        for timestep in timesteps:
            seen.append(timestep)
            yield timestep

    image = pipe(PROMPT, progress_bar_cmd=watch, **SMALL)

    assert seen == [999, 500, 0]
    assert image.tobytes() == pipe(PROMPT, **SMALL).tobytes()


@pytest.mark.parametrize("bar", [lambda steps: [*steps][:2], lambda steps: []], ids=["drops one", "drops all"])
def test_a_progress_bar_that_loses_steps_is_an_error_and_not_an_unfinished_image(
    pipe: HunyuanDiTImagePipeline, bar: Any
) -> None:
    with pytest.raises(DiffSynthError, match="of 3 timesteps; it must pass on every one"):
        pipe(PROMPT, progress_bar_cmd=bar, **SMALL)


def test_a_streamlit_bar_is_told_the_share_that_is_done(pipe: HunyuanDiTImagePipeline) -> None:
    bar = Bar()

    pipe(PROMPT, progress_bar_st=bar, **SMALL)

    assert bar.seen == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_callback_is_told_every_step_with_its_latents(pipe: HunyuanDiTImagePipeline) -> None:
    reports: list[StepReport] = []

    image = pipe(PROMPT, callback=reports.append, **SMALL)

    assert [(report.step, report.steps, report.timestep) for report in reports] == [(1, 3, 999), (2, 3, 500), (3, 3, 0)]
    assert all(report.latents.shape == (1, 4, 8, 12) for report in reports)
    assert not torch.equal(reports[0].latents, reports[1].latents)
    assert image.tobytes() == pipe(PROMPT, **SMALL).tobytes()


def test_a_preview_resembles_the_image(pipe: HunyuanDiTImagePipeline) -> None:
    reports: list[StepReport] = []
    images = pipe([PROMPT, PROMPT], callback=reports.append, batch_size=2, **{**SMALL, "seed": [7, 8]})

    previews = reports[-1].preview()

    assert [preview.size for preview in previews] == [(12, 8)] * 2
    assert [preview.tobytes() for preview in reports[-1].preview()] == [preview.tobytes() for preview in previews]
    small = [image.resize((12, 8)) for image in images]
    own = sum(mean_difference(*pair) for pair in zip(previews, small, strict=True))
    swapped = sum(mean_difference(*pair) for pair in zip(previews, reversed(small), strict=True))
    assert own < swapped


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_drawing_stops_at_the_step_where_it_is_cancelled(pipe: HunyuanDiTImagePipeline, last: int) -> None:
    steps: list[int] = []

    def stop(report: StepReport) -> None:
        steps.append(report.step)
        if report.step == last:
            raise Cancelled("the user pressed stop")

    with pytest.raises(Cancelled, match="pressed stop"):
        pipe(PROMPT, callback=stop, **SMALL)

    assert steps == list(range(1, last + 1))
    assert largest_difference(pipe(PROMPT, **SMALL), pipe(PROMPT, **SMALL)) == 0


def test_the_bar_of_a_terminal_stays_away_from_other_output(
    pipe: HunyuanDiTImagePipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe(PROMPT, **SMALL)

    assert capfd.readouterr() == ("", "")


def test_the_condition_path_may_be_dropped_once_the_loop_runs(v1_2: list[Path], pipe: HunyuanDiTImagePipeline) -> None:
    own = load_toy(v1_2)

    image = own(PROMPT, callback=lambda report: own.denoiser.drop_condition_path(), **SMALL)

    assert image.tobytes() == pipe(PROMPT, **SMALL).tobytes()
    with pytest.raises(ModelNotLoaded, match="load the checkpoint again"):
        own(PROMPT, **SMALL)
