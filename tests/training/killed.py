"""Trains in child processes that are killed at file operations, again and again, until one gets to the end.

    python -m tests.training.killed autoencoder|denoiser|lora RUN FILES EVERY

Child k dies by SIGKILL at its file operation number k * EVERY inside RUN. Prints the number of children that died.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from diffsynth.training import OptimizerConfig, TrainingConfig, train
from diffsynth.training.optimizer import make_optimizer
from tests.training.toy import autoencoder_config, denoiser_config, lora_config

CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")  # of finished checkpoints, opening does not count


def die_at(number: int, run: Path) -> None:
    """Kill this process when so many operations on files of a run have begun."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        path = str(arguments[0]) if event in CHANGES else ""
        if str(run) in path and not (event == "open" and "/checkpoints/step-" in path):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def import_what_children_need(config: OptimizerConfig) -> None:
    """Some libraries are imported on first use; once here is quicker than once in each child."""
    from transformers import BertModel, T5EncoderModel

    make_optimizer(config, {"any": torch.nn.Linear(1, 1)}, {})
    assert BertModel
    assert T5EncoderModel


def config_of(job: str, run: Path, files: Path) -> TrainingConfig:
    """Return the settings of a kind of run."""
    if job == "autoencoder":
        return autoencoder_config(run)
    return {"denoiser": denoiser_config, "lora": lora_config}[job](run, files)


def main(job: str, run: Path, files: Path, every: int) -> None:
    torch.set_num_threads(1)
    config = config_of(job, run, files)
    import_what_children_need(config.optimizer)
    for died in range(100):
        child = os.fork()
        if not child:
            die_at((died + 1) * every, run)
            train(config)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.stdout.write(str(died))
            sys.exit(os.WEXITSTATUS(status))
    sys.exit("no child got to the end")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
