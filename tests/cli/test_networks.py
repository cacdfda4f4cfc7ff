"""``diffsynth generate`` can say all that ``from_model_manager`` takes, and draws it again."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffsynth import HunyuanDiTImagePipeline, SDImagePipeline, SDXLImagePipeline
from diffsynth.cli import run
from diffsynth.cli.generate import generate
from examples.random_stable_diffusion import build, single_file, write_tokenizer

SMALL = ["--height", "64", "--width", "64", "--steps", "1", "--device", "cpu", "--conventions", "diffusers"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files of three releases, of two of them fine-tunes, under a common vocabulary."""
    folder = tmp_path_factory.mktemp("releases")
    write_tokenizer(folder / "tokenizer")
    for name, seeds in {"sd15": (0, 1), "sdxl": (0, 1), "sdxl-refiner": (0, 1)}.items():
        for seed in seeds:
            save_file(single_file(build(name, seed)), folder / f"{name}-{seed}.safetensors")
    return folder


def draw(output: Path, *arguments: str) -> int:
    return run(["generate", "--prompt", "a cat", "--seed", "3", "-o", str(output), *SMALL, *arguments])


def again(first: Path, output: Path) -> bool:
    """Draw an image again and return whether it is the same."""
    assert run(["generate", "--like", str(first), "-o", str(output), "--device", "cpu"]) == 0
    with Image.open(first) as one, Image.open(output) as two:
        return bool(one.tobytes() == two.tobytes())


def models_of(path: Path) -> list[tuple[str, str, str]]:
    """Return the family, the file and the prefix of every network of an image."""
    with Image.open(path) as image:
        recipe: dict[str, Any] = json.loads(image.info["diffsynth"])
    return [(model["family"], Path(model["path"]).stem, model["prefix"]) for model in recipe["models"]]


def named(folder: Path, *names: str) -> list[str]:
    return [part for name in names for part in ("--model", str(folder / f"{name}.safetensors"))]


@pytest.mark.parametrize("kind", [HunyuanDiTImagePipeline, SDImagePipeline, SDXLImagePipeline])
def test_every_argument_of_python_is_an_option(kind: type[Any]) -> None:
    arguments = set(inspect.signature(kind.from_model_manager).parameters) - {"manager"}

    assert arguments <= set(inspect.signature(generate).parameters)


@pytest.mark.parametrize("choice", ["{folder}/sd15-1.safetensors", "sd15-1", "sd15-1.safetensors", "1", "-1"])
def test_a_network_is_chosen_by_path_name_or_index(files: Path, tmp_path: Path, choice: str) -> None:
    path = tmp_path / "image.png"
    vae = ["--vae", choice.format(folder=files)]

    assert draw(path, *named(files, "sd15-0", "sd15-1"), "--denoiser", "sd15-0", "--clip", "0", *vae) == 0

    assert [(family, file) for family, file, _ in models_of(path)] == [
        ("unet", "sd15-0"),
        ("clip", "sd15-0"),
        ("autoencoder_kl", "sd15-1"),
    ]
    assert again(path, tmp_path / "again.png")


def test_both_text_encoders_of_sdxl_are_chosen_apart_and_found_again(files: Path, tmp_path: Path) -> None:
    path, mixed = tmp_path / "image.png", tmp_path / "mixed.png"
    models = named(files, "sdxl-0", "sdxl-1")

    assert draw(path, *models, "--denoiser", "sdxl-0") == 0
    assert draw(mixed, *models, "--denoiser", "sdxl-0", "--clip-2", "sdxl-1") == 0

    assert [file for _, file, _ in models_of(mixed)] == ["sdxl-0", "sdxl-0", "sdxl-1", "sdxl-0"]
    assert path.read_bytes() != mixed.read_bytes()
    assert again(mixed, tmp_path / "again.png")


