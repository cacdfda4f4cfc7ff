"""A run that is killed, at any moment and often, ends with the weights of one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffsynth.errors import Cancelled, InvalidRequest
from diffsynth.training import train
from diffsynth.training.loop import StepReport
from diffsynth.training.state import STATE, checkpoints
from tests.training.killed import config_of
from tests.training.toy import autoencoder_config, differing

REPO = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
LAST = Path("checkpoints") / "step-000006"


def losses(run: Path) -> list[list[str]]:
    """Return the rows of loss.csv without the seconds."""
    return [line.split(",")[:-1] for line in (run / "loss.csv").read_text().splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize(("job", "every"), [("autoencoder", 5), ("denoiser", 8), ("lora", 8)])
def test_killed_at_many_moments_it_ends_as_if_it_were_not(job: str, every: int, tmp_path: Path) -> None:
    run, whole, files = tmp_path / "killed", tmp_path / "whole", tmp_path / "files"
    train(config_of(job, whole, files))

    command = [sys.executable, "-m", "tests.training.killed", job, str(run), str(files), str(every)]
    done = subprocess.run(command, cwd=REPO, env=ONE_THREAD, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6
    assert differing(run / LAST / STATE, whole / LAST / STATE) == []
    for file in (whole / "final").rglob("*.safetensors"):
        assert differing(run / file.relative_to(whole), file) == []
    assert losses(run) == losses(whole)
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]
    assert [path.name for path in checkpoints(run)] == ["step-000004", "step-000006"]


def test_killed_from_outside_the_command_line_goes_on(tmp_path: Path) -> None:
    run, whole = tmp_path / "killed", tmp_path / "whole"
    train(autoencoder_config(whole))
    settings = """
        device = "cpu"
        [data]
        source = "tests.training.toy:squares"
        size = 32
        held_out = 2
        [autoencoder]
        network = { channels = [32, 64], layers_per_block = 1 }
        crop = 16
        [optimizer]
        learning_rate = 2e-3
        ema = 0.9
        [schedule]
        steps = 6
        batch_size = 4
        warmup = 2
        [record]
        checkpoint_every = 2
        sample_every = 3
        sample_count = 2
    """
    (tmp_path / "config.toml").write_text(settings)
    command = [sys.executable, "-m", "diffsynth", "train", str(tmp_path / "config.toml"), "--folder", str(run)]

    process = subprocess.Popen(command, cwd=REPO, env=ONE_THREAD, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (run / "loss.csv").is_file():
        time.sleep(0.005)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=REPO, env=ONE_THREAD, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(run / "final")
    assert differing(run / LAST / STATE, whole / LAST / STATE) == []
    assert losses(run) == losses(whole)


def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on_later(tmp_path: Path) -> None:
    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise Cancelled("enough")

    run, whole = tmp_path / "stopped", tmp_path / "whole"
    train(autoencoder_config(whole))

    with pytest.raises(Cancelled, match="enough"):
        train(autoencoder_config(run), on_step=stop)
    stopped = [path.name for path in checkpoints(run)]
    train(autoencoder_config(run))

    assert stopped == ["step-000002", "step-000003"]
    assert differing(run / LAST / STATE, whole / LAST / STATE) == []
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [0, 3]


def test_so_many_steps_now_and_the_rest_later_is_the_same(tmp_path: Path) -> None:
    run, whole = tmp_path / "parts", tmp_path / "whole"
    train(autoencoder_config(whole))

    for steps in (1, 4, None):
        train(autoencoder_config(run), steps=steps)

    assert differing(run / LAST / STATE, whole / LAST / STATE) == []


def test_an_end_that_is_reached_is_left_as_it_is(tmp_path: Path) -> None:
    config = autoencoder_config(tmp_path, steps=2)
    train(config)
    before = losses(tmp_path)

    final = train(config)

    assert losses(tmp_path) == before
    assert list(final.rglob("*.safetensors"))


def test_accumulated_batches_are_one_large_batch_and_resume_too(tmp_path: Path) -> None:
    config = autoencoder_config(tmp_path / "whole")
    config = replace(config, schedule=replace(config.schedule, batch_size=2, accumulate=2))
    train(config)

    for steps in (3, None):
        train(config, folder=tmp_path / "parts", steps=steps)

    assert differing(tmp_path / "parts" / LAST / STATE, tmp_path / "whole" / LAST / STATE) == []


def test_pictures_drawn_anew_by_threads_resume_too(tmp_path: Path) -> None:
    config = autoencoder_config(tmp_path / "whole")
    config = replace(config, data=replace(config.data, variants=0, workers=3))
    train(config)

    for steps in (3, None):
        train(config, folder=tmp_path / "parts", steps=steps)

    assert differing(tmp_path / "parts" / LAST / STATE, tmp_path / "whole" / LAST / STATE) == []


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(autoencoder_config(tmp_path / str(seed), steps=2, seed=seed))

    state = Path("checkpoints") / "step-000002" / STATE
    assert differing(tmp_path / "0" / state, tmp_path / "1" / state)


def test_the_global_random_numbers_are_neither_used_nor_changed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(autoencoder_config(tmp_path / "one", steps=2))
    found = torch.rand(3)
    train(autoencoder_config(tmp_path / "other", steps=2))

    state = Path("checkpoints") / "step-000002" / STATE
    assert torch.equal(found, expected)
    assert differing(tmp_path / "one" / state, tmp_path / "other" / state) == []


def test_a_run_is_not_overwritten_and_not_mixed_with_another(tmp_path: Path) -> None:
    train(autoencoder_config(tmp_path, steps=2))

    with pytest.raises(InvalidRequest, match="holds a run already"):
        train(autoencoder_config(tmp_path, steps=2), resume=False)
    wider = {"channels": [32, 96], "layers_per_block": 1}
    with pytest.raises(InvalidRequest, match="is the state of a run with other networks or settings"):
        train(autoencoder_config(tmp_path, steps=4, job={"network": wider}))
