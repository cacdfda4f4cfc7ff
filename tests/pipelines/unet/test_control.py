"""Control networks steer Stable Diffusion and SDXL: what changes, what does not, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffsynth import ModelManager, SDImagePipeline, SDXLImagePipeline
from diffsynth.core.saving import save_network
from diffsynth.errors import InvalidRequest
from diffsynth.models import unet
from diffsynth.models.unet.control import ControlNet
from examples.random_stable_diffusion import XL_UNION
from tests.naming import as_written
from tests.spellings import lively

from .conftest import Release
from .toy import OTHER, PROMPT, SMALL, draw, load

GUIDED: dict[str, Any] = {"negative_prompt": OTHER, "cfg_scale": 3.0, "num_inference_steps": 4, "scheduler": "ddim"}
TYPES = "openpose, depth, softedge, scribble, canny, lineart, lineart_anime, mlsd, normal, segment, tile, repaint"
HINT = Image.linear_gradient("L").convert("RGB").resize((96, 64))
OTHER_HINT = HINT.transpose(Image.Transpose.ROTATE_180)


@pytest.fixture
def sd(release: Release) -> SDImagePipeline:
    pipe: SDImagePipeline = load([release("sd15"), release("sd15-controlnet")], SDImagePipeline)
    return pipe


@pytest.fixture
def union(release: Release) -> SDXLImagePipeline:
    pipe: SDXLImagePipeline = load([release("sdxl"), release("sdxl-union")], SDXLImagePipeline)
    return pipe


def latents(pipe: Any, **settings: Any) -> Tensor:
    return draw(pipe, PROMPT, **{**GUIDED, **settings})[1]


def calls_of(network: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return a list to which every call of a method adds its arguments."""
    found: list[tuple[Any, ...]] = []
    own: Callable[..., Any] = getattr(network, method)

    def noted(*args: Any, **named: Any) -> Any:
        found.append(args)
        return own(*args, **named)

    monkeypatch.setattr(network, method, noted)
    return found


# What changes and what does not


@pytest.mark.parametrize("settings", [{}, {"controlnet_image": HINT, "controlnet_scales": 0}], ids=as_written)
def test_a_network_without_a_picture_or_without_strength_changes_no_bit(
    sd: SDImagePipeline, settings: dict[str, Any], release: Release
) -> None:
    alone = load([release("sd15")], SDImagePipeline)

    assert torch.equal(latents(sd, **settings), latents(alone))


@pytest.mark.parametrize(
    "settings",
    [
        {"controlnet_image": HINT},
        {"controlnet_image": HINT, "controlnet_scales": 0.5},
        {"controlnet_image": HINT, "controlnet_starts": 0.5},
        {"controlnet_image": HINT, "controlnet_ends": 0.5},
        {"controlnet_image": HINT, "controlnet_processors": "canny"},
        {"controlnet_image": HINT, "guess_mode": True},
    ],
    ids=as_written,
)
def test_every_setting_matters(sd: SDImagePipeline, settings: dict[str, Any]) -> None:
    usual = latents(sd, controlnet_image=OTHER_HINT)

    assert (latents(sd, **settings) - usual).abs().max() > 1e-3


def test_a_picture_is_encoded_once_and_the_network_asked_once_per_step_of_its_window(
    sd: SDImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = sd.controlnets.loaded[0].module
    encoded, asked = (calls_of(network, method, monkeypatch) for method in ("encode_hints", "denoise"))
    planned = calls_of(network, "plan", monkeypatch)

    draw(sd, PROMPT, controlnet_image=HINT, controlnet_starts=0.25, controlnet_ends=0.75, **GUIDED)

    assert (len(encoded), len(planned)) == (1, 1)
    assert [(len(rows), step) for rows, step, _ in asked] == [(2, 1), (2, 2)]


def test_guess_mode_asks_for_the_prompts_rows_only(sd: SDImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = calls_of(sd.controlnets.loaded[0].module, "denoise", monkeypatch)

    draw(sd, PROMPT, controlnet_image=HINT, guess_mode=True, **GUIDED)

    assert [len(rows) for rows, *_ in asked] == [1] * 4


@pytest.mark.parametrize("guess", [False, True])
def test_prompts_of_several_lengths_are_steered_alike(release: Release, guess: bool) -> None:
    pipe = load([release("sd15"), release("sd15-controlnet")], SDImagePipeline, "diffsynth")
    long = ", ".join([PROMPT] * 30)
    case = {**SMALL, **GUIDED, "controlnet_image": HINT, "guess_mode": guess, "output_type": "latent"}
    case.pop("seed")

    together = pipe([PROMPT, long], seed=[3, 4], batch_size=2, **case)
    alone = [pipe(prompt, seed=seed, **case) for prompt, seed in ((PROMPT, 3), (long, 4))]

    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.values, other.values, atol=1e-4, rtol=1e-4)


def test_pictures_of_a_batch_do_not_mix_in_a_union(union: SDXLImagePipeline) -> None:
    case = {"controlnet_images": [HINT, OTHER_HINT], "controlnet_types": ["depth", "canny"], **GUIDED}

    together = draw(union, [PROMPT, OTHER], **case)[1]
    alone = draw(union, PROMPT, **case)[1]

    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)


