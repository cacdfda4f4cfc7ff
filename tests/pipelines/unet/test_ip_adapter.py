"""Pictures as prompts of Stable Diffusion and SDXL: whole images as Diffusers draws them, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffsynth import ModelManager, SDImagePipeline, SDXLImagePipeline, save_image
from diffsynth.core.saving import to_layout
from diffsynth.errors import AmbiguousModel, InvalidRequest, ModelNotLoaded
from diffsynth.models import clip_vision
from tests.adapters import ENCODER, write_hunyuan_dit_ip_adapter, write_ip_adapter

from .conftest import Release
from .toy import OTHER, PROMPT, SMALL, assert_same, draw, load

KINDS: dict[str, tuple[type[Any], str]] = {
    "sd15": (SDImagePipeline, "StableDiffusionPipeline"),
    "sdxl": (SDXLImagePipeline, "StableDiffusionXLPipeline"),
}
Adapter = Callable[[str], list[Path]]


def picture(seed: int, width: int = 70, height: int = 50) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


ONE, TWO = picture(1), picture(2, 48, 90)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Return name → the files of an adapter and its image encoder."""

    @cache
    def write(name: str) -> list[Path]:
        return write_ip_adapter(tmp_path_factory.mktemp("adapter") / name, name)

    return write


@pytest.fixture(scope="module")
def pipe(release: Release, adapter: Adapter) -> Callable[..., Any]:
    """Return (name, conventions) → a pipeline with an adapter; nobody changes it."""

    @cache
    def make(name: str, conventions: str = "diffusers") -> Any:
        return load([release(name), *adapter(name)], KINDS[name][0], conventions)

    return make


def theirs(ours: Any, kind: str, files: list[Path]) -> Any:
    """Return a pipeline of Diffusers with the same adapter and image encoder, and control networks if there are any."""
    pytest.importorskip("diffusers")
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    from .diffusers_parts import make_pipeline

    nets: dict[str, Any] = {"controlnets": [entry.module for entry in ours.controlnets.loaded]}
    other = make_pipeline(ours, kind, "ddim", **(nets if ours.controlnets.loaded else {}))
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=ENCODER.hidden_size,
            intermediate_size=ENCODER.mlp_size,
            num_hidden_layers=ENCODER.num_layers,
            num_attention_heads=ENCODER.num_heads,
            image_size=ENCODER.image_size,
            patch_size=ENCODER.patch_size,
            projection_dim=ENCODER.projection_size,
            hidden_act="quick_gelu",
        )
    )
    state = to_layout(ours.pictures.encoder.module, clip_vision.FAMILY.layout("transformers"), ENCODER)
    encoder.load_state_dict(state)
    side = ENCODER.image_size
    sees = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    other.register_modules(image_encoder=encoder.eval(), feature_extractor=sees)
    weights = torch.load(files[0], weights_only=True)
    other.unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
    return other


def drawn_by(other: Any, pictures: list[Image.Image], scale: float, **settings: Any) -> Tensor:
    common = {**SMALL, **settings}
    other.set_ip_adapter_scale(scale)
    latents: Tensor = other(
        PROMPT,
        generator=torch.Generator().manual_seed(common.pop("seed")),
        guidance_scale=common.pop("cfg_scale"),
        ip_adapter_image=[pictures],
        output_type="latent",
        **common,
    ).images
    return latents


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", KINDS)
def test_an_image_is_that_of_diffusers(pipe: Callable[..., Any], adapter: Adapter, name: str) -> None:
    ours = pipe(name)
    other = theirs(ours, KINDS[name][1], adapter(name))
    cases: list[tuple[list[Image.Image], float, dict[str, Any]]] = [
        ([ONE], 1.0, {"cfg_scale": 4.0}),
        ([ONE, TWO], 0.6, {"cfg_scale": 3.0, "negative_prompt": OTHER}),
        ([TWO], 2.5, {"cfg_scale": 1.0}),
    ]

    for pictures, scale, settings in cases:
        _, latents = draw(ours, PROMPT, scheduler="ddim", ipadapter_images=pictures, ipadapter_scale=scale, **settings)
        assert_same(latents, drawn_by(other, pictures, scale, **settings))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_control_network_beside_it_steers_as_in_diffusers(release: Release, adapter: Adapter) -> None:
    ours = load([release("sd15"), release("sd15-controlnet"), *adapter("sd15")], SDImagePipeline)
    other = theirs(ours, "StableDiffusionControlNetPipeline", adapter("sd15"))
    hint = picture(3, 96, 64)

    _, latents = draw(
        ours,
        PROMPT,
        scheduler="ddim",
        cfg_scale=3.0,
        ipadapter_images=[ONE],
        ipadapter_scale=0.6,
        controlnet_images=[hint],
        controlnet_scales=[0.8],
    )

    assert_same(latents, drawn_by(other, [ONE], 0.6, cfg_scale=3.0, image=hint, controlnet_conditioning_scale=0.8))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("conventions", ["diffusers", "diffsynth"])
