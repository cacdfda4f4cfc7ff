"""What is told of two images that should be the same, or should not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffsynth import HunyuanDiTImagePipeline, compare_images, save_image, save_latents
from diffsynth.batch import run_batch
from diffsynth.batch.why_folders import compare_folders
from diffsynth.errors import InvalidRequest

Save = Callable[..., Path]

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1, "cfg_scale": 2.0}
RECIPE: dict[str, Any] = {
    "version": 1,
    "pipeline": "SDImagePipeline",
    "torch": "2.13.0",
    "models": [],
    "request": {"prompt": "a fox", "seed": 7, "height": 8, "width": 8, "num_inference_steps": 20},
}


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a function that writes noise with a recipe; ``off`` is added to the first value."""

    def write(
        name: str, *, seed: int = 0, off: int = 0, size: int = 8, folder: str = "", smooth: bool = False, **changes: Any
    ) -> Path:
        pixels = np.random.default_rng(seed).integers(50, 200, (size, size, 3), dtype=np.uint8)
        if smooth:
            pixels = np.linspace(50, 200, size * size, dtype=np.uint8).repeat(3).reshape(size, size, 3)
        pixels[0, 0, 0] += off
        recipe = {**RECIPE, **changes, "request": {**RECIPE["request"], **changes.get("request", {})}}
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".png":
            chunks = PngInfo()
            chunks.add_itxt("diffsynth", json.dumps(recipe))
            Image.fromarray(pixels).save(path, pnginfo=chunks)
        else:
            exif = Image.Exif()
            exif[0x010E] = json.dumps(recipe)
            Image.fromarray(pixels).save(path, exif=exif, quality=90)
        return path

    return write


def verdict(first: Path, second: Path) -> str:
    return compare_images(first, second).verdict


def test_a_copy_is_equal_byte_for_byte(save: Save) -> None:
    found = compare_images(save("a.png"), save("b.png"))

    assert found.same_file
    assert str(found).splitlines()[2:] == [
        "the same recipe",
        "pixels: equal byte for byte",
        "they are the same image, drawn the same way.",
    ]


def test_what_differs_in_the_recipe_explains_other_pixels(save: Save) -> None:
    found = compare_images(save("a.png"), save("b.png", seed=1, request={"seed": 8, "num_inference_steps": 30}))

    lines = str(found).splitlines()
    assert lines[2:5] == ["the same in all but:", "  seed: 7 | 8", "  num_inference_steps: 20 | 30"]
    assert lines[5].startswith("pixels: 99")
    assert lines[6] == "explained by seed and num_inference_steps."


def test_a_setting_without_an_effect_is_told_of(save: Save) -> None:
    first, second = save("a.png"), save("b.png", request={"num_inference_steps": 30})

    assert verdict(first, second) == "num_inference_steps had no effect on this image."


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"off": 1}, "drawn in another batch size or on another device, most likely"),
        ({"off": 1, "torch": "2.14.0"}, "explained by torch: the same sums, rounded otherwise."),
        ({"off": 9, "torch": "2.14.0"}, "explained by torch: rounding that grows from step to step."),
        ({"off": 9}, "the recipes do not explain this. Something that is not in them differs"),
        ({"seed": 1, "torch": "2.14.0"}, "the recipes do not explain this. torch only rounds otherwise. Something"),
        ({"size": 16}, "no setting explains that: "),
        ({"size": 16, "request": {"height": 16, "width": 16}}, "explained by height and width."),
    ],
)
def test_the_verdict_says_whether_the_recipes_explain_the_pixels(
    second: dict[str, Any], expected: str, save: Save
) -> None:
    assert verdict(save("a.png"), save("b.png", **second)).startswith(expected)


def test_an_image_that_has_not_the_size_it_was_drawn_in_is_named(save: Save, tmp_path: Path) -> None:
    larger = save("b.png", size=16)

    assert verdict(save("a.png"), larger) == f"no setting explains that: {larger} was resized or cropped."


@pytest.mark.parametrize("name", ["b.jpg", "b.webp"])
def test_lossy_files_have_recipes_and_their_compression_is_named(name: str, save: Save) -> None:
    found = compare_images(save("a.png", smooth=True), second := save(name, smooth=True, off=40))

    assert found.differences == ()
    assert not found.comparison.small
    assert found.verdict.startswith(f"explained by the compression of {second}")


def test_a_picture_without_a_recipe_is_compared_by_its_pixels(save: Save, tmp_path: Path) -> None:
    with Image.open(save("a.png")) as image:
        image.save(tmp_path / "bare.png")

    found = compare_images(tmp_path / "a.png", tmp_path / "bare.png")

    assert found.lines() == [
        f"no recipe in {tmp_path / 'bare.png'}",
        "pixels: equal, 8x8",
        "they are the same picture.",
    ]
    assert "cannot be said why" in verdict(save("c.png", seed=1), tmp_path / "bare.png")


def test_a_recipe_that_was_changed_by_hand_is_one_clear_error(save: Save) -> None:
    with pytest.raises(InvalidRequest, match=r"b\.png holds a recipe that this version cannot read: its version is 9"):
        verdict(save("a.png"), save("b.png", version=9))


def test_images_of_a_pipeline_are_compared_in_memory_and_latents_in_files(
    pipe: HunyuanDiTImagePipeline, tmp_path: Path
) -> None:
    one, two = pipe("a cat", seed=1, **SMALL), pipe("a cat", seed=2, **SMALL)
    path = save_image(one, tmp_path / "one.png")
    latents = [pipe("a cat", seed=1, output_type="latent", **{**SMALL, **more}) for more in ({}, {"cfg_scale": 3.0})]
    files = [save_latents(each, tmp_path / f"{number}.safetensors") for number, each in enumerate(latents)]

    assert compare_images(path, one).verdict == "they are the same image, drawn the same way."
    assert [str(each) for each in compare_images(one, two).differences] == ["seed: 1 | 2"]
    assert compare_images(*files).verdict == "explained by cfg_scale."
    assert compare_images(files[0], files[0]).comparison.equal


def test_a_ledger_beside_an_image_tells_of_the_batch_it_was_drawn_in(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    job = [{"prompt": f"a cat number {number}", "seed": number, **SMALL} for number in range(3)]
    run_batch(pipe, job, out / "together", batch_size=3)
    run_batch(pipe, job, out / "alone", exact=True)

    found = compare_images(out / "together" / "000001-1.png", out / "alone" / "000001-1.png")

    assert [str(each) for each in found.differences] == ["images drawn together: 3 | 1"]
    assert found.comparison.small
    assert "images drawn together" in found.verdict


def test_two_runs_are_compared_pair_by_pair(save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        save(f"{number}.png", seed=number, folder="one")
    save("0.png", seed=0, folder="two")
    for number in (1, 2):
        save(f"{number}.png", seed=number, off=9, folder="two", request={"seed": 8})
    (tmp_path / "two" / "3.png").write_bytes(b"no picture")
    save("4.png", folder="two")

    found = compare_folders(tmp_path / "one", tmp_path / "two")

    lines = str(found).splitlines()[2:]
    assert "3.png is not a picture" in caplog.text
    assert lines[:3] == ["only in A: 1: 3.png", "only in B: 1: 4.png", "equal: 1, 1 of them byte for byte"]
    assert lines[3:6] == ["2 of the others: 1.png, 2.png", "  the same in all but:", "    seed: 7 | 8"]
    assert lines[-1] == "  explained by seed."