def test_names_for_one_type_mean_the_same(union: SDXLImagePipeline) -> None:
    one, other = (latents(union, controlnet_image=HINT, controlnet_types=name) for name in ("canny", "mlsd"))

    assert torch.equal(one, other)


def test_a_picture_without_strength_is_as_if_it_were_not_given_to_a_union(union: SDXLImagePipeline) -> None:
    one = latents(union, controlnet_image=HINT, controlnet_types="depth", controlnet_scales=0.7)
    two = latents(
        union, controlnet_images=[HINT, OTHER_HINT], controlnet_types=["depth", "tile"], controlnet_scales=[0.7, 0]
    )

    assert torch.equal(one, two)


def test_a_union_beside_another_network_is_named_once_for_each_of_its_pictures(release: Release) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_models([release("sdxl"), release("sdxl-union"), release("sdxl-controlnet")])
    names = ["sdxl-union", "sdxl-union", "sdxl-controlnet"]
    pipe = SDXLImagePipeline.from_model_manager(manager, "diffusers", controlnets=names)
    case: dict[str, Any] = {"controlnet_images": [HINT, OTHER_HINT, HINT], "controlnet_types": ["depth", "tile", ""]}

    image, found = draw(pipe, PROMPT, **case, **GUIDED)

    assert found.isfinite().all()
    families = [source.role for source in image.info["recipe"].models]
    assert families.count("unet_controlnet") == 2
    weaker = latents(pipe, **case, controlnet_scales=[1.0, 1.0, 0.5])
    assert (weaker - found).abs().max() > 1e-3


