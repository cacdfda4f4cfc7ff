"""What a job costs: formulas against counted operations, and a dry run that says it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.batch import make_plan, read_entries
from diffsynth.batch.cost import Estimate, counted, decode_cost, hunyuan_dit_step, step_cost
from diffsynth.cli.batch import costs
from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.model import UNet


@pytest.mark.parametrize(("side", "gflops"), [(256, 671), (512, 2859), (1024, 14272), (2048, 102441)])
def test_a_step_of_the_released_model_costs_what_its_sizes_say(side: int, gflops: float) -> None:
    assert hunyuan_dit_step(HunyuanDiTConfig(), side // 8, side // 8) / 1e9 == pytest.approx(gflops, rel=2e-3)


def test_the_formula_is_what_a_small_network_is_counted_to_do(pipe: HunyuanDiTImagePipeline) -> None:
    one, two = (
        counted(lambda steps=steps: pipe("a", height=64, width=96, num_inference_steps=steps, cfg_scale=1, seed=1))  # type: ignore[misc]
        for steps in (1, 2)
    )

    tables = 2 * pipe.denoiser.config.hidden_size**2 * 10 * pipe.denoiser.config.depth  # of a timestep, at most
    step = hunyuan_dit_step(pipe.denoiser.config, 8, 12)
    assert step * 0.95 <= two - one <= step * 1.05 + tables


@pytest.mark.parametrize(("side", "tflops"), [(256, 0.6), (1024, 10.5)])
def test_decoding_with_the_released_autoencoder(side: int, tflops: float) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(AutoencoderKLConfig())

    assert decode_cost(vae, side // 8, side // 8) / 1e12 == pytest.approx(tflops, rel=0.06)


@pytest.mark.parametrize(("tflops", "seconds", "days"), [(100, 5.8, 6.7), (150, 3.9, 4.5)])
def test_a_hundred_million_large_images_take_a_thousand_devices_a_week(
    tflops: int, seconds: float, days: float
) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(AutoencoderKLConfig())

    denoise, decode = 2 * 20 * hunyuan_dit_step(HunyuanDiTConfig(), 128, 128), decode_cost(vae, 128, 128)

    assert denoise / 1e12 == pytest.approx(571, rel=2e-3)
    assert denoise / (denoise + decode) == pytest.approx(0.982, abs=2e-3)
    one = (denoise + decode) / (tflops * 1e12)
    assert one == pytest.approx(seconds, abs=0.05)
    assert 1e8 * one / 1000 / 86400 == pytest.approx(days, abs=0.05)


def test_unets_are_counted_and_grow_with_the_picture() -> None:
    with torch.device("meta"):
        small, large = UNet(UNetConfig.tiny()), UNet(UNetConfig.tiny_xl())

    for network in (small, large):
        assert 3.5 * step_cost(network, 16, 16) < step_cost(network, 32, 32)


def test_a_dry_run_counts_images_texts_and_operations(pipe: HunyuanDiTImagePipeline) -> None:
    row = {"prompt": "a", "height": 32, "width": 32, "num_inference_steps": 2, "cfg_scale": 2.0, "seed": 1}
    job = [row, row, {**row, "seed": 2}, {**row, "prompt": "b", "num_inference_steps": 4}]
    plan = make_plan(pipe, read_entries(job, pipe.request_type), names="{index}.png", batch_size=2)

    estimate = Estimate(pipe, plan)
    told = "\n".join(costs(pipe, plan, 1000, 150.0))

    first = estimate.image(estimate.request_of(plan.units[0]))
    assert first.denoise == 2 * 2 * hunyuan_dit_step(pipe.denoiser.config, 4, 4)
    assert estimate.operations == 2 * first.total + replace(first, denoise=2 * first.denoise).total
    assert estimate.texts == 3
    assert "images      3, and 1 that are the same as others" in told
    assert "devices     1000 of 150 TFLOP/s, as given; only 2 have work, for there are no more batches" in told
