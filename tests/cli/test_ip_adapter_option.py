"""``diffsynth generate --ipadapter-image``: pictures as prompts, drawn again, and a file of several networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffsynth.cli import run
from diffsynth.core.saving import to_layout
from diffsynth.models import bert_clip, clip_vision
from examples.random_models import write_models
from examples.random_stable_diffusion import write_single_file
from tests.adapters import ENCODER, write_hunyuan_dit_ip_adapter, write_ip_adapter
from tests.spellings import lively

SMALL = ["--height", "64", "--width", "64", "--steps", "1", "--device", "cpu", "--prompt", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    write_single_file(root, "sd15")
    write_ip_adapter(root / "one", "sd15")
    write_ip_adapter(root / "two", "sd15", seed=5)
    for color in ("red", "blue"):
        Image.new("RGB", (50, 60), color).save(root / f"{color}.png")
    return root


def options(folder: Path, *names: str) -> list[str]:
    files = [folder / "sd15.safetensors"]
    for name in names:
        files += [folder / name / "ip-adapter_sd15.bin", folder / name / "image_encoder"]
    return [part for file in files for part in ("--model", str(file))]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return bytes(image.tobytes())


def test_an_image_with_pictures_is_drawn_again_when_they_are_given_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    red, blue = (["--ipadapter-image", str(folder / f"{color}.png")] for color in ("red", "blue"))

    assert run(["generate", *options(folder, "one"), *SMALL, *red, "--ipadapter-scale", "0.7", "-o", str(first)]) == 0
    assert run(["generate", "--like", str(first), "--device", "cpu", "-o", str(other)]) == 1
    assert "the image was made from other pictures (ipadapter_images); give them again" in capsys.readouterr().err
    assert run(["generate", "--like", str(first), *red, "--device", "cpu", "-o", str(again)]) == 0
    assert "will differ" not in capsys.readouterr().err
    assert run(["generate", "--like", str(first), *blue, "--device", "cpu", "-o", str(other)]) == 0
    assert "ipadapter_images: not what the image was drawn with; it will differ." in capsys.readouterr().err

    assert pixels(again) == pixels(first) != pixels(other)


def test_one_of_several_adapters_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", *options(folder, "one", "two"), *SMALL, "--ipadapter-image", str(folder / "red.png")]
    drawn = []

    assert run([*command, "-o", str(tmp_path / "image.png")]) == 1
    assert "ip_adapter=" in capsys.readouterr().err
    for number, name in enumerate(("one", "two")):
        path = tmp_path / f"{name}.png"
        named = ["--ip-adapter", name, "--image-encoder", str(number)]
        assert run([*command, *named, "-o", str(path)]) == 0
        drawn.append(pixels(path))

    assert drawn[0] != drawn[1]


def test_both_networks_of_a_file_are_taken_when_both_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(tmp_path)
    clip = tmp_path / "t2i" / "clip_text_encoder" / "pytorch_model.bin"
    text = {key: value for key, value in torch.load(clip, weights_only=True).items() if key != "visual.proj"}
    tower = to_layout(lively(clip_vision.FAMILY, ENCODER), clip_vision.FAMILY.layout("bilingual"), ENCODER)
    torch.save(text | tower, clip)
    adapter, _ = write_hunyuan_dit_ip_adapter(tmp_path / "adapter")
    Image.new("RGB", (50, 60), "red").save(tmp_path / "red.png")
    command = ["generate", "--model", str(tmp_path / "t2i"), "--model", str(adapter), *SMALL]
    command += ["--ipadapter-image", str(tmp_path / "red.png"), "-o", str(tmp_path / "image.png")]
    both = [part for kind in ("bert_clip", "clip_vision") for part in ("--as", f"{clip.parent}={kind}")]

    assert run(command) == 1
    assert 'with kind="clip_vision" (--as)' in capsys.readouterr().err
    assert run([*command, *both]) == 0

    with Image.open(tmp_path / "image.png") as image:
        families = [model["family"] for model in json.loads(image.info["diffsynth"])["models"]]
    assert {bert_clip.FAMILY.name, "clip_vision", "hunyuan_dit_ip_adapter"} <= set(families)


def test_two_kinds_for_every_file_contradict_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(folder / "one"), "--as", "clip_vision", "--as", "ip_adapter"]) == 1

    assert "--as names two kinds for every file: clip_vision and ip_adapter" in capsys.readouterr().err


def test_inspect_names_adapters_and_what_they_read_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, tower = write_hunyuan_dit_ip_adapter(tmp_path)
    files = [folder / "one" / "ip-adapter_sd15.bin", folder / "one" / "image_encoder", adapter, tower]

    assert run(["inspect", *map(str, files)]) == 0

    out = capsys.readouterr().out
    for expected in ("  ip_adapter: layout original", "  clip_vision: layout transformers", "under 'module.'"):
        assert expected in out
    assert "  hunyuan_dit_ip_adapter: layout original" in out


def test_inspect_tells_of_an_image_tower_beside_a_text_encoder_and_refuses_other_adapters_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = to_layout(lively(bert_clip.FAMILY), bert_clip.FAMILY.layouts[0], bert_clip.FAMILY.tiny())
    tower = to_layout(lively(clip_vision.FAMILY, ENCODER), clip_vision.FAMILY.layout("bilingual"), ENCODER)
    torch.save(text | tower, tmp_path / "clip.bin")
    torch.save({"image_proj": {"latents": torch.ones(1), "proj_in.weight": torch.ones(1)}}, tmp_path / "plus.bin")

    assert run(["inspect", str(tmp_path / "clip.bin"), str(tmp_path / "plus.bin")]) == 1

    out = capsys.readouterr().out
    assert "among them clip_vision, which is loaded with --as clip_vision" in out
    assert "plus.bin: is an IP-Adapter Plus, which resamples every patch" in out