def test_the_second_stage_is_steered_in_its_own_size(sd: SDImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = calls_of(sd.controlnets.loaded[0].module, "denoise", monkeypatch)
    case = {"controlnet_image": HINT, "hires_scale": 2, "hires_steps": 4, **GUIDED}

    image, _ = draw(sd, PROMPT, **case)

    assert image.size == (192, 128)
    assert [tuple(rows.shape[-2:]) for rows, *_ in asked] == [(8, 12)] * 4 + [(16, 24)] * 2


def test_a_refiner_is_not_steered_and_that_is_told(
    release: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = [release("sdxl"), release("sdxl-refiner"), release("sdxl-controlnet")]
    pipe = load(files, SDXLImagePipeline, refiner=True)
    asked = calls_of(pipe.controlnets.loaded[0].module, "denoise", monkeypatch)

    draw(pipe, PROMPT, controlnet_image=HINT, refiner_start=0.5, **GUIDED)

    assert [step for _, step, _ in asked] == [0, 1]
    assert "the refiner, which takes over at refiner_start 0.5, is not steered by control networks" in caplog.text


def test_half_precision_draws(release: Release) -> None:
    manager = ModelManager(torch_dtype=torch.bfloat16, device="cpu")
    manager.load_models([release("sdxl"), release("sdxl-union")])
    pipe = SDXLImagePipeline.from_model_manager(manager, "diffusers")

    found = latents(pipe, controlnet_image=HINT, controlnet_types="canny")

    assert found.isfinite().all()


def test_a_small_network_that_reads_no_text_steers(release: Release, tmp_path: Path) -> None:
    config = replace(XL_UNION, depths=(0, 0, 0), mid_depth=0, context_size=0, bare_levels=(1, 2, 3), types=0)
    network: ControlNet = lively(unet.CONTROLNET_FAMILY, config)
    save_network(network, unet.CONTROLNET_FAMILY, config, tmp_path / "small.safetensors", "diffusers")
    pipe = load([release("sdxl"), tmp_path / "small.safetensors"], SDXLImagePipeline)

    assert (latents(pipe, controlnet_image=HINT) - latents(pipe)).abs().max() > 1e-3


def test_a_recipe_names_the_network_only_if_it_took_part(sd: SDImagePipeline) -> None:
    with_it, _ = draw(sd, PROMPT, controlnet_image=HINT, **GUIDED)
    without, _ = draw(sd, PROMPT, **GUIDED)

    roles = [[source.role for source in image.info["recipe"].models] for image in (with_it, without)]
    assert ["unet_controlnet" in each for each in roles] == [True, False]
    assert with_it.info["recipe"].as_json()["request"]["controlnet_images"][0]["size"] == [96, 64]


def test_networks_are_given_back(release: Release) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_models([release("sd15"), release("sd15-controlnet")])
    pipe = SDImagePipeline.from_model_manager(manager)

    pipe.release()

    assert len(manager) == 0


# What is refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"controlnet_types": "canny"}, "controlnet_types has no effect without controlnet_images"),
        ({"guess_mode": True}, "guess_mode has no effect without controlnet_images"),
        ({"controlnet_image": HINT, "controlnet_types": "edges"}, "each of controlnet_types is one of openpose, depth"),
        ({"controlnet_image": HINT, "controlnet_types": "canny"}, "knows one type of pictures only"),
        ({"controlnet_images": [HINT, HINT]}, "controlnet_images has 2 entries, but one control network is in use"),
    ],
    ids=as_written,
)
def test_settings_that_make_no_sense_are_refused(sd: SDImagePipeline, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        draw(sd, PROMPT, **settings)


def test_a_union_is_told_what_a_picture_is(union: SDXLImagePipeline, release: Release, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"is a union network: say what the pictures are .*: {TYPES}, inpaint"):
        draw(union, PROMPT, controlnet_image=HINT)
    first = replace(XL_UNION, types=6)
    save_network(
        unet.CONTROLNET_FAMILY.build(first), unet.CONTROLNET_FAMILY, first, tmp_path / "first.safetensors", "diffusers"
    )
    pipe = load([release("sdxl"), tmp_path / "first.safetensors"], SDXLImagePipeline)
    with pytest.raises(InvalidRequest, match=r"says 'tile', but .*first\.safetensors knows 6 types: openpose, "):
        draw(pipe, PROMPT, controlnet_image=HINT, controlnet_types="tile")


def test_a_network_of_another_release_is_refused_with_the_reason(
    release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    files = [release("sdxl"), release("sd15-controlnet")]
    caplog.set_level(logging.INFO)
    reason = (
        r"unet_controlnet from .*sd15-controlnet.safetensors under 'control_model.' does not fit unet from .*sdxl"
        r".*: it has output widths .*; text features 64, not 192; pooled features and numbers 0, not 1664\. "
    )

    with pytest.raises(InvalidRequest, match=reason):
        load(files, SDXLImagePipeline, controlnets=["sd15-controlnet"])
    pipe = load(files, SDXLImagePipeline)
    assert "left out: unet_controlnet" in caplog.text
    with pytest.raises(InvalidRequest, match=f"(?s)this pipeline has no control network.*{reason}"):
        draw(pipe, PROMPT, controlnet_image=HINT)


def test_a_picture_needs_a_network(release: Release) -> None:
    pipe = load([release("sd15")], SDImagePipeline)

    with pytest.raises(InvalidRequest, match="controlnet_images are given, but this pipeline has no control network"):
        draw(pipe, PROMPT, controlnet_image=HINT)


def test_a_plain_network_is_named_once(release: Release) -> None:
    with pytest.raises(InvalidRequest, match=r"names unet_controlnet from .* twice"):
        load([release("sd15"), release("sd15-controlnet")], SDImagePipeline, controlnets=["sd15-controlnet", 0])
