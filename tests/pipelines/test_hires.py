"""Drawn small, enlarged and drawn over: the setting does what two calls do, in every pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffsynth import SDImagePipeline, SDXLImagePipeline, save_image
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.denoise import StepReport
from diffsynth.pipelines.recipe import read_recipe, request_from

from .conftest import Load, Release
from .toy import OTHER_PROMPT, PROMPT, largest_difference
from .unet.toy import load

SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 2, "seed": 7, "cfg_scale": 3.0}
CASES = [
    ("hunyuan_dit", "diffsynth"),
    ("hunyuan_dit", "original"),
    ("hunyuan_dit", "diffusers"),
    ("sd15", "diffusers"),
    ("sdxl", "diffusers"),
    ("sdxl", "sgm"),
]


@pytest.fixture(params=CASES, ids="-".join)
def any_pipe(request: pytest.FixtureRequest, pipeline: Load, release: Release) -> Any:
    """Return a pipeline of each family and of several programs."""
    name, conventions = request.param
    if name == "hunyuan_dit":
        return pipeline("v1.0", conventions)
    return load([release(name)], SDImagePipeline if name == "sd15" else SDXLImagePipeline, conventions)


def large_for(pipe: Any) -> dict[str, int]:
    """Return a larger size that the pipeline draws as it is, without moving to a trained one."""
    height, width = pipe.round_size(128, 192)
    return {"height": height, "width": width}


def small_for(pipe: Any) -> dict[str, Any]:
    height, width = pipe.round_size(64, 96)
    binning = {"resolution_binning": False} if "resolution_binning" in pipe.request_type.settings() else {}
    return {**SMALL, "height": height, "width": width, **binning}


@pytest.mark.parametrize("upscale", ["pixel", "latent"])
def test_the_setting_draws_what_two_calls_draw(any_pipe: Any, upscale: str) -> None:
    small, large = small_for(any_pipe), large_for(any_pipe)
    sized = {f"hires_{name}": value for name, value in large.items()}

    image = any_pipe(PROMPT, **small, **sized, hires_strength=0.67, hires_steps=3, hires_upscale=upscale)

    draft: Any = any_pipe(PROMPT, **small, output_type="latent" if upscale == "latent" else "pil")
    if upscale == "latent":
        draft = draft.resized(large["height"], large["width"])
    over = {**small, **large, "input_image": draft, "denoising_strength": 0.67, "num_inference_steps": 3}
    assert image.size == (large["width"], large["height"])
    assert image.tobytes() == any_pipe(PROMPT, **over).tobytes()


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm++2m_sde", "dpm++3m", "euler_a", "pndm", "unipc"])
def test_it_works_with_every_kind_of_sampler(release: Release, scheduler: str) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    settings = {**SMALL, "scheduler": scheduler}

    image = pipe(PROMPT, hires_scale=1.5, hires_strength=1.0, **settings)

    draft = pipe(PROMPT, **settings)
    again = pipe(PROMPT, **{**settings, "input_image": draft, "height": 96, "width": 144})
    assert image.tobytes() == again.tobytes()


@pytest.mark.parametrize("upscale", ["pixel", "latent"])
def test_an_image_of_a_batch_is_the_image_of_its_seed_alone(any_pipe: Any, upscale: str) -> None:
    settings = {**small_for(any_pipe), "seed": [5, 9], "scheduler": "ddpm", "num_inference_steps": 2}
    over = {"hires_scale": 2.0, "hires_strength": 0.5, "hires_upscale": upscale}

    together = any_pipe([PROMPT, OTHER_PROMPT], batch_size=2, **settings, **over)
    alone = any_pipe(OTHER_PROMPT, **{**settings, "seed": 9}, **over)

    assert largest_difference(together[1], alone) <= 1
    assert largest_difference(together[0], together[1]) > 1


def test_the_recipe_tells_of_it_and_draws_it_again(any_pipe: Any, tmp_path: Path) -> None:
    image = any_pipe(PROMPT, **small_for(any_pipe), hires_scale=2, hires_upscale="latent")

    path = save_image(image, tmp_path / "image.png")
    recipe = read_recipe(path)

    told = {name: value for name, value in recipe["request"].items() if name.startswith("hires")}
    assert told == {
        "hires_scale": None,
        "hires_height": image.height,
        "hires_width": image.width,
        "hires_strength": 0.5,
        "hires_steps": 2,
        "hires_upscale": "latent",
    }
    assert any_pipe(**request_from(recipe, any_pipe.request_type)).tobytes() == image.tobytes()
    with Image.open(path) as saved:
        words = f"Hires resize: {image.width}x{image.height}, Hires steps: 2, Hires upscaler: Latent"
        assert f"{words}, Denoising strength: 0.5" in saved.info["parameters"]


def test_a_picture_may_be_painted_in_and_enlarged(release: Release) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    picture, mask = Image.linear_gradient("L").resize((96, 64)), Image.new("L", (96, 64))
    mask.paste(255, (32, 0, 96, 64))
    settings = {**SMALL, "mask_image": mask}

    image = pipe(PROMPT, input_image=picture, denoising_strength=0.5, hires_scale=2, **settings)

    draft = pipe(PROMPT, input_image=picture, denoising_strength=0.5, **settings)
    over = {**settings, "height": 128, "width": 192, "denoising_strength": 0.5}
    assert image.tobytes() == pipe(PROMPT, input_image=draft, **over).tobytes()


def test_regions_of_the_image_are_those_of_the_enlarged_one(pipeline: Load) -> None:
    pipe = pipeline("v1.2", "diffsynth")
    mask = Image.new("L", (96, 64))
    mask.paste(255, (48, 0, 96, 64))
    settings = {**small_for(pipe), "local_prompts": [OTHER_PROMPT], "masks": [mask], "mask_scales": [2.0]}

    image = pipe(PROMPT, hires_scale=2, **settings)

    over = {"height": image.height, "width": image.width, "denoising_strength": 0.5}
    assert image.tobytes() == pipe(PROMPT, **{**settings, **over, "input_image": pipe(PROMPT, **settings)}).tobytes()


@pytest.mark.parametrize("upscale", ["pixel", "latent"])
def test_a_refiner_finishes_both_stages(release: Release, upscale: str) -> None:
    names = {"clip_2": "sdxl", "vae": "sdxl"}
    paths = [release("sdxl"), release("sdxl-refiner")]
    refined = load(paths, SDXLImagePipeline, refiner=True, **names)
    alone = load(paths, SDXLImagePipeline, **names)
    settings = {**SMALL, "num_inference_steps": 5, "hires_scale": 2, "hires_upscale": upscale}

    image = refined(PROMPT, **settings)

    small = {**SMALL, "num_inference_steps": 5}
    draft: Any = refined(PROMPT, **small, output_type="latent" if upscale == "latent" else "pil")
    if upscale == "latent":
        draft = draft.resized(128, 192)
    over = {**small, "height": 128, "width": 192, "denoising_strength": 0.5, "input_image": draft}
    assert image.tobytes() == refined(PROMPT, **over).tobytes()
    assert largest_difference(image, alone(PROMPT, **settings)) > 1
    assert largest_difference(image, alone(PROMPT, **over)) > 1


@pytest.mark.parametrize(("given", "size"), [({"hires_height": 128}, (192, 128)), ({"hires_width": 144}, (144, 96))])
def test_one_side_alone_keeps_the_shape(release: Release, given: dict[str, int], size: tuple[int, int]) -> None:
    pipe = load([release("sd15")], SDImagePipeline)

    assert pipe(PROMPT, **SMALL, **given).size == size


def test_a_size_between_multiples_is_rounded_with_a_remark(release: Release, caplog: pytest.LogCaptureFixture) -> None:
    pipe = load([release("sd15")], SDImagePipeline)

    assert pipe(PROMPT, hires_scale=1.3, **SMALL).size == (120, 80)
    assert "second stage: size 83 x 125 (height x width) becomes 80 x 120" in caplog.text


def test_a_factor_of_one_is_off_and_tells_what_has_no_effect(
    release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = load([release("sd15")], SDImagePipeline)

    image = pipe(PROMPT, hires_scale=1, hires_strength=0.3, **SMALL)

    assert "hires_strength has no effect: hires_scale 1 is no second stage" in caplog.text
    assert image.tobytes() == pipe(PROMPT, **SMALL).tobytes()
    assert image.info["recipe"].request == pipe(PROMPT, **SMALL).info["recipe"].request


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hires_scale": 2, "hires_height": 128}, "hires_scale and hires_height are both given"),
        ({"hires_strength": 0.5}, "hires_strength has no effect without hires_scale"),
        ({"hires_height": 32}, "hires_height 32 and hires_width 48, is not larger than the first, 64 x 96"),
        ({"hires_scale": 1.01}, "not larger than the first"),
        ({"hires_scale": 2, "hires_strength": 0.1}, "hires_steps 2 and hires_strength 0.1, cannot run: 2 steps"),
        ({"hires_scale": 16, "height": 4096}, "hires_height must be a whole number from 16 to 16384, not '65536'"),
        ({"hires_scale": 2, "hires_upscale": "esrgan"}, "hires_upscale is 'esrgan'; known are: pixel, latent"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_a_step_is_taken(
    release: Release, given: dict[str, Any], words: str
) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    steps: list[StepReport] = []

    with pytest.raises(InvalidRequest, match=words):
        pipe(PROMPT, callback=steps.append, **{**SMALL, **given})

    assert steps == []


def test_progress_tells_the_stage_and_the_share_of_both(release: Release) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    reports: list[StepReport] = []
    shares: list[float] = []

    class Bar:
        def progress(self, share: float) -> None:
            shares.append(share)

    settings = {**SMALL, "scheduler": "ddim", "hires_scale": 2, "hires_strength": 1.0}
    pipe(PROMPT, callback=reports.append, progress_bar_st=Bar(), **settings)

    assert [(each.stage, each.stages, each.step, each.steps) for each in reports] == [
        (1, 2, 1, 2),
        (1, 2, 2, 2),
        (2, 2, 1, 2),
        (2, 2, 2, 2),
    ]
    assert shares == [0.25, 0.5, 0.75, 1.0]
