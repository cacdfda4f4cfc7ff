"""A run that goes on with other settings, on other data, or on a full disk."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffsynth.errors import Cancelled, InvalidRequest
from diffsynth.training import train
from diffsynth.training.loop import StepReport
from diffsynth.training.state import STATE, checkpoints
from tests.training.toy import Squares, autoencoder_config, denoiser_config

REPO = Path(__file__).parents[2]

ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.training.toy import autoencoder_config
from diffsynth.training import train
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    train(autoencoder_config(Path(sys.argv[1]), steps=4))
except OSError as error:
    print(error)
"""


def test_what_has_changed_is_said_and_written_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "diffsynth")
    train(autoencoder_config(tmp_path, steps=2), Squares(12))
    train(autoencoder_config(tmp_path, steps=3), Squares(12))
    silent = list(caplog.messages)

    train(autoencoder_config(tmp_path, steps=4, seed=5), Squares(11))

    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert silent == []
    assert "config.seed 0 → 5" in caplog.text
    assert "data.pictures 12 → 11" in caplog.text
    assert "changed" not in starts[1]
    assert starts[2]["changed"]["config.seed"] == [0, 5]
    assert "data.sha256" in starts[2]["changed"]


@pytest.mark.parametrize("change", [{"prediction": "epsilon"}, {"beta_end": 0.03}, {"latent_scale": 0.2}])
def test_what_the_network_says_cannot_change(tmp_path: Path, change: dict[str, object]) -> None:
    train(denoiser_config(tmp_path / "run", tmp_path / "files", steps=2))
    before = (tmp_path / "run" / "run.json").read_bytes()

    with pytest.raises(InvalidRequest) as caught:
        train(denoiser_config(tmp_path / "run", tmp_path / "files", steps=4, job=change))

    assert f"  denoiser.{next(iter(change))}: was " in str(caught.value)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_new_columns_of_the_loss_table_come_last_and_old_rows_have_none(tmp_path: Path) -> None:
    for steps, min_snr in ((2, 0.0), (4, 5.0)):
        train(denoiser_config(tmp_path / "run", tmp_path / "files", steps=steps, job={"min_snr": min_snr}))

    with (tmp_path / "run" / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "gradient", "rate", "seconds", "loss_plain"]
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["loss_plain"]) for row in rows] == [False, False, True, True]
    assert float(rows[3]["rate"]) <= 1e-3


def test_asked_to_stop_it_draws_nothing_that_is_not_due(tmp_path: Path) -> None:
    def stop(report: StepReport) -> None:
        if report.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(autoencoder_config(tmp_path), on_step=stop)

    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002"]
    assert not (tmp_path / "samples.csv").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are POSIX")
def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(autoencoder_config(run, steps=2))
    before = (checkpoints(run)[-1] / STATE).read_bytes()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    said = [
        subprocess.run(
            [sys.executable, "-c", ON_A_FULL_DISK, str(run), str(limit)],
            cwd=REPO,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for limit in (20_000, len(before) - 1000)  # the network does not fit; only the state does not
    ]

    assert "diffusion_pytorch_model.safetensors" in said[0]
    assert f"{STATE}" in said[1]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert (checkpoints(run)[-1] / STATE).read_bytes() == before
    for folder in (run, whole):
        train(autoencoder_config(folder, steps=4))
    rows = [(folder / "loss.csv").read_text().splitlines() for folder in (run, whole)]
    assert [len(each) for each in rows] == [5, 5]
