"""``diffsynth convert lora``, run as a user does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffsynth.cli import run
from tests.lora import files


@pytest.fixture
def lora(models: Path, tmp_path: Path) -> Path:
    state = torch.load(models / "model" / "pytorch_model_ema.pt", weights_only=True)
    layers = {name: pair for name, pair in files.layers_of(state).items() if "attn" in name}
    return files.write(tmp_path / "style.safetensors", files.kohya(layers, alpha=1.5))


def test_it_converts_there_and_back_and_says_what_changes(
    models: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = tmp_path / "folder", tmp_path / "back.safetensors"

    codes = [
        run(["convert", "lora", str(lora), str(there), "--to", "peft", "--model", str(models)]),
        run(["convert", "lora", str(there), str(back), "--to", "kohya", "--model", str(models)]),
    ]

    assert codes == [0, 0]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"changes {len(load_file(lora)) // 3} weights of hunyuan_dit"
    assert lines[1::2] == [str(there), str(back)]
    found, expected = load_file(back), load_file(lora)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ("output", "more", "message"),
    [
        ("a.safetensors", ["--to", "keras"], "there is no format of LoRA called 'keras', only peft, diffusers"),
        ("a.pt", ["--to", "kohya"], "kohya is written as safetensors; call it"),
        ("a.safetensors", ["--to", "diffusers-old"], "has no names for changes of hunyuan_dit"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    models: Path, lora: Path, tmp_path: Path, output: str, more: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = run(["convert", "lora", str(lora), str(tmp_path / output), *more, "--model", str(models)])

    said = capsys.readouterr().err
    assert code == 1
    assert said.startswith("InvalidRequest: ")
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_format_is_asked_for(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "lora", str(lora), str(tmp_path / "a.safetensors")]) == 2
    assert "--to" in capsys.readouterr().err
