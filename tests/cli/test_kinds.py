"""``diffsynth generate`` draws with the pipeline of the denoiser that the files hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffsynth.cli import run
from examples.random_stable_diffusion import write_single_file

SMALL = ["--height", "64", "--width", "64", "--steps", "1", "--device", "cpu", "--conventions", "diffusers"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a file of each release."""
    folder = tmp_path_factory.mktemp("releases")
    for name in ("sd15", "sdxl", "sdxl-refiner"):
        write_single_file(folder / name, name)
    return folder


def recipe_of(path: Path) -> dict[str, object]:
    with Image.open(path) as image:
        recipe: dict[str, object] = json.loads(image.info["diffsynth"])
    return recipe


@pytest.mark.parametrize(
    ("name", "pipeline", "more"),
    [
        ("sd15", "SDImagePipeline", ["--clip-skip", "2"]),
        ("sd15", "SDImagePipeline", ["--hires-scale", "1.5", "--hires-strength", "1", "--hires-upscale", "latent"]),
        ("sdxl", "SDXLImagePipeline", ["--crop", "8", "16"]),
    ],
)
def test_the_files_choose_the_pipeline_and_the_image_can_be_drawn_again(
    files: Path, tmp_path: Path, name: str, pipeline: str, more: list[str]
) -> None:
    model = str(files / name / f"{name}.safetensors")
    first, second = tmp_path / "first.png", tmp_path / "second.png"

    assert run(["generate", "--prompt", "a cat", "--model", model, "-o", str(first), *SMALL, *more]) == 0
    assert run(["generate", "--like", str(first), "-o", str(second), "--device", "cpu"]) == 0

    assert recipe_of(first)["pipeline"] == pipeline
    with Image.open(first) as one, Image.open(second) as two:
        assert one.tobytes() == two.tobytes()


def test_a_refiner_among_the_files_finishes_when_asked(files: Path, tmp_path: Path) -> None:
    models = [str(files / name / f"{name}.safetensors") for name in ("sdxl", "sdxl-refiner")]
    path = tmp_path / "image.png"
    named = [part for model in models for part in ("--model", model)]

    assert run(["generate", "--prompt", "a cat", *named, "-o", str(path), *SMALL, "--refiner"]) == 0

    assert recipe_of(path)["refined"] is True


def test_files_of_two_pipelines_are_one_clear_error(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(files / name / f"{name}.safetensors") for name in ("sd15", "sdxl")]
    named = [part for model in models for part in ("--model", model)]

    assert run(["generate", "--prompt", "a cat", *named, *SMALL]) == 1

    assert "denoisers of several pipelines: SDImagePipeline, SDXLImagePipeline" in capsys.readouterr().err


def test_an_option_of_another_pipeline_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(files / "sd15" / "sd15.safetensors")

    assert run(["generate", "--prompt", "a cat", "--model", model, *SMALL, "--beta-end", "0.02"]) == 1
    assert "--beta-end is not an option of SDImagePipeline" in capsys.readouterr().err
    assert run(["generate", "--prompt", "a cat", "--model", model, *SMALL, "--aesthetic-score", "5"]) == 1
    assert "--aesthetic-score is not an option of SDImagePipeline" in capsys.readouterr().err


def test_inspect_says_that_a_single_file_is_complete(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(files / "sdxl" / "sdxl.safetensors")]) == 0

    out = capsys.readouterr().out
    assert "SDImagePipeline or SDXLImagePipeline has every network it needs" in out
    assert "HunyuanDiT" not in out


def test_what_is_drawn_over_in_a_larger_size_is_told_and_can_be_changed(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(files / "sd15" / "sd15.safetensors")
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    over = ["--hires-scale", "2", "--hires-strength", "1"]

    assert run(["generate", "--prompt", "a cat", "--model", model, "-o", str(first), *SMALL, *over]) == 0
    assert "128x128" in capsys.readouterr().out
    assert run(["generate", "--like", str(first), "-o", str(second), "--device", "cpu", "--hires-scale", "1.5"]) == 0

    with Image.open(first) as one, Image.open(second) as two:
        assert (one.size, two.size) == ((128, 128), (96, 96))


def test_a_second_stage_without_steps_is_refused_before_anything_is_loaded(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(files / "sd15" / "sd15.safetensors")

    given = ["generate", "--prompt", "a cat", "--model", model, "-o", str(tmp_path / "image.png"), *SMALL, "--verbose"]

    assert run([*given, "--hires-scale", "2"]) == 1
    printed = capsys.readouterr().err
    assert "hires_steps 1 and hires_strength 0.5, cannot run" in printed
    assert "loaded" not in printed


def test_latents_go_from_one_command_to_another(
    files: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft, image = tmp_path / "draft.safetensors", tmp_path / "image.png"
    hunyuan, xl = str(models), str(files / "sdxl" / "sdxl.safetensors")
    over = ["--input-image", str(draft), "--denoising-strength", "1"]

    assert run(["generate", "--prompt", "a cat", "--model", hunyuan, "-o", str(draft), *SMALL[:-1], "diffsynth"]) == 0
    assert run(["generate", "--prompt", "a cat", "--model", xl, "-o", str(image), *SMALL, *over]) == 0

    assert "the latents come from another autoencoder" in capsys.readouterr().err
    request: Any = recipe_of(image)["request"]
    assert request["input_image"]["recipe"]["pipeline"] == "HunyuanDiTImagePipeline"
    again = tmp_path / "again.png"
    assert run(["generate", "--like", str(image), "-o", str(again), "--device", "cpu"]) == 1
    assert "made from other pictures (input_image); give them again" in capsys.readouterr().err
    like = ["generate", "--like", str(image), "-o", str(again), "--device", "cpu", "--input-image", str(draft)]
    assert run(like) == 0
    with Image.open(image) as one, Image.open(again) as two:
        assert one.tobytes() == two.tobytes()


def test_what_a_network_predicts_and_its_schedule_can_be_said_and_are_drawn_again(files: Path, tmp_path: Path) -> None:
    model = str(files / "sd15" / "sd15.safetensors")
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    said = ["--prediction", "velocity", "--zero-terminal-snr", "--guidance-rescale", "0.7"]

    assert run(["generate", "--prompt", "a cat", "--model", model, "-o", str(first), *SMALL, *said]) == 0
    assert run(["generate", "--like", str(first), "-o", str(second), "--device", "cpu"]) == 0

    recipe: Any = recipe_of(first)
    assert (recipe["prediction"], recipe["zero_terminal_snr"]) == ("velocity", True)
    assert recipe["request"]["spacing"] == "trailing"
    with Image.open(first) as one, Image.open(second) as two:
        assert one.tobytes() == two.tobytes()
