"""Latents that one pipeline draws and another goes on with: whose scale they have, whose autoencoder, which size."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffsynth import (
    HunyuanDiTImagePipeline,
    ModelManager,
    SDImagePipeline,
    SDXLImagePipeline,
    open_latents,
    save_image,
    save_latents,
)
from diffsynth.core.saving import save_network
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.denoise import StepReport
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.recipe import read_recipe, request_from
from diffsynth.schedulers.base import SchedulerRun

from .conftest import Release
from .toy import PROMPT
from .unet.toy import load, write_release

SMALL: dict[str, Any] = {"height": 64, "width": 128, "num_inference_steps": 2, "seed": 7}
OVER: dict[str, Any] = {"denoising_strength": 0.5, "num_inference_steps": 2, "seed": 8}


@pytest.fixture(scope="module")
def manager(v1_2: list[Path], release: Release) -> ModelManager:
    """Return a manager with HunyuanDiT and SDXL, whose one autoencoder is HunyuanDiT's."""
    found = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    for kind in ("unet", "clip"):
        found.load_model(release("sdxl"), kind=kind)
    return found


@pytest.fixture
def first(manager: ModelManager) -> HunyuanDiTImagePipeline:
    return HunyuanDiTImagePipeline.from_model_manager(manager)


@pytest.fixture
def second(manager: ModelManager) -> SDXLImagePipeline:
    return SDXLImagePipeline.from_model_manager(manager, "diffusers")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that gets the clean latents of each run that starts from some."""
    seen: list[Tensor] = []
    whole: Callable[..., Tensor] = SchedulerRun.add_noise

    def add_noise(self: SchedulerRun, clean: Tensor, noise: Tensor, step: int = 0) -> Tensor:
        seen.append(clean)
        return whole(self, clean, noise, step)

    monkeypatch.setattr(SchedulerRun, "add_noise", add_noise)
    return seen


def last_latents(pipe: Any, **settings: Any) -> tuple[LatentImage, Tensor]:
    """Return what a pipeline hands over, and the scaled latents that its last step left."""
    reports: list[StepReport] = []
    latents: LatentImage = pipe(PROMPT, output_type="latent", callback=reports.append, **settings)
    return latents, reports[-1].latents[0]


def test_latents_are_handed_over_without_a_pipelines_scale(
    first: HunyuanDiTImagePipeline, second: SDXLImagePipeline, taken: list[Tensor]
) -> None:
    assert first.vae is second.vae
    latents, scaled = last_latents(first, **SMALL)

    image = second(PROMPT, input_image=latents, **OVER)

    torch.testing.assert_close(latents.values, scaled / 0.13025)
    torch.testing.assert_close(taken[0][0], scaled)
    assert image.size == latents.size == (128, 64)


def test_each_pipeline_applies_its_own_scale_to_one_autoencoder(
    first: HunyuanDiTImagePipeline, second: SDXLImagePipeline, taken: list[Tensor]
) -> None:
    latents, scaled = last_latents(first, **SMALL)
    second.latent_scale = 0.5

    second(PROMPT, input_image=latents, **OVER)

    torch.testing.assert_close(taken[0][0], scaled / 0.13025 * 0.5)


def test_latents_say_what_the_image_would_have_said(first: HunyuanDiTImagePipeline) -> None:
    latents = first(PROMPT, output_type="latent", num_images_per_prompt=2, batch_size=2, **SMALL)

    images = first(PROMPT, num_images_per_prompt=2, batch_size=2, **SMALL)

    for found, image in zip(latents, images, strict=True):
        assert found.info["seed"] == image.info["seed"]
        assert found.info["recipe"].request == image.info["recipe"].request
        (decoded,) = first.codec.decode(found.values[None] * first.latent_scale, tiles=None)
        assert decoded.tobytes() == image.tobytes()


def test_every_image_of_a_batch_starts_from_the_latents(
    first: HunyuanDiTImagePipeline, second: SDXLImagePipeline, taken: list[Tensor]
) -> None:
    latents, scaled = last_latents(first, **SMALL)

    second(PROMPT, input_image=latents, num_images_per_prompt=2, batch_size=2, **OVER)

    torch.testing.assert_close(taken[0], scaled.expand(2, -1, -1, -1))


def test_the_recipe_says_where_latents_came_from(
    first: HunyuanDiTImagePipeline, second: SDXLImagePipeline, tmp_path: Path
) -> None:
    latents = first(PROMPT, output_type="latent", **SMALL)

    recipe = read_recipe(save_image(second(PROMPT, input_image=latents, **OVER), tmp_path / "image.png"))

    origin = recipe["request"]["input_image"]
    assert origin["size"] == [128, 64]
    assert origin["recipe"]["pipeline"] == "HunyuanDiTImagePipeline"
    assert origin["recipe"]["request"]["seed"] == 7
    with pytest.raises(InvalidRequest, match=r"made from other pictures \(input_image\)"):
        request_from(recipe, second.request_type)


def test_latents_of_another_scale_are_refused_unless_the_autoencoder_is_the_same(
    first: HunyuanDiTImagePipeline, release: Release
) -> None:
    latents = first(PROMPT, output_type="latent", **SMALL)
    other = load([release("sd15")], SDImagePipeline)

    with pytest.raises(InvalidRequest, match=r"of another autoencoder: their scale is 0.13025, here it is 0.18215"):
        other(PROMPT, input_image=latents, **OVER)


def test_another_autoencoder_of_the_same_scale_is_told_of(
    first: HunyuanDiTImagePipeline, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    latents = first(PROMPT, output_type="latent", **SMALL)
    other = load([release("sdxl")], SDXLImagePipeline)

    other(PROMPT, input_image=latents, **OVER)

    assert "the latents come from another autoencoder than the one here" in caplog.text


def test_the_same_file_loaded_twice_is_the_same_autoencoder(
    manager: ModelManager, v1_2: list[Path], second: SDXLImagePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    again = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    latents = HunyuanDiTImagePipeline.from_model_manager(again)(PROMPT, output_type="latent", **SMALL)

    second(PROMPT, input_image=latents, **OVER)

    assert not latents.belongs_to(second.vae)
    assert caplog.text == ""


@pytest.mark.parametrize(("settings", "there"), [({"height": 96}, "96 x 128"), ({"width": 64}, "64 x 64")])
def test_latents_of_another_size_are_refused_with_the_remedy(
    first: HunyuanDiTImagePipeline, second: SDXLImagePipeline, settings: dict[str, Any], there: str
) -> None:
    latents = first(PROMPT, output_type="latent", **SMALL)
    height, width = there.split(" x ")

    with pytest.raises(
        InvalidRequest, match=f"64 x 128 .* but {there} are to be drawn.*resized\\({height}, {width}\\)"
    ):
        second(PROMPT, input_image=latents, **OVER, **settings)

    resized = latents.resized(int(height), int(width))
    assert second(PROMPT, input_image=resized, **OVER).size == resized.size


def test_a_size_between_latent_pixels_is_refused(first: HunyuanDiTImagePipeline) -> None:
    latents = first(PROMPT, output_type="latent", **SMALL)

    with pytest.raises(InvalidRequest, match=r"size 100 x 128 .* multiples of 8 pixels"):
        latents.resized(100, 128)


def test_latents_of_another_shape_are_refused(first: HunyuanDiTImagePipeline, second: SDXLImagePipeline) -> None:
    latents = LatentImage(values=torch.zeros(16, 8, 16), downscale=8, latent_scale=0.13025)

    with pytest.raises(InvalidRequest, match="16 channels for 8 x 8 pixels each; this autoencoder's have 4 for 8 x 8"):
        second(PROMPT, input_image=latents, **OVER)


def test_a_network_made_for_inpainting_is_not_given_latents(release: Release) -> None:
    pipe = load([release("sd15-inpainting")], SDImagePipeline)
    mask, picture = Image.new("L", (64, 64), 255), Image.new("RGB", (64, 64))
    latents = LatentImage(values=torch.zeros(4, 8, 8), downscale=8, latent_scale=0.18215)
    settings = {"num_inference_steps": 2, "mask_image": mask}

    with pytest.raises(InvalidRequest, match="is shown pixels of the input image, not latents"):
        pipe(PROMPT, input_image=latents, **settings)
    with pytest.raises(InvalidRequest, match='hires_upscale="pixel"'):
        pipe(PROMPT, input_image=picture, hires_scale=2, hires_upscale="latent", **settings)
    assert pipe(PROMPT, input_image=picture, hires_scale=2, **settings).size == (128, 128)


def test_latents_keep_no_network_in_memory(v1_2: list[Path]) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=v1_2)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    latents = pipe(PROMPT, output_type="latent", **SMALL)
    network = weakref.ref(pipe.vae)

    del pipe, manager
    gc.collect()

    assert network() is None
    assert latents.size == (128, 64)


def test_an_output_type_that_is_not_there_is_refused(second: SDXLImagePipeline) -> None:
    with pytest.raises(InvalidRequest, match="output_type is 'np'; known are: pil, latent"):
        second(PROMPT, **{**SMALL, "output_type": "np"})


def test_latents_in_a_file_go_on_as_those_in_memory(
    first: HunyuanDiTImagePipeline, second: SDXLImagePipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    latents = first(PROMPT, output_type="latent", **SMALL)

    read = open_latents(save_latents(latents, tmp_path / "draft.safetensors"))

    assert torch.equal(read.values, latents.values)
    assert read.info["recipe"]["pipeline"] == "HunyuanDiTImagePipeline"
    images = [second(PROMPT, input_image=each, **OVER) for each in (latents, read)]
    assert images[0].tobytes() == images[1].tobytes()
    assert caplog.text == ""


def test_what_is_no_file_of_latents_is_one_clear_error(first: HunyuanDiTImagePipeline, tmp_path: Path) -> None:
    text, cut = tmp_path / "text.safetensors", tmp_path / "cut.safetensors"
    text.write_text("hello", "utf-8")
    latents = first(PROMPT, output_type="latent", **SMALL)
    whole = save_latents(latents, tmp_path / "whole.safetensors")
    cut.write_bytes(whole.read_bytes()[:-5])
    entry = first.loaded[-1]
    weights = save_network(entry.module, entry.family, entry.config, tmp_path / "vae.safetensors", "diffusers")

    for path in (text, cut, weights):
        with pytest.raises(InvalidRequest, match=f"{path.name} holds no latents that diffsynth wrote"):
            open_latents(path)
    with pytest.raises(InvalidRequest, match=r"must end in \.safetensors"):
        save_latents(latents, tmp_path / "latents.png")


def test_the_picture_of_any_pipeline_goes_into_any_other(
    first: HunyuanDiTImagePipeline, second: SDXLImagePipeline, release: Release
) -> None:
    pipes: list[Any] = [first, second, load([release("sd15")], SDImagePipeline)]
    pictures = [pipe(PROMPT, **SMALL) for pipe in pipes]

    for pipe in pipes:
        drawn = [pipe(PROMPT, input_image=picture, **OVER) for picture in pictures]

        assert {image.size for image in drawn} == {(128, 64)}
        assert len({image.tobytes() for image in (*drawn, *pictures)}) == 6


def test_a_release_of_another_family_shares_no_scale(release: Release, tmp_path: Path) -> None:
    """The two autoencoders have one structure; only the pipelines know that their latents differ."""
    sd = load([release("sd15")], SDImagePipeline)
    xl = load([write_release(tmp_path, "sdxl")], SDXLImagePipeline)

    latents = sd(PROMPT, output_type="latent", **SMALL)

    assert latents.latent_scale == 0.18215
    with pytest.raises(InvalidRequest, match="Hand over the picture itself"):
        xl(PROMPT, input_image=latents, **OVER)
