"""Checkpoints on disk: written whole or not at all, so that a run can be killed at any moment."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.locks import lock
from diffsynth.errors import InvalidRequest, listed
from diffsynth.training.devices import Workers
from diffsynth.training.optimizer import MovingAverage, moments, set_moments

FOLDER, STATE, LOCK = "checkpoints", "training_state.safetensors", ".lock"
NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Learning:
    """Everything that changes while a run learns.

    Args:
        weights: by name.
        optimizer: holds their moments.
        average: of the weights, or None.
        scaler: of the loss, for float16.
    """

    weights: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    scaler: torch.amp.GradScaler

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it under names of its own."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "weights": self.weights,
            "average": self.average.average if self.average else {},
            "moments": moments(self.optimizer, self.weights),
        }
        return {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }


def write_state(path: Path, learning: Learning, step: int) -> None:
    """Write all that a run needs to go on after ``step`` steps."""
    write_tensors(path, learning.tensors(), {"step": str(step), "scaler": json.dumps(learning.scaler.state_dict())})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written; the disk may be full.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from error


@torch.no_grad()
def read_state(path: Path, learning: Learning) -> int:
    """Take over a saved state, and return the number of steps it was made with.

    Raises:
        CheckpointError: the file is damaged.
        InvalidRequest: it belongs to other networks or settings.
    """
    saved = open_checkpoint(path, mmap=False)
    wanted = {key: tensor.shape for key, tensor in learning.tensors().items() if not key.startswith("moments.")}
    found = {key: spec.shape for key, spec in saved.header.items() if not key.startswith("moments.")}
    differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if differing:
        raise InvalidRequest(
            f"{path} is the state of a run with other networks or settings: {len(differing)} of its tensors differ, "
            f"such as {listed(differing, 3)}. Go on with the settings of that run, or name another folder."
        )
    for name, weight in learning.weights.items():
        weight.copy_(saved[f"weights.{name}"])
    if learning.average is not None:
        for name, average in learning.average.average.items():
            average.copy_(saved[f"average.{name}"])
    prefix = "moments."
    set_moments(
        learning.optimizer,
        learning.weights,
        {key.removeprefix(prefix): saved[key] for key in saved.header if key.startswith(prefix)},
    )
    learning.scaler.load_state_dict(json.loads(saved.metadata["scaler"]))
    return int(saved.metadata["step"])


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = [path for path in (run / FOLDER).glob("step-*") if NAME.fullmatch(path.name) and (path / STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def write_checkpoint(run: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Write a checkpoint, and remove all but the newest.

    Args:
        run: folder of the run.
        step: steps done.
        write: fills a folder, which has a temporary name.
        keep: checkpoints that stay.
    """
    final = write_folder(run / FOLDER / f"step-{step:06d}", write)
    keep_newest(run, keep)
    return final


def keep_newest(run: Path, keep: int) -> None:
    """Remove all but the newest checkpoints of a run."""
    for old in checkpoints(run)[:-keep]:
        remove_folder(old)


def write_folder(final: Path, write: Callable[[Path], None]) -> Path:
    """Fill a folder under a temporary name, sync it, and give it its name; one of that name before is replaced."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.part")
    temporary.mkdir()
    try:
        write(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        if final.exists():
            remove_folder(final)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(final.parent)
    return final


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen half removed under its name."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    os.replace(folder, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process has left unfinished."""
    for path in folder.glob(".*.part"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def sole_user(run: Path, workers: Workers) -> Iterator[None]:
    """Keep the folder of a run to one training at a time, and clear away what a killed one has left unfinished.

    Raises:
        InvalidRequest: another process trains there.
    """
    if not workers.writes:
        workers.wait()  # what is being written now is no leftover
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w") as file:
        if not lock(file):
            raise InvalidRequest(f"another process is training in {run}; name another folder.")
        for place in (run, *(each for each in run.iterdir() if each.is_dir())):
            remove_leftovers(place)
        workers.wait()
        yield


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
