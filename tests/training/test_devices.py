"""Several processes train as one does that accumulates their batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffsynth.errors import InvalidRequest
from diffsynth.training import train
from diffsynth.training.devices import find_workers
from diffsynth.training.state import STATE
from tests.training.toy import autoencoder_config, tensors

REPO = Path(__file__).parents[2]
STATE_FILE = Path("checkpoints") / "step-000002" / STATE


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_two_processes_do_what_one_does_with_accumulation(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    config = autoencoder_config(tmp_path / "one", steps=2)
    train(replace(config, schedule=replace(config.schedule, batch_size=2, accumulate=2)))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}

    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.in_parallel", str(tmp_path / "two")],
            cwd=REPO,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=900)[1] for process in processes]  # a busy machine is slow
    finally:
        for process in processes:
            process.kill()

    assert [process.returncode for process in processes] == [0, 0], said
    one, two = tensors(tmp_path / "one" / STATE_FILE), tensors(tmp_path / "two" / STATE_FILE)
    assert one.keys() == two.keys()
    moments = [key for key in one if key.endswith("exp_avg")]
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in moments)
    assert len((tmp_path / "two" / "loss.csv").read_text().splitlines()) == 3


def test_one_process_is_alone() -> None:
    workers = find_workers("cpu")

    assert (workers.rank, workers.count, workers.writes, str(workers.device)) == (0, 1, True, "cpu")


def test_several_processes_need_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)

    with pytest.raises(InvalidRequest, match="pip install accelerate"):
        find_workers("cpu")
