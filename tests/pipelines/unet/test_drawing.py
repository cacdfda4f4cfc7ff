"""What holds for every UNet pipeline, whichever program it follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from diffsynth import ModelManager, SDImagePipeline, SDXLImagePipeline
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.recipe import Recipe, request_from
from diffsynth.pipelines.sdxl.request import SDXLRequest

from .conftest import Release
from .toy import OTHER, PROMPT, draw, load


@pytest.mark.parametrize(("name", "kind"), [("sd15", SDImagePipeline), ("sdxl", SDXLImagePipeline)])
def test_an_image_does_not_depend_on_those_it_is_drawn_with(release: Release, name: str, kind: type[Any]) -> None:
    pipe = load([release(name)], kind)

    _, together = draw(pipe, [PROMPT, OTHER], seed=[5, 9], scheduler="euler_a", num_inference_steps=2)
    _, alone = draw(pipe, OTHER, seed=9, scheduler="euler_a", num_inference_steps=2)

    torch.testing.assert_close(together[1:], alone, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_nearly_the_same(release: Release, dtype: torch.dtype) -> None:
    manager = ModelManager(torch_dtype=dtype, device="cpu", file_path_list=[release("sdxl")])
    settings: dict[str, Any] = {"num_inference_steps": 2, "cfg_scale": 2.0}

    _, half = draw(SDXLImagePipeline.from_model_manager(manager, "sgm"), PROMPT, **settings)
    _, full = draw(load([release("sdxl")], SDXLImagePipeline, "sgm"), PROMPT, **settings)

    assert half.dtype == torch.float32
    assert float((half - full).norm() / full.norm()) < 0.1


def test_the_programs_differ_in_what_an_empty_negative_prompt_is(release: Release) -> None:
    """sgm takes zeros for it, Diffusers for one that is not given only, DiffSynth reads the empty text."""

    def drawn(conventions: str, negative: str | None) -> torch.Tensor:
        pipe = load([release("sdxl")], SDXLImagePipeline, conventions)
        same: dict[str, Any] = {"scheduler": "euler", "cfg_scale": 3.0, "num_inference_steps": 1}
        return draw(pipe, PROMPT, negative_prompt=negative, width=64, **same)[1]

    assert torch.equal(drawn("sgm", ""), drawn("sgm", None))
    assert torch.equal(drawn("sgm", None), drawn("diffusers", None))
    assert not torch.equal(drawn("diffusers", ""), drawn("diffusers", None))
    assert torch.equal(drawn("diffsynth", ""), drawn("diffsynth", None))
    assert torch.equal(drawn("diffsynth", None), drawn("diffusers", ""))


def test_without_steps_for_it_the_refiner_changes_nothing(release: Release) -> None:
    pipe = load([release("sdxl"), release("sdxl-refiner")], SDXLImagePipeline, refiner=True)

    _, refined = draw(pipe, PROMPT, refiner_start=0.5, num_inference_steps=2)
    _, base = draw(pipe, PROMPT, refiner_start=1.0, num_inference_steps=2)
    pipe.refiner = None
    _, alone = draw(pipe, PROMPT, num_inference_steps=2)

    assert torch.equal(base, alone)
    assert not torch.allclose(refined, base)


def test_a_recipe_names_what_took_part_and_asks_for_its_pictures_again(release: Release) -> None:
    pipe = load([release("sd15")], SDImagePipeline)
    picture, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)

    settings: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 1, "seed": 1}
    image = pipe(PROMPT, input_image=picture, mask_image=mask, **settings)

    recipe: Recipe = image.info["recipe"]
    assert [source.role for source in recipe.models] == ["unet", "clip", "autoencoder_kl"]
    assert [source.role for source in recipe.vocabularies] == ["clip_tokenizer"]
    with pytest.raises(InvalidRequest, match=r"made from other pictures \(input_image, mask_image\)"):
        request_from(recipe.as_json(), pipe.request_type)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"crop": (1,)}, "crop must be two whole numbers, not 1"),
        ({"original_size": "big"}, "original_size must be two whole numbers, not str"),
        ({"target_size": (1.5, 2)}, "each of target_size must be a whole number from 0 to 100000"),
        ({"refiner_start": 2}, "refiner_start must be a number from 0 to 1"),
        ({"long_prompts": "all"}, "long_prompts is 'all'; known are: cut, chunks, blocks"),
        ({"clip_skip": 0}, "clip_skip must be a whole number from 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SDXLRequest.from_settings({"prompt": PROMPT, **setting})


def test_a_layer_that_an_encoder_does_not_have_is_refused(release: Release) -> None:
    pipe = load([release("sdxl")], SDXLImagePipeline)

    with pytest.raises(InvalidRequest, match="clip skip of the first text encoder is 3; it must be from 1 to 2"):
        draw(pipe, PROMPT, clip_skip=3)
