"""``diffsynth generate`` with control networks, run as a user does, and drawing such an image again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffsynth.cli import run
from examples.random_models import write_models

SMALL = ["--height", "32", "--width", "48", "--steps", "2", "--device", "cpu", "--prompt", "a cat", "--seed", "3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a toy HunyuanDiT with two control networks in a folder of theirs."""
    folder = tmp_path_factory.mktemp("controlled")
    write_models(folder, controlnets=["canny", "depth"])
    return folder / "t2i"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.radial_gradient("L").point(lambda value: 255 * (value > 120)).save(path)
    return path


def generate(models: Path, output: Path, *more: object) -> int:
    return run(["generate", "--model", str(models), *SMALL, "-o", str(output), *map(str, more)])


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        data: bytes = image.tobytes()
    return data


def recipe(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        found: dict[str, Any] = json.loads(image.info["diffsynth"])
    return found


def controls_of(path: Path) -> list[str]:
    return [Path(each["path"]).stem for each in recipe(path)["models"] if each["family"] == "hunyuan_dit_controlnet"]


def test_a_picture_steers_the_image_which_is_drawn_again_with_it(
    models: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, drawn, again = (tmp_path / f"{name}.png" for name in ("plain", "drawn", "again"))
    chosen = ["--controlnet", "pytorch_model_depth_distill", "--controlnet-image", photo, "--controlnet-scale", "0.8"]
    assert generate(models, plain) == 0

    code = generate(models, drawn, *chosen, "--controlnet-processor", "canny", "--controlnet-end", "0.5")

    assert code == 0
    assert pixels(plain) != pixels(drawn)
    assert (controls_of(plain), controls_of(drawn)) == ([], ["pytorch_model_depth_distill"])
    request = recipe(drawn)["request"]
    assert (request["controlnet_processors"], request["controlnet_ends"]) == (["canny"], [0.5])
    like = ["generate", "--like", str(drawn), "--device", "cpu", "--controlnet-image", str(photo), "-o", str(again)]
    assert run(like) == 0
    assert pixels(again) == pixels(drawn)
    assert "will differ" not in capsys.readouterr().err


def test_drawing_again_asks_for_the_picture(
    models: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "drawn.png"
    assert generate(models, drawn, "--controlnet", "0", "--controlnet-image", photo) == 0
    capsys.readouterr()

    code = run(["generate", "--like", str(drawn), "--device", "cpu", "-o", str(tmp_path / "again.png")])

    assert code == 1
    assert "made from other pictures (controlnet_images); give them again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--controlnet", "pose", "--controlnet-image", "{photo}"], "pose"),
        (["--controlnet-scale", "0.5"], "controlnet_scales has no effect without controlnet_images"),
        (["--controlnet-image", "{photo}", "--controlnet-processor", "hed"], "one of none, canny, not 'hed'"),
        (["--controlnet-image", "{photo}"] * 3, "controlnet_images has 3 entries, but 2 control networks are in use"),
        (["--controlnet-image", "nowhere.png"], "nowhere.png"),
    ],
    ids=["unknown network", "no picture", "unknown processor", "too many pictures", "no such file"],
)
def test_what_cannot_be_is_one_clear_error(
    models: Path,
    photo: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = generate(models, tmp_path / "image.png", *(option.format(photo=photo) for option in options))

    assert code != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "image.png").exists()


def test_inspecting_names_control_networks_and_their_version(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(models / "controlnet" / "pytorch_model_canny_distill.pt")]) == 0

    told = capsys.readouterr().out
    assert "hunyuan_dit_controlnet" in told
    assert "v1.2" in told
