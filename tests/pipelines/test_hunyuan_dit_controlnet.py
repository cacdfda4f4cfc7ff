"""HunyuanDiT with control networks: whole images against Diffusers, and all that a user may combine them with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from diffsynth.errors import CorruptCheckpoint, InvalidRequest
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.pipelines.denoise import StepReport

from .conftest import Load
from .toy import (
    OTHER_PROMPT,
    PROMPT,
    assert_same_latents,
    draw_ours,
    largest_difference,
    load_toy,
    write_control,
    write_toy,
)

SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 3, "seed": 7, "cfg_scale": 3.0}
EVERY = ("diffsynth", "original", "diffusers")


def drawing(kind: str = "ellipse") -> Image.Image:
    picture = Image.new("RGB", (48, 32), "black")
    getattr(ImageDraw.Draw(picture), kind)((10, 5, 35, 25), outline="white", fill=(90, 20, 200))
    return picture


HINT, OTHER_HINT = drawing(), drawing("rectangle")


def small_for(pipe: HunyuanDiTImagePipeline) -> dict[str, Any]:
    return {**SMALL, "resolution_binning": False}


def draw(pipe: HunyuanDiTImagePipeline, **settings: Any) -> bytes:
    """Return every bit of an image's latents."""
    latents = pipe(PROMPT, output_type="latent", **{**small_for(pipe), **settings}).values
    data: bytes = latents.numpy().tobytes()
    return data


