"""Files with a few bytes changed at random: they load, or fail with an error of ours, soon."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.errors import CheckpointError
from tests.core.formats.forged_files import View, legacy_file, pickled, zip_file

VALUE = {"state_dict": {"w": View(), "v": View(None, 2, (2, 4), (4, 1))}, "epoch": 3, "names": ("a", [None, 1.5])}
TELLING = b"\x00\x80\xff.R(t}oc"

WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda path: save_file({"a": torch.ones(3), "b": torch.ones(2).half()}, path),
    "zip": lambda path: zip_file(path, VALUE),
    "legacy": lambda path: legacy_file(path, VALUE),
    "protocol 0": lambda path: path.write_bytes(pickled({"a": [1, "b"]}, 0)),
    "protocol 4": lambda path: path.write_bytes(pickled({"a": [1, "b"]}, 4)),
}


def damage(data: bytes, chance: random.Random) -> bytes:
    """Change, cut, insert or take out a few bytes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        position = chance.randrange(len(changed) + 1)
        match chance.randrange(6):
            case 0:
                del changed[position:]
            case 1:
                del changed[position : position + chance.randrange(1, 9)]
            case 2:
                changed[position:position] = chance.randbytes(chance.randrange(1, 6))
            case 3:
                changed[position : position + 8] = chance.randbytes(8)
            case _:
                changed[position : position + 1] = bytes([chance.choice(TELLING)])
    return bytes(changed)


@pytest.mark.parametrize("form", WRITERS)
def test_damaged_files_load_or_fail_with_one_of_our_errors(form: str, tmp_path: Path) -> None:
    chance, path = random.Random(form), tmp_path / "model"
    WRITERS[form](path)
    data, messages = path.read_bytes(), list[str]()

    for _ in range(300):
        path.write_bytes(damage(data, chance))
        try:
            checkpoint = open_checkpoint(path)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            assert all(tensor.shape == checkpoint.header[key].shape for key, tensor in checkpoint.items())
    assert messages
    assert all(message.startswith(f"{path}: ") and message.isprintable() for message in messages)
