"""``diffsynth merge``, run as a user does, and what ``diffsynth inspect`` tells of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffsynth.cli import run
from examples.random_stable_diffusion import write_single_file


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(write_single_file(tmp_path_factory.mktemp(name), "sd15", seed)) for seed, name in enumerate("ab")]


def test_it_merges_says_what_was_kept_and_inspect_shows_the_recipe(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out.safetensors")

    blocks = ["--block", "mid_block=0", "--block", "unet.conv_in=1"]
    code = run(["merge", *pair, "--weight", "0.25", *blocks, "--as", "unet", "--dtype", "float16", "-o", output])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0] == "merged: unet (layout 'ldm', under 'model.diffusion_model.')"
    assert lines[1].startswith(f"kept from {pair[0]}: ")
    assert lines[-1] == output
    one, two, result = map(load_file, (*pair, output))
    for key, weight in (("input_blocks.0.0.weight", 1), ("middle_block.1.norm.bias", 0), ("out.2.bias", 0.25)):
        name = f"model.diffusion_model.{key}"
        assert torch.equal(result[name], (one[name] * (1 - weight) + two[name] * weight).half())
    assert run(["inspect", output]) == 0
    assert '  merge: {"method": "weighted sum", "weight": 0.25, "blocks": {"mid_block": 0.0' in capsys.readouterr().out
    run(["inspect", "--json", output])
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert json.loads(row["metadata"]["merge"])["inputs"]["second"][0]["name"] == "sd15.safetensors"


def test_a_difference_is_added(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out.safetensors")

    code = run(["merge", *pair, "--difference", pair[0], "-w", "-0.5", "-o", output])

    key = "model.diffusion_model.out.2.bias"
    one, two, result = (load_file(path)[key] for path in (*pair, output))
    assert code == 0
    assert "kept from" in capsys.readouterr().out  # what lies beside the networks
    assert torch.equal(result, one - 0.5 * (two - one))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block", "mid_block"], "--block is PATTERN=WEIGHT, such as mid_block=0.7, not 'mid_block'"),
        (["--block", "mid_block=half"], "not 'mid_block=half'"),
        (["--block", "mid_blok=1"], "no block is called 'mid_blok'. Near it are mid_block"),
        (["--dtype", "int8"], "--dtype must be one of float32, float16, bfloat16, not 'int8'"),
        (["--as", "unett"], "there is no kind of network called 'unett'. Known are: unet"),
    ],
)
def test_what_is_misspelt_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["merge", *pair, "-w", "0.5", *arguments, "-o", str(tmp_path / "out.safetensors")])

    err = capsys.readouterr().err
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*.*"))
