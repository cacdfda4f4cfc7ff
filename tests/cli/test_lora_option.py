"""``diffsynth generate --lora``, run as a user does, and drawing such an image again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffsynth.cli import run
from tests.lora import files

SMALL = ["--height", "64", "--width", "64", "--steps", "1", "--device", "cpu", "--prompt", "a cat", "--seed", "3"]


@pytest.fixture(scope="module")
def loras(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    state = torch.load(models / "model" / "pytorch_model_ema.pt", weights_only=True)
    folder = tmp_path_factory.mktemp("loras")
    return [
        files.write(folder / f"style-{seed}.safetensors", files.peft(files.layers_of(state, seed))) for seed in range(2)
    ]


def generate(models: Path, output: Path, *more: object) -> int:
    return run(["generate", "--model", str(models), *SMALL, "-o", str(output), *map(str, more)])


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        data: bytes = image.tobytes()
    return data


def adapters(path: Path) -> list[dict[str, Any]]:
    with Image.open(path) as image:
        found: list[dict[str, Any]] = json.loads(image.info["diffsynth"])["adapters"]
    return found


def test_loras_change_the_image_which_is_drawn_again_with_them(models: Path, loras: list[Path], tmp_path: Path) -> None:
    plain, drawn, again, none = (tmp_path / f"{name}.png" for name in ("plain", "drawn", "again", "none"))
    assert generate(models, plain) == 0
    assert generate(models, none, "--lora", f"{loras[0]}=0") == 0

    code = generate(models, drawn, "--lora", loras[0], "--lora", f"{loras[1]}=-0.5")

    assert code == 0
    assert run(["generate", "--like", str(drawn), "--device", "cpu", "-o", str(again)]) == 0
    assert pixels(none) == pixels(plain) != pixels(drawn) == pixels(again)
    assert adapters(drawn) == adapters(again)
    assert [(each["path"], each["scale"]) for each in adapters(again)] == [(str(loras[0]), 1.0), (str(loras[1]), -0.5)]


def test_drawing_again_takes_the_loras_that_are_given_anew(
    models: Path, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(loras[0].read_bytes())
    assert generate(models, first, "--lora", moved) == 0
    moved.unlink()

    gone = run(["generate", "--like", str(first), "--device", "cpu", "-o", str(second)])
    message = capsys.readouterr().err
    code = run(["generate", "--like", str(first), "--device", "cpu", "-o", str(second), "--lora", str(loras[0])])

    assert gone == 1
    assert f"{moved}. Say where they are with --lora." in message
    assert code == 0
    assert pixels(first) == pixels(second)
    assert "not the file that the image was drawn with" not in capsys.readouterr().err


def test_what_is_no_lora_or_does_not_fit_is_one_clear_error(
    models: Path, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "image.png"
    state = torch.load(models / "model" / "pytorch_model_ema.pt", weights_only=True)
    layers = files.layers_of(state)
    mixed = {**layers, "blocks.0.mlp.fc9": next(iter(layers.values()))}
    odd = files.write(tmp_path / "odd.safetensors", files.peft(mixed))
    cases: list[tuple[list[object], str]] = [
        (["--lora", models / "mt5" / "pytorch_model.bin"], "holds no LoRA"),
        (["--lora", tmp_path / "absent.safetensors"], "absent.safetensors"),
        (["--lora", f"{loras[0]}=nan"], "is a finite number, such as 0.8, not nan"),
        (["--lora", odd], "blocks.0.mlp.fc9 (nearest: blocks.0.mlp.fc"),
        (["--lora", odd, "--lora", odd, "--lora-partly"], "already"),
        (["--lora-partly"], "--lora-partly goes with --lora."),
        (["--model", loras[0]], "give it to load_lora, or as --lora"),
    ]
    for arguments, message in cases:
        assert generate(models, output, *arguments) == 1, arguments
        assert message in capsys.readouterr().err
        assert not output.exists()

    assert generate(models, output, "--lora", odd, "--lora-partly") == 0