def ask_diffusers(pipe: Any, seed: int, **settings: Any) -> Any:
    """Draw with Diffusers, whose global generator starts where that of the image does."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return pipe(PROMPT, generator=generator, output_type="latent", use_resolution_binning=False, **settings).images


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("version", ["v1.0", "v1.2"])
@pytest.mark.parametrize(
    ("scales", "settings"),
    [
        ([1.0, 0.6], {"guidance_scale": 4.0, "height": 32, "width": 48}),
        ([0.7, 0.7], {"guidance_scale": 1.0, "height": 32, "width": 48}),
        ([1.0, 1.0], {"guidance_scale": 4.0, "height": 48, "width": 32, "guidance_rescale": 0.5}),
    ],
    ids=str,
)
def test_an_image_of_two_networks_is_that_of_diffusers(
    steered: Load, version: str, scales: list[float], settings: dict[str, Any]
) -> None:
    pytest.importorskip("diffusers")
    from .diffusers_parts import make_pipeline

    pipe = steered(version, "diffusers")
    common = {"num_inference_steps": 3, **settings}

    _, latents = draw_ours(
        pipe,
        PROMPT,
        seed=3,
        resolution_binning=False,
        controlnet_images=[HINT, OTHER_HINT],
        controlnet_scales=scales,
        **common,
    )

    expected = ask_diffusers(
        make_pipeline(pipe, "ddpm", steered=True),
        3,
        control_image=[HINT, OTHER_HINT],
        controlnet_conditioning_scale=scales,
        **common,
    )
    assert_same_latents(latents, expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_image_of_one_network_is_that_of_diffusers(v1_2: list[Path], controls: dict[str, list[Path]]) -> None:
    pytest.importorskip("diffusers")
    from .diffusers_parts import make_pipeline

    pipe = load_toy([*v1_2, controls["v1.2"][0]], "diffusers")
    common: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 3, "guidance_scale": 4.0}

    _, latents = draw_ours(pipe, PROMPT, seed=3, resolution_binning=False, controlnet_image=HINT, **common)

    theirs = make_pipeline(pipe, "ddpm", steered=True)
    assert_same_latents(latents, ask_diffusers(theirs, 3, control_image=HINT, **common))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_original_program_draws_the_hint_once_for_both_halves_after_the_first_noise(steered: Load) -> None:
    pytest.importorskip("diffusers")
    from .by_hand import LATENT_SCALE, Parts, pixels_of, rotary_tables
    from .diffusers_parts import make_control_networks, make_scheduler

    pipe = steered("v1.0", "original")
    parts, networks = Parts(pipe), make_control_networks(pipe)
    sampler = make_scheduler("ddpm", pipe.beta_end)
    sampler.set_timesteps(3)
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn((1, 4, 4, 6), generator=generator)
    rope, meta = rotary_tables(32, 48, pipe.denoiser.config.head_dim), (1024, 1024, 48, 32, 0, 0)
    texts = [parts.read(text) for text in (OTHER_PROMPT, PROMPT)]
    with torch.no_grad():
        hints = []
        for picture in (HINT, OTHER_HINT):
            posterior = parts.vae.encode(pixels_of(picture)).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            hints.append((posterior.mean + posterior.std * noise) * LATENT_SCALE)
        for timestep in sampler.timesteps:
            sides = []
            for text in texts:
                known: dict[str, Any] = {
                    "encoder_hidden_states": text.clip,
                    "text_embedding_mask": text.clip_mask,
                    "encoder_hidden_states_t5": text.t5,
                    "text_embedding_mask_t5": text.t5_mask,
                    "image_meta_size": torch.tensor([meta], dtype=torch.float32),
                    "style": torch.zeros(1, dtype=torch.int64),
                    "image_rotary_emb": rope,
                    "return_dict": False,
                }
                time = torch.tensor([float(timestep)])
                each = [
                    network(latents, time, hint, conditioning_scale=scale, **known)[0]
                    for network, hint, scale in zip(networks, hints, (1.0, 0.5), strict=True)
                ]
                total = [one + other for one, other in zip(*each, strict=True)]
                sides.append(parts.transformer(latents, time, controlnet_block_samples=total, **known)[0][:, :4])
            velocity = sides[0] + 3.0 * (sides[1] - sides[0])
            latents = sampler.step(velocity, timestep, latents, generator=generator, return_dict=False)[0]

    settings = {**small_for(pipe), "negative_prompt": OTHER_PROMPT, "controlnet_images": [HINT, OTHER_HINT]}
    _, found = draw_ours(pipe, PROMPT, controlnet_scales=[1.0, 0.5], **settings)

    assert_same_latents(found, latents)


@pytest.mark.parametrize(("conventions", "spends"), [("diffsynth", False), ("original", True), ("diffusers", False)])
def test_only_the_original_program_takes_the_random_numbers_of_hints_from_those_of_the_image(
    v1_2: list[Path], pipeline: Load, conventions: str, spends: bool, tmp_path: Path
) -> None:
    file = write_control(tmp_path / "silent.pt")
    state = torch.load(file, weights_only=True)["module"]
    torch.save({key: torch.zeros_like(value) if "after_proj" in key else value for key, value in state.items()}, file)

    silent = draw(load_toy([*v1_2, file], conventions), controlnet_image=HINT, scheduler="ddpm")

    assert (silent != draw(pipeline("v1.2", conventions), scheduler="ddpm")) == spends


@pytest.mark.parametrize("conventions", EVERY)
@pytest.mark.parametrize(
    "idle",
    [
        {},
        {"controlnet_image": HINT, "controlnet_scales": 0},
        {"controlnet_image": HINT, "controlnet_starts": 0.4, "controlnet_ends": 0.6},
    ],
    ids=["no picture", "no strength", "no step"],
)
def test_what_does_not_act_leaves_every_bit_as_it_is(
    steered: Load, pipeline: Load, conventions: str, idle: dict[str, Any]
) -> None:
    assert draw(steered("v1.2", conventions), **idle) == draw(pipeline("v1.2", conventions))


@pytest.mark.parametrize("conventions", EVERY)
def test_a_network_acts_in_its_steps_only(steered: Load, conventions: str) -> None:
    pipe = steered("v1.2", conventions)

    def latents_by_step(**settings: Any) -> list[Tensor]:
        reports: list[StepReport] = []
        given = {**small_for(pipe), "num_inference_steps": 4, "scheduler": "ddim", "output_type": "latent"}
        pipe(PROMPT, callback=reports.append, **given, **settings)
        return [report.latents for report in reports]

    late = latents_by_step(controlnet_image=HINT, controlnet_starts=0.5)

    assert [torch.equal(*pair) for pair in zip(late, latents_by_step(), strict=True)] == [True, True, False, False]


@pytest.mark.parametrize("conventions", EVERY)
def test_an_image_does_not_depend_on_those_it_is_drawn_with(steered: Load, conventions: str) -> None:
    pipe, settings = steered("v1.0", conventions), {"controlnet_image": HINT, "num_inference_steps": 2}

    together = pipe([PROMPT, OTHER_PROMPT, PROMPT], batch_size=3, **small_for(pipe) | settings)

    alone = [pipe(text, **{**small_for(pipe), **settings, "seed": 7 + number})
             for number, text in enumerate([PROMPT, OTHER_PROMPT, PROMPT])]  # fmt: skip
    assert all(largest_difference(*pair) <= 1 for pair in zip(together, alone, strict=True))
    assert len({image.tobytes() for image in together}) == 3


@pytest.mark.parametrize("conventions", EVERY)
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_local_prompts_are_steered_too(steered: Load, conventions: str, cfg_scale: float) -> None:
    pipe = steered("v1.2", conventions)
    mask = Image.new("L", (48, 32), 255)
    local: dict[str, Any] = {"local_prompts": [PROMPT], "masks": [mask], "mask_scales": [2.0], "cfg_scale": cfg_scale}

    plain = pipe(PROMPT, **small_for(pipe) | {"cfg_scale": cfg_scale}, controlnet_image=HINT)
    everywhere = pipe(PROMPT, **small_for(pipe) | local, controlnet_image=HINT)

    assert largest_difference(plain, everywhere) <= 1  # the same prompt, mixed with itself


def test_perturbed_attention_sees_the_hint(steered: Load) -> None:
    pipe = steered("v1.2")
    settings: dict[str, Any] = {"controlnet_image": HINT, "perturbed_attention_scale": 2.0}
    asked: list[set[int]] = []
    denoise = pipe.denoiser.denoise

    def spy(*given: Any, **more: Any) -> Any:
        asked.append(set(more["controls"]))
        return denoise(*given, **more)

    pipe.denoiser.denoise = spy  # type: ignore[method-assign]
    try:
        pipe(PROMPT, **small_for(pipe), **settings)
    finally:
        del pipe.denoiser.denoise

    assert asked == [{0, 1}] * 6


def test_tiles_steer_the_whole_image(steered: Load) -> None:
    pipe = steered("v1.2")
    settings: dict[str, Any] = {"height": 48, "width": 64, "tiled": True, "tile_stride": 2}

    in_tiles = draw(pipe, **settings, tile_size=3, controlnet_image=HINT)

    assert in_tiles != draw(pipe, **settings, tile_size=3)
    assert in_tiles != draw(pipe, **settings, tile_size=4, controlnet_image=HINT)


def test_one_tile_that_holds_the_image_changes_nothing(steered: Load) -> None:
    pipe = steered("v1.2")

    assert draw(pipe, controlnet_image=HINT, tiled=True, tile_size=64) == draw(pipe, controlnet_image=HINT)


def test_the_second_stage_is_shown_the_same_hints_in_its_own_size(steered: Load) -> None:
    pipe = steered("v1.2")
    settings: dict[str, Any] = {"controlnet_image": HINT, "controlnet_processors": "canny"}
    larger: dict[str, Any] = {"hires_scale": 2.0, "hires_strength": 0.67, "hires_steps": 3}

    image = pipe(PROMPT, **small_for(pipe), **settings, **larger)

    draft = pipe(PROMPT, **small_for(pipe), **settings)
    again = {**small_for(pipe), "height": 64, "width": 96, "input_image": draft, "denoising_strength": 0.67}
    assert image.tobytes() == pipe(PROMPT, **again, **settings).tobytes()
    assert image.tobytes() != pipe(PROMPT, **again).tobytes()


def test_the_settings_of_several_networks_are_theirs_in_order(
    v1_2: list[Path], controls: dict[str, list[Path]]
) -> None:
    canny, depth = controls["v1.2"]
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[*v1_2, canny, depth])
    both = HunyuanDiTImagePipeline.from_model_manager(manager)
    turned = HunyuanDiTImagePipeline.from_model_manager(manager, controlnets=["depth_v1.2", "canny_v1.2"])
    alone = HunyuanDiTImagePipeline.from_model_manager(manager, controlnets=[1])
    settings: dict[str, Any] = {"controlnet_images": [HINT, OTHER_HINT], "controlnet_scales": [0.4, 0.9]}
    reverse = {name: values[::-1] for name, values in settings.items()}

    # the order in which sums are made may change the last digit
    first, second = (pipe(PROMPT, **small_for(pipe), **given) for pipe, given in ((both, settings), (turned, reverse)))
    assert largest_difference(first, second) <= 1
    assert draw(alone, controlnet_image=OTHER_HINT) == draw(both, controlnet_image=OTHER_HINT, controlnet_scales=[0, 1])
    assert draw(both, **settings) != draw(both, **reverse)


def test_recipes_name_the_networks_that_took_part(steered: Load, controls: dict[str, list[Path]]) -> None:
    pipe = steered("v1.2")

    with_hint = pipe(PROMPT, **small_for(pipe), controlnet_image=HINT).info["recipe"]
    without = pipe(PROMPT, **small_for(pipe)).info["recipe"]

    assert [model.path for model in with_hint.models[4:]] == controls["v1.2"]
    assert {model.role for model in with_hint.models[4:]} == {"hunyuan_dit_controlnet"}
    assert len(without.models) == 4
    request = with_hint.as_json()["request"]
    assert [picture["size"] for picture in request["controlnet_images"]] == [[48, 32]] * 2
    assert request["controlnet_scales"] == [1.0, 1.0]


def test_a_network_for_another_version_or_size_is_left_out_and_told_of_when_a_picture_is_given(
    v1_2: list[Path], controls: dict[str, list[Path]], tmp_path: Path
) -> None:
    narrow = write_control(tmp_path / "narrow.pt", hidden_size=72)
    pipe = load_toy([*v1_2, controls["v1.0"][0], narrow])

    assert draw(pipe) == draw(load_toy(v1_2))
    with pytest.raises(InvalidRequest) as caught:
        draw(pipe, controlnet_image=HINT)

    message = str(caught.value)
    assert "this pipeline has no control network" in message
    assert "canny_v1.0.pt does not fit" in message
    assert "it is for version v1.0/v1.1, and the denoiser is v1.2" in message
    assert "narrow.pt does not fit" in message
    assert "its hidden_size is 72, and that of the denoiser is 48" in message


def test_a_named_network_that_does_not_fit_is_an_error_when_the_pipeline_is_made(
    v1_2: list[Path], controls: dict[str, list[Path]]
) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[*v1_2, *controls["v1.0"]])

    with pytest.raises(InvalidRequest, match=r"depth_v1\.0\.pt does not fit(.|\n)*version v1\.0/v1\.1"):
        HunyuanDiTImagePipeline.from_model_manager(manager, controlnets=["depth_v1.0"])


def test_too_many_pictures_are_refused_before_anything_is_drawn(steered: Load) -> None:
    with pytest.raises(InvalidRequest, match="controlnet_images has 3 entries, but 2 control networks are in use"):
        draw(steered("v1.2"), controlnet_images=[HINT] * 3)


def test_what_has_no_effect_is_told(steered: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        draw(steered("v1.2"), controlnet_image=HINT.resize((9, 9)), controlnet_scales=[0, 1], controlnet_ends=[1, 0.2])

    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert "a control image of 9 x 9 (height x width) is resized to 32 x 48" in told[0]
    assert "canny_v1.2.pt has no effect: its scale is 0" in told[1]
    assert "none of the 3 steps lies wholly from 0.0 to 0.2" in told[2]


def test_a_control_file_changed_meanwhile_is_noticed_if_it_took_part(v1_2: list[Path], tmp_path: Path) -> None:
    file = write_control(tmp_path / "canny.pt")
    pipe = load_toy([*v1_2, file])

    def spoil(report: StepReport) -> None:
        with file.open("r+b") as stream:
            stream.seek(1000)
            stream.write(bytes(1000))

    with pytest.raises(CorruptCheckpoint, match=r"canny\.pt"):
        pipe(PROMPT, **small_for(pipe), controlnet_image=HINT, callback=spoil)
    pipe(PROMPT, **small_for(pipe))  # it takes no part


def test_numbers_that_overflow_in_half_precision_are_tried_in_float32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_control(tmp_path / "canny.pt")
    state = torch.load(file, weights_only=True)
    state["module"]["after_proj_list.0.bias"] += 60_000  # twice what float16 holds, after the scale
    torch.save(state, file)
    pipe = load_toy([*write_toy(tmp_path), file], dtype=torch.float16)

    with caplog.at_level(logging.WARNING):
        draw(pipe, controlnet_image=HINT, controlnet_scales=2.0)

    assert "trying once more in float32" in caplog.text
    assert {weight.dtype for weight in pipe.controlnets.loaded[0].module.parameters()} == {torch.float16}


def test_releasing_a_pipeline_gives_its_control_networks_back(
    v1_2: list[Path], controls: dict[str, list[Path]]
) -> None:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[*v1_2, *controls["v1.2"]])
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager, controlnets=["canny_v1.2"])

    pipe.release()

    assert [entry.path.name for entry in manager] == ["depth_v1.2.pt"]
    assert isinstance(manager.fetch_model(HunyuanDiTControlNet), HunyuanDiTControlNet)


def test_a_lora_for_the_denoiser_goes_there_although_a_control_network_has_layers_of_its_names(
    v1_2: list[Path], controls: dict[str, list[Path]], tmp_path: Path
) -> None:
    from tests.lora import files

    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[*v1_2, *controls["v1.2"]])
    layers = files.layers_of(torch.load(v1_2[2], weights_only=True))

    lora = manager.load_lora(files.write(tmp_path / "ink.safetensors", files.peft(layers)))

    assert list(lora.layers) == [manager.find("hunyuan_dit").label]
