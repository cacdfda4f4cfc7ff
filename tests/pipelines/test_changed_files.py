"""Weight files that are written to while their weights are in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffsynth.errors import CorruptCheckpoint
from diffsynth.pipelines.denoise import StepReport
from examples.random_models import write_models

from .toy import PROMPT, load_toy


def test_a_file_changed_during_a_drawing_gives_an_error_and_no_image(tmp_path: Path) -> None:
    files = write_models(tmp_path)
    pipe = load_toy(files)

    def spoil(report: StepReport) -> None:
        with files[2].open("r+b") as file:
            file.seek(1000)
            file.write(bytes(1000))

    with pytest.raises(CorruptCheckpoint, match="changed while it was in use"):
        pipe(PROMPT, height=64, width=64, num_inference_steps=2, seed=1, callback=spoil)
