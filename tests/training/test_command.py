"""``diffsynth train``, as it is called in a terminal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from diffsynth.cli import run
from diffsynth.training.record import Record
from diffsynth.training.state import checkpoints

SETTINGS = """
device = "cpu"
[data]
source = "tests.training.toy:squares"
size = 32
[autoencoder]
network = { channels = [32, 64], layers_per_block = 1 }
[schedule]
steps = 3
batch_size = 2
[record]
sample_every = 0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(SETTINGS)
    return path


def test_it_says_how_it_goes_and_where_the_result_is(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config.parent / "run"

    code = run(["train", str(config), "--folder", str(folder)])

    said = capsys.readouterr().out.splitlines()
    assert code == 0
    assert said[0].startswith("step 1/3  loss ")
    assert said[-2].startswith("step 3/3  loss ")
    assert said[-1] == str(folder / "final")


def test_it_stops_after_so_many_steps_and_does_not_begin_again(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config.parent / "run"

    codes = [
        run(["train", str(config), "--folder", str(folder), "--steps", "1", *more]) for more in ([], ["--no-resume"])
    ]

    assert codes == [0, 1]
    assert [path.name for path in checkpoints(folder)] == ["step-000001"]
    assert "holds a run already" in capsys.readouterr().err


def test_bad_settings_are_an_error_without_a_traceback(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(SETTINGS.replace("size = 32", "size = 33"))

    code = run(["train", str(config), "--folder", str(config.parent / "run")])

    said = capsys.readouterr().err
    assert code == 1
    assert "data.size: must be a multiple of 16, not 33" in said
    assert "Traceback" not in said
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_after_the_step_with_a_checkpoint(
    config: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    folder, plain = config.parent / "run", Record.add

    def add(self: Record, step: int, values: dict[str, float]) -> None:
        plain(self, step, values)
        if step == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(Record, "add", add)

    code = run(["train", str(config), "--folder", str(folder)])

    assert code == 128 + number
    assert [path.name for path in checkpoints(folder)] == ["step-000002"]
    assert run(["train", str(config), "--folder", str(folder)]) == 0
