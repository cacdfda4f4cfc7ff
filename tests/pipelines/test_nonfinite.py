"""NaN and infinity: noticed, tried again in float32, or named. Never an image."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from diffsynth.errors import NonFiniteResult
from diffsynth.pipelines.denoise import StepReport, denoise
from diffsynth.pipelines.precision import in_float32
from diffsynth.schedulers.catalog import make_scheduler

from .toy import PROMPT, largest_difference, load_toy

SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 3, "seed": 7, "cfg_scale": 2.0}
PICTURE = Image.linear_gradient("L")


def part(pipe: HunyuanDiTImagePipeline, name: str) -> torch.Tensor:
    """Return a weight of the pipeline by name."""
    networks = {"dit": pipe.denoiser, "vae": pipe.vae, "clip": pipe.prompt_encoder.clip, "t5": pipe.prompt_encoder.t5}
    network, _, weight = name.partition(".")
    return networks[network].get_parameter(weight)


@pytest.mark.parametrize(
    ("weight", "stage"),
    [
        ("clip.bert.encoder.layer.1.output.dense.bias", "the text encoder's features"),
        ("t5.t5.encoder.final_layer_norm.weight", "the text encoder's features"),
        ("dit.blocks.3.mlp.2.bias", "denoising, step 1 of 3"),
        ("dit.text_padding", "denoising, step 1 of 3"),
        ("vae.encoder.conv_in.bias", "encoding a picture"),
        ("vae.decoder.conv_out.bias", "decoding the image"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_damaged_weight_is_an_error_that_names_the_stage(
    v1_2: list[Path], weight: str, stage: str, dtype: torch.dtype
) -> None:
    pipe = load_toy(v1_2, dtype=dtype)
    part(pipe, weight).view(-1)[-1] = float("nan")

    with pytest.raises(NonFiniteResult) as caught:
        pipe(PROMPT, input_image=PICTURE, **SMALL)

    assert caught.value.stage == stage
    assert "diffsynth inspect --verify" in str(caught.value)


def test_the_step_and_the_image_where_it_happened_are_named(v1_2: list[Path]) -> None:
    def spoil(report: StepReport) -> None:
        if report.step == 1:
            report.latents[1, 0, 0, 0] = float("inf")

    with pytest.raises(NonFiniteResult, match="denoising, step 2 of 3, image 2"):
        load_toy(v1_2)([PROMPT, PROMPT], callback=spoil, batch_size=2, **SMALL)


def test_a_denoiser_that_overflows_is_run_again_in_float32(v1_2: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    weight = "dit.blocks.2.mlp.2.weight"
    pipe = load_toy(v1_2, dtype=torch.float16)
    part(pipe, weight).mul_(1e5)
    before = {name: value.clone() for name, value in pipe.denoiser.state_dict().items()}

    with caplog.at_level(logging.WARNING):
        image = pipe(PROMPT, **SMALL)

    assert "step 1 of 3; trying once more in float32" in caplog.text
    assert all(torch.equal(value, before[name]) for name, value in pipe.denoiser.state_dict().items())
    assert pipe.denoiser.dtype == torch.float16
    with in_float32([pipe.denoiser]):
        assert largest_difference(image, pipe(PROMPT, **SMALL)) == 0


def test_an_autoencoder_that_overflows_is_run_again_in_float32(
    v1_2: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    def load(dtype: torch.dtype) -> HunyuanDiTImagePipeline:
        manager = ModelManager(torch_dtype=torch.float32, device="cpu")
        manager.load_models(v1_2[:3])
        manager.load_model(v1_2[3], torch_dtype=dtype)
        pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
        for side in ("encoder", "decoder"):
            part(pipe, f"vae.{side}.mid_block.resnets.0.conv2.weight").mul_(3e5)
        return pipe

    with caplog.at_level(logging.WARNING):
        pipe = load(torch.float16)
        image = pipe(PROMPT, input_image=PICTURE, strength=0.5, **SMALL)

    assert "encoding a picture; trying once more in float32" in caplog.text
    assert "decoding the image; trying once more in float32" in caplog.text
    assert next(pipe.vae.parameters()).dtype == torch.float16
    exact = load(torch.float32)(PROMPT, input_image=PICTURE, strength=0.5, **SMALL)
    assert largest_difference(image, exact) <= 6


def test_float32_for_a_while_gives_the_weights_back_even_after_an_error() -> None:
    network = nn.Linear(3, 3).half()
    weights = network.weight.clone()

    with pytest.raises(RuntimeError), in_float32([network]):
        network(torch.zeros(1, 3, dtype=torch.float64))  # fits neither precision

    assert torch.equal(network.weight, weights)


def test_the_loop_tells_for_each_step_and_image_whether_all_was_finite() -> None:
    scheduler = make_scheduler("ddim", beta_start=0.00085, beta_end=0.03, prediction="velocity")

    def predict(latents: torch.Tensor, step: int) -> torch.Tensor:
        velocity = torch.zeros_like(latents)
        if step == 1:
            velocity[1] = float("nan")
        return velocity

    _, finite = denoise(predict, torch.ones(2, 4, 2, 2), scheduler.start(3))

    assert finite.tolist() == [[True, True], [True, False], [True, False]]