def test_no_pictures_and_a_weight_of_zero_are_an_image_without_an_adapter_to_the_last_bit(
    pipe: Callable[..., Any], release: Release, name: str, conventions: str
) -> None:
    plain, _ = draw(load([release(name)], KINDS[name][0], conventions), PROMPT)

    without, _ = draw(pipe(name, conventions), PROMPT)
    zero, _ = draw(pipe(name, conventions), PROMPT, ipadapter_images=[ONE], ipadapter_scale=0)
    shown, _ = draw(pipe(name, conventions), PROMPT, ipadapter_images=[ONE])

    assert without.tobytes() == zero.tobytes() == plain.tobytes()
    assert shown.tobytes() != plain.tobytes()


def test_diffsynth_keeps_the_weight_of_the_negative_side_at_one(
    release: Release, adapter: Adapter, pipe: Callable[..., Any]
) -> None:
    ours = pipe("sd15", "diffsynth")
    same = load([release("sd15"), *adapter("sd15")], SDImagePipeline, "diffsynth")
    same.conventions = replace(same.conventions, scale_without_picture=None)

    at_one = [draw(each, PROMPT, ipadapter_images=[ONE])[1] for each in (ours, same)]
    at_half = [draw(each, PROMPT, ipadapter_images=[ONE], ipadapter_scale=0.5)[1] for each in (ours, same)]
    unguided = [
        draw(each, PROMPT, ipadapter_images=[ONE], ipadapter_scale=0.5, cfg_scale=1.0)[1] for each in (ours, same)
    ]

    assert torch.equal(*at_one)
    assert not torch.equal(*at_half)
    assert torch.equal(*unguided)


def test_prompts_of_other_lengths_and_images_drawn_together_see_the_same_pictures(pipe: Callable[..., Any]) -> None:
    long = " ".join([PROMPT] * 30)
    settings: dict[str, Any] = {"ipadapter_images": [ONE], "long_prompts": "chunks", "cfg_scale": 3.0}

    _, together = draw(pipe("sd15"), [PROMPT, long], **settings)

    for row, text in enumerate((PROMPT, long)):
        _, alone = draw(pipe("sd15"), text, **{**settings, "seed": SMALL["seed"] + row})
        assert_same(together[row : row + 1], alone)


def test_a_second_stage_sees_the_pictures_too(pipe: Callable[..., Any]) -> None:
    larger = {"hires_scale": 1.5, "hires_strength": 0.7, "num_inference_steps": 4}

    _, shown = draw(pipe("sd15"), PROMPT, ipadapter_images=[ONE], **larger)
    _, other = draw(pipe("sd15"), PROMPT, ipadapter_images=[TWO], **larger)

    assert not torch.equal(shown, other)


def test_a_refiner_finishes_without_the_adapter(release: Release, adapter: Adapter) -> None:
    pipe = load([release("sdxl"), release("sdxl-refiner"), *adapter("sdxl")], SDXLImagePipeline, refiner=True)
    settings = {"refiner_start": 0.5, "num_inference_steps": 4}

    one, _ = draw(pipe, PROMPT, ipadapter_images=[ONE], **settings)
    two, _ = draw(pipe, PROMPT, ipadapter_images=[TWO], **settings)

    assert one.tobytes() != two.tobytes()


def test_the_recipe_names_the_adapter_only_where_it_took_part(pipe: Callable[..., Any], tmp_path: Path) -> None:
    families = {}
    for name, settings in {"shown": {"ipadapter_images": [ONE, TWO]}, "plain": {}}.items():
        image, _ = draw(pipe("sd15"), PROMPT, **settings)
        with Image.open(save_image(image, tmp_path / f"{name}.png")) as saved:
            recipe = json.loads(saved.info["diffsynth"])
        families[name] = {model["family"] for model in recipe["models"]}
        pictures = recipe["request"]["ipadapter_images"]
        assert [each["size"] for each in pictures] == ([list(ONE.size), list(TWO.size)] if settings else [])

    assert families["shown"] - families["plain"] == {"ip_adapter", "clip_vision"}


