"""The autoencoder job: one step against Diffusers, latents of unit variance, and a loss that falls."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth import ModelManager
from diffsynth.core.saving import to_layout
from diffsynth.models import autoencoder_kl
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.training import train
from diffsynth.training.autoencoder import (
    AutoencoderTraining,
    crop,
    gradient_error,
    normalise_latents,
)
from diffsynth.training.config import OptimizerConfig, TrainingConfig
from diffsynth.training.devices import Workers
from diffsynth.training.loop import Loop
from diffsynth.training.networks import copy_of
from diffsynth.training.pictures import Pictures
from diffsynth.training.randomness import generator_for
from diffsynth.training.record import Record
from tests.training.toy import Squares, autoencoder_config


def make_job(config: TrainingConfig) -> AutoencoderTraining:
    assert config.autoencoder is not None
    pictures = Pictures(Squares(), config.data, config.seed, captions=False)
    return AutoencoderTraining(config, config.autoencoder, pictures, torch.device("cpu"))


def diffusers_network(vae: AutoencoderKL) -> Any:
    from diffusers import AutoencoderKL as Theirs

    config, levels = vae.config, len(vae.config.channels)
    theirs = Theirs(
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )
    theirs.load_state_dict(to_layout(vae, autoencoder_kl.FAMILY.layout("diffusers"), config))
    return theirs


def test_one_step_is_the_step_written_plainly_with_diffusers(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-3, eps=1e-3, weight_decay=0.1, clip=0.5, ema=0.9)
    config = autoencoder_config(tmp_path, optimizer=optimizer, job={"kl": 0.01, "crop": 0})
    job = make_job(config)
    theirs = diffusers_network(job.vae)
    batch = next(job.batches(range(1)))

    Loop(job, config, tmp_path, Workers(torch.device("cpu")), lambda step: {}).run(1, Record(tmp_path))

    pixels = batch.pixels / 127.5 - 1
    moments = theirs.quant_conv(theirs.encoder(pixels))
    mean, log_variance = moments.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=generator_for(0, "step", 0, 0))
    difference = theirs.decode(mean + (0.5 * log_variance).exp() * noise).sample - pixels
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    parts, shrunk = [], difference
    for _ in range(3):
        parts += [(shrunk[..., 1:] - shrunk[..., :-1]).abs().mean()]
        parts += [(shrunk[..., 1:, :] - shrunk[..., :-1, :]).abs().mean()]
        shrunk = torch.nn.functional.avg_pool2d(shrunk, 2)
    loss = difference.abs().mean() + (difference**2).mean() + 0.5 * sum(parts) / 6 + 0.01 * kl
    loss.backward()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    matrices = [weight for weight in theirs.parameters() if weight.ndim > 1]
    others = [weight for weight in theirs.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-3 / 2, betas=(0.9, 0.99), eps=1e-3).step()  # half: the warm-up has two steps
    ours = to_layout(job.vae, autoencoder_kl.FAMILY.layout("diffusers"), job.vae.config)
    worst = max(float((ours[name] - weight).abs().max()) for name, weight in theirs.state_dict().items())
    assert worst < 1e-6


def test_the_loss_falls_on_a_toy(tmp_path: Path) -> None:
    config = autoencoder_config(tmp_path / "run", steps=80, optimizer=OptimizerConfig(learning_rate=5e-3, ema=0.8))
    config = replace(config, record=replace(config.record, sample_every=40, checkpoint_every=100))
    losses: list[float] = []

    train(config, on_step=lambda report: losses.append(report.values["loss"]))

    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    ratios = [float(line.split(",")[1]) for line in (tmp_path / "run" / "samples.csv").read_text().split()[1:]]
    assert ratios[1] > ratios[0] > 0


def test_saved_latents_have_unit_variance_and_the_same_pictures_come_back(tmp_path: Path) -> None:
    config = autoencoder_config(tmp_path / "run", steps=3)
    job = make_job(config)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        scaled = copy_of(job.vae, autoencoder_kl.FAMILY, torch.float32)
        normalise_latents(scaled, torch.tensor([0.3, -2.0, 0.0, 1.0]), torch.tensor([0.5, 2.0, 3.0, 1.0]), 0.2)
        before, after = job.vae.encode(pixels), scaled.encode(pixels)

        drawn = [job.vae.decode(before.mean + 0.1 * before.std), scaled.decode(after.mean + 0.1 * after.std)]

    assert torch.allclose(drawn[0], drawn[1], atol=1e-4)
    assert torch.allclose(after.mean[:, 1], (before.mean[:, 1] + 2) / 2 / 0.2, atol=1e-4)

    final = train(config)

    manager = ModelManager(device="cpu")
    manager.load_models(sorted(final.rglob("*.safetensors")))
    vae = manager.fetch_model(AutoencoderKL)
    pictures = job.pictures.batch(list(job.pictures.trained)).pixels / 127.5 - 1
    latents = vae.encode(pictures).mean * 0.13025
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_a_new_posterior_starts_narrow(tmp_path: Path) -> None:
    job = make_job(autoencoder_config(tmp_path))

    std = job.vae.encode(torch.rand(1, 3, 32, 32)).std

    assert std.flatten().tolist() == pytest.approx([math.exp(-2)] * std.numel())


@pytest.mark.parametrize("step", [1, 2])
def test_crops_are_cut_out_of_the_picture_where_the_generator_says(step: int) -> None:
    pixels = torch.arange(2 * 3 * 8 * 10).view(2, 3, 8, 10)
    generator, same = (torch.Generator().manual_seed(4) for _ in range(2))

    cut = crop(pixels, 5, step, generator)

    places = (3 // step + 1, 5 // step + 1)
    top, left = (step * int(torch.randint(count, (2,), generator=same)[1]) for count in places)
    assert torch.equal(cut[1], pixels[1, :, top : top + 5, left : left + 5])
    assert cut.shape == (2, 3, 5, 5)
    assert crop(pixels, 100, step, generator).shape == pixels.shape


def test_a_shift_in_colour_has_no_gradient_error_and_an_edge_has() -> None:
    pixels = torch.rand(1, 3, 16, 16)

    assert gradient_error(pixels + 0.5, pixels) < 1e-6
    assert gradient_error(pixels.roll(1, dims=-1), pixels) > 0.1


def gradients(job: AutoencoderTraining) -> dict[str, Tensor | None]:
    return {name: weight.grad for name, weight in job.vae.named_parameters()}


def test_the_perceptual_term_teaches_the_decoder_and_leaves_the_encoders_levels_alone(tmp_path: Path) -> None:
    only = {"l1": 0, "l2": 0, "gradient": 0, "kl": 0, "perceptual": 1}
    job = make_job(autoencoder_config(tmp_path, job=only))
    pixels = torch.rand(2, 3, 32, 32)
    drawn = pixels.roll(3, dims=-1).requires_grad_()

    job._perceptual(drawn, pixels).backward()  # type: ignore[no-untyped-call]

    assert drawn.grad is not None
    assert drawn.grad.abs().max() > 0
    assert all(gradient is None for gradient in gradients(job).values())
    assert all(weight.requires_grad for weight in job.vae.parameters())


def test_checkpointed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    jobs = [make_job(autoencoder_config(tmp_path, checkpoint_activations=chosen)) for chosen in (False, True)]

    for job in jobs:
        losses = job.loss(next(job.batches(range(1))), generator_for(0, "x"))
        torch.autograd.backward(losses["loss"])

    plain, recomputed = (gradients(job) for job in jobs)
    for name, gradient in plain.items():
        other = recomputed[name]
        assert gradient is not None
        assert other is not None
        assert torch.equal(gradient, other)


def test_training_goes_on_from_a_file(tmp_path: Path) -> None:
    final = train(autoencoder_config(tmp_path / "first", steps=2))
    file = next(final.rglob("*.safetensors"))

    job = make_job(autoencoder_config(tmp_path / "second", job={"network": str(file)}))

    manager = ModelManager(device="cpu", file_path_list=[file])
    loaded = manager.fetch_model(AutoencoderKL).state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in job.vae.state_dict().items())
    assert all(weight.requires_grad for weight in job.vae.parameters())


def test_the_decoder_alone_learns_and_latents_stay_as_they_are(tmp_path: Path) -> None:
    first = train(autoencoder_config(tmp_path / "first", steps=2), Squares(12))
    file = next(first.rglob("*.safetensors"))
    config = autoencoder_config(tmp_path / "second", steps=2)
    assert config.autoencoder is not None
    config = replace(config, autoencoder=replace(config.autoencoder, network=str(file), learns="decoder"))

    second = next(train(config, Squares(12)).rglob("*.safetensors"))

    before, after = (
        ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[each]).find(AutoencoderKL).module
        for each in (file, second)
    )
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = before.encode(pixels)
        assert torch.equal(latents.mean, after.encode(pixels).mean)
        assert torch.equal(latents.std, after.encode(pixels).std)
        assert not torch.allclose(before.decode(latents.mean), after.decode(latents.mean), atol=1e-4)


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        config = autoencoder_config(tmp_path / precision, steps=1, precision=precision)
        train(config, on_step=lambda report: losses.append(report.values["loss"]))

    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
