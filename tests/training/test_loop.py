"""What a run writes, and how it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import diffsynth
from diffsynth.errors import InvalidRequest, NonFiniteResult
from diffsynth.training import train
from diffsynth.training.config import OptimizerConfig
from diffsynth.training.precision import check_precision
from diffsynth.training.record import Record, plot
from diffsynth.training.state import STATE, checkpoints, write_folder
from tests.training.toy import Squares, autoencoder_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(autoencoder_config(folder))
    return folder


def test_the_record_tells_settings_versions_and_the_data(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())

    assert record["config"]["optimizer"]["learning_rate"] == 2e-3
    assert record["versions"]["diffsynth"] == diffsynth.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"]["pictures"] == 12
    assert len(record["data"]["sha256"]) == 64
    assert record["networks"]["autoencoder_kl"]["config"]["channels"] == [32, 64]
    assert [start["from_step"] for start in record["starts"]] == [0]


def test_each_step_is_a_row_of_the_loss_table(run: Path) -> None:
    head, *rows = (run / "loss.csv").read_text().splitlines()

    assert head == "step,loss,loss_l1,loss_l2,loss_kl,loss_gradient,gradient,rate,seconds"
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert float(rows[0].split(",")[7]) == pytest.approx(1e-3)


def test_there_are_a_plot_and_sample_sheets(run: Path) -> None:
    with Image.open(run / "loss.png") as image:
        assert image.size == (800, 400)
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-000003.png", "step-000006.png"]
    assert [line.split(",")[0] for line in (run / "samples.csv").read_text().splitlines()] == ["step", "3", "6"]


def test_only_the_newest_checkpoints_are_kept(run: Path) -> None:
    assert [path.name for path in checkpoints(run)] == ["step-000004", "step-000006"]


def test_data_may_be_given_in_python(tmp_path: Path) -> None:
    config = autoencoder_config(tmp_path, steps=1)

    train(replace(config, data=replace(config.data, source="")), Squares(5))

    assert json.loads((tmp_path / "run.json").read_text())["data"]["pictures"] == 5


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    train(autoencoder_config(tmp_path, steps=2))
    kept = (checkpoints(tmp_path)[-1] / STATE).read_bytes()

    with pytest.raises(NonFiniteResult, match="training, step 3"):
        train(autoencoder_config(tmp_path, job={"l1": 1e38, "l2": 1e38}))

    assert (checkpoints(tmp_path)[-1] / STATE).read_bytes() == kept


def test_a_run_needs_a_folder() -> None:
    config = autoencoder_config(Path())

    with pytest.raises(InvalidRequest, match="give the folder of the run"):
        train(replace(config, record=replace(config.record, folder="")))


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(InvalidRequest, match="float16 needs an accelerator"):
        check_precision("float16", torch.device("cpu"))


def test_without_an_average_the_weights_themselves_are_saved(tmp_path: Path) -> None:
    train(autoencoder_config(tmp_path, steps=2, optimizer=OptimizerConfig(ema=0)))

    train(autoencoder_config(tmp_path, steps=4, optimizer=OptimizerConfig(ema=0)))

    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002", "step-000004"]


def test_a_second_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    refused: list[str] = []

    def start_another(report: Any) -> None:
        with pytest.raises(InvalidRequest) as caught:
            train(autoencoder_config(tmp_path, steps=1))
        refused.append(str(caught.value))

    train(autoencoder_config(tmp_path, steps=1), on_step=start_another)

    assert refused == [f"another process is training in {tmp_path}; name another folder."]


def test_a_folder_whose_writing_fails_leaves_the_old_one(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    def succeed(folder: Path) -> None:
        (folder / "file").write_text("old")

    write_folder(tmp_path / "final", succeed)
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "final", fail)

    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "file").read_text() == "old"


def test_rows_after_the_resumed_step_and_half_rows_are_cut_off(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("step,loss\n1,0.5\n2,0.4\n3,0.3\n4,0.")

    Record(tmp_path).begin(2, {})

    assert (tmp_path / "loss.csv").read_text() == "step,loss\n1,0.5\n2,0.4\n"


@pytest.mark.parametrize("losses", [[], [1.0], [0.5, 0.5], [1.0, 0.1, 0.01, 1e9], [0.0, 1.0]])
def test_any_loss_can_be_plotted(losses: list[float]) -> None:
    assert plot(range(1, len(losses) + 1), losses).size == (800, 400)