def test_an_overflow_is_tried_again_in_float32_with_the_adapter(
    release: Release, adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    manager = ModelManager(torch_dtype=torch.float16, device="cpu")
    manager.load_models([release("sd15"), *adapter("sd15")])
    manager.fetch_model("ip_adapter").norm.weight.data *= 30000  # type: ignore[union-attr, operator]
    pipe = SDImagePipeline.from_model_manager(manager, "diffusers")

    _, latents = draw(pipe, PROMPT, ipadapter_images=[ONE], scheduler="ddim")

    assert "trying once more in float32" in caplog.text
    assert latents.isfinite().all()
    assert pipe.denoiser.dtype == torch.float16


def test_settings_that_have_no_effect_are_told_of(pipe: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        draw(pipe("sd15"), PROMPT, ipadapter_images=ONE, ipadapter_scale=0)
        draw(pipe("sd15"), PROMPT, ipadapter_scale=0.5)

    assert "ipadapter_images has no effect: ipadapter_scale is 0" in caplog.text
    assert "ipadapter_scale has no effect: there are no ipadapter_images" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ipadapter_images": ["cat.png"]}, r"each of ipadapter_images must be a picture \(PIL image\), not str"),
        ({"ipadapter_images": 3}, "each of ipadapter_images must be a picture"),
        ({"ipadapter_images": [ONE], "ipadapter_scale": -1}, "ipadapter_scale must be a number from 0 to 100"),
        ({"ip_adapter_image": [ONE], "ipadapter_images": [ONE]}, "ipadapter_images is given twice"),
    ],
)
def test_wrong_settings_are_refused(pipe: Callable[..., Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        pipe("sd15")(PROMPT, **{**SMALL, **settings})


def test_pictures_without_an_adapter_or_its_encoder_are_refused_with_the_reason(
    release: Release, adapter: Adapter, tmp_path: Path
) -> None:
    tower = write_hunyuan_dit_ip_adapter(tmp_path)[1]
    cases = {
        "this pipeline has no IP-Adapter": [],
        "does not fit unet .*: its tokens have 192 features, the text's 64": adapter("sdxl"),
        "no image encoder is loaded that ip_adapter": adapter("sd15")[:1],
        "is the image tower of HunyuanDiT's CLIP": [adapter("sd15")[0], tower],
    }

    for message, files in cases.items():
        pipe = load([release("sd15"), *files], SDImagePipeline)
        draw(pipe, PROMPT)
        with pytest.raises(InvalidRequest, match=rf"(?s)ipadapter_images are given, but .*{message}"):
            draw(pipe, PROMPT, ipadapter_images=[ONE])


def test_one_of_several_adapters_and_encoders_is_named(release: Release, adapter: Adapter, tmp_path: Path) -> None:
    other = write_ip_adapter(tmp_path / "other", "sd15", seed=5)
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_models([release("sd15"), *adapter("sd15"), *other])

    with pytest.raises(AmbiguousModel, match=r"an IP-Adapter for the denoiser .* fits 2 loaded networks"):
        SDImagePipeline.from_model_manager(manager)
    with pytest.raises(AmbiguousModel, match=r"an image encoder for the IP-Adapter .* fits 2 loaded networks"):
        SDImagePipeline.from_model_manager(manager, ip_adapter=1)
    with pytest.raises(ModelNotLoaded, match=r"IPAdapter \(none\)"):
        SDImagePipeline.from_model_manager(manager, ip_adapter="none")
    pipe = SDImagePipeline.from_model_manager(manager, ip_adapter=str(other[0]), image_encoder=1)

    assert [entry.path for entry in pipe.pictures.loaded] == other


def test_names_that_do_not_fit_are_refused(release: Release, adapter: Adapter) -> None:
    with pytest.raises(InvalidRequest, match="its tokens have 192 features, the text's 64"):
        load([release("sd15"), *adapter("sdxl")], SDImagePipeline, ip_adapter=0)
    with pytest.raises(InvalidRequest, match="image_encoder is given, but this pipeline has no IP-Adapter"):
        load([release("sd15"), adapter("sd15")[1]], SDImagePipeline, image_encoder=0)


def test_release_gives_the_adapter_and_the_encoder_back(release: Release, adapter: Adapter) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_models([release("sd15"), *adapter("sd15")])
    pipe = SDImagePipeline.from_model_manager(manager)

    pipe.release()

    assert len(manager) == 0