def test_a_refiner_is_chosen_by_name(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    models = named(files, "sdxl-0", "sdxl-refiner-0", "sdxl-refiner-1")

    assert draw(path, *models, "--denoiser", "sdxl-0", "--refiner-name", "sdxl-refiner-1") == 0

    assert models_of(path)[-1][:2] == ("unet", "sdxl-refiner-1")
    assert again(path, tmp_path / "again.png")


def test_an_image_is_drawn_again_without_its_refiner(files: Path, tmp_path: Path) -> None:
    path, without, plain = (tmp_path / f"{name}.png" for name in ("refined", "without", "plain"))

    assert draw(path, *named(files, "sdxl-0", "sdxl-refiner-0"), "--refiner", "--refiner-start", "0") == 0
    assert run(["generate", "--like", str(path), "--no-refiner", "-o", str(without), "--device", "cpu"]) == 0
    assert draw(plain, *named(files, "sdxl-0"), "--refiner-start", "0") == 0

    assert Image.open(without).tobytes() == Image.open(plain).tobytes() != Image.open(path).tobytes()


def test_an_image_is_drawn_again_without_its_second_stage(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    assert draw(large, *named(files, "sd15-0"), "--hires-scale", "2", "--hires-strength", "1") == 0

    assert run(["generate", "--like", str(large), "--hires-scale", "1", "-o", str(small), "--device", "cpu"]) == 0

    with Image.open(small) as image:
        assert image.size == (64, 64)
    assert "no effect" not in capsys.readouterr().err


def test_latents_are_drawn_again_as_a_picture(files: Path, tmp_path: Path) -> None:
    picture, latents = tmp_path / "picture.png", tmp_path / "latents.safetensors"

    for path in (picture, latents):
        assert draw(path, *named(files, "sd15-0")) == 0

    assert run(["generate", "--like", str(latents), "-o", str(tmp_path / "again.png"), "--device", "cpu"]) == 0
    assert Image.open(tmp_path / "again.png").tobytes() == Image.open(picture).tobytes()


def test_a_word_whose_file_is_another_now_is_told_of(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word, path, output = tmp_path / "ugly.safetensors", tmp_path / "image.png", tmp_path / "again.png"
    save_file({"emb_params": torch.zeros(1, 64)}, word)
    assert draw(path, *named(files, "sd15-0"), "--textual-inversion", str(word)) == 0

    save_file({"emb_params": torch.ones(1, 64)}, word)
    assert run(["generate", "--like", str(path), "-o", str(output), "--device", "cpu"]) == 0
    assert f"{word} is not the file that the image was drawn with" in capsys.readouterr().err

    word.unlink()
    assert run(["generate", "--like", str(path), "-o", str(output), "--device", "cpu"]) == 1
    assert "Say where they all are with --textual-inversion WORD=FILE" in capsys.readouterr().err


def test_kinds_need_files_to_be_said_of(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.png"
    assert draw(path, *named(files, "sd15-0")) == 0

    assert run(["generate", "--like", str(path), "--as", "unet", "-o", str(tmp_path / "again.png")]) == 1
    assert "name the files with --model too" in capsys.readouterr().err


def test_the_denoiser_that_is_named_decides_between_pipelines(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image.png"
    models = named(files, "sd15-0", "sdxl-0")

    assert draw(path, *models, "--denoiser", "sdxl-0") == 0
    assert models_of(path)[0][1] == "sdxl-0"
    assert draw(path, *models) == 1
    assert "Name the file of one with --denoiser" in capsys.readouterr().err


def test_what_the_network_predicts_can_be_said_and_is_kept(files: Path, tmp_path: Path) -> None:
    epsilon, velocity = tmp_path / "epsilon.png", tmp_path / "velocity.png"

    assert draw(epsilon, *named(files, "sd15-0")) == 0
    assert draw(velocity, *named(files, "sd15-0"), "--prediction", "velocity") == 0

    assert epsilon.read_bytes() != velocity.read_bytes()
    assert again(velocity, tmp_path / "again.png")


def test_words_are_learnt_and_kept(files: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    save_file({"emb_params": torch.randn(2, 64, generator=generator)}, tmp_path / "ugly.safetensors")
    learnt = [["--textual-inversion", f"{word}{tmp_path / 'ugly.safetensors'}"] for word in ("", "a=", "dog=")]
    paths = [tmp_path / f"{number}.png" for number in range(3)]

    for path, option in zip(paths, learnt, strict=True):
        assert draw(path, *named(files, "sd15-0"), *option) == 0

    pixels = [Image.open(path).tobytes() for path in paths]
    assert pixels[0] == pixels[2] != pixels[1]  # the prompt has the word "a" alone
    assert again(paths[1], tmp_path / "again.png")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--prediction", "noise"], "prediction"),
        (["--vae", "nothing"], "autoencoder"),
        (["--clip", "7"], "ClipText (7)"),
        (["--clip-2", "0"], "--clip-2 is not an option of SDImagePipeline"),
        (["--t5", "x"], "--t5 is not an option of SDImagePipeline"),
        (["--refiner"], "--refiner is not an option of SDImagePipeline"),
        (["--refiner-name", "x", "--no-refiner"], "--no-refiner and --refiner-name contradict each other"),
        (["--textual-inversion", "nowhere.pt"], "nowhere.pt"),
        (["--prediction", "epsilon", "--zero-terminal-snr"], "needs a network that predicts"),
        (["--mask-scale", "2"], "--mask-scales is not an option of SDImagePipeline"),
        (["--refiner-start", "0.5"], "--refiner-start is not an option of SDImagePipeline"),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_made_is_one_clear_message(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], message: str
) -> None:
    assert draw(tmp_path / "image.png", *named(files, "sd15-0"), *option) == 1

    assert message in capsys.readouterr().err
