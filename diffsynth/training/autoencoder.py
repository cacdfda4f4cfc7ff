"""Training the autoencoder: pictures go in, and should come out the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffsynth.core.saving import save_network
from diffsynth.errors import InvalidRequest
from diffsynth.models import autoencoder_kl
from diffsynth.models.autoencoder_kl.model import AutoencoderKL, Posterior, SpatialAttention
from diffsynth.nn.resnet import ResnetBlock
from diffsynth.pipelines.latents import pixels_to_images
from diffsynth.training.buckets import BatchOrder
from diffsynth.training.config import TrainingConfig
from diffsynth.training.job import Samples
from diffsynth.training.kinds import AutoencoderJob
from diffsynth.training.networks import checkpoint_activations, copy_of, make_network
from diffsynth.training.pictures import Batch, BatchStream, Pictures, to_pixels
from diffsynth.training.record import sheet

FILE = "sdxl-vae-fp16-fix/diffusion_pytorch_model.safetensors"
SCALES = 3  # sizes at which gradients are compared
PIXEL_CHANNELS = 3
MEASURED = 64  # pictures that tell mean and spread of the latents


class AutoencoderTraining:
    """Trains an `AutoencoderKL`.

    Args:
        config: of the run.
        job: its part about the autoencoder.
        pictures: prepared data.
        device: where to train.
    """

    def __init__(self, config: TrainingConfig, job: AutoencoderJob, pictures: Pictures, device: torch.device) -> None:
        self.job, self.pictures, self.device = job, pictures, device
        self.vae = make_network(autoencoder_kl.FAMILY, job.network, AutoencoderKL, config.seed)
        self._check_sizes()
        if not isinstance(job.network, str):
            set_log_variance(self.vae, job.initial_log_variance)
        self.learns_latents = job.learns == "all"
        for part in (self.vae.encoder, self.vae.quant_conv):
            part.requires_grad_(self.learns_latents)
        if config.checkpoint_activations:
            checkpoint_activations(self.vae, (ResnetBlock, SpatialAttention))
        self.vae.to(device)
        order = BatchOrder(pictures.trained, config.schedule.batch_size, config.seed)
        self._stream = BatchStream(order, pictures.batch, 0 if pictures.kept else config.data.workers)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The autoencoder."""
        return {"autoencoder": self.vae}

    @property
    def rates(self) -> Mapping[str, float]:
        """Nothing is slower."""
        return {}

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield batches by their numbers."""
        return self._stream.batches(numbers)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss and its parts.

        From the generator come, in this order, the places of the crops, if any, and the noise of the latents.

        Args:
            batch: pictures.
            generator: on the CPU.
        """
        values = batch.pixels
        if self.job.crop:
            values = crop(values, self.job.crop, self.vae.config.downscale, generator)
        pixels = to_pixels(values.to(self.device))
        with torch.set_grad_enabled(self.learns_latents):
            posterior = self.vae.encode(pixels)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        drawn = self.vae.decode(posterior.sample(noise)).float()
        difference = drawn - pixels
        parts = {"l1": difference.abs().mean(), "l2": difference.square().mean()}
        if self.learns_latents:
            parts["kl"] = kl_per_value(posterior)
        if self.job.gradient:
            parts["gradient"] = gradient_error(drawn, pixels)
        if self.job.perceptual:
            parts["perceptual"] = self._perceptual(drawn, pixels)
        total = torch.stack([getattr(self.job, name) * value for name, value in parts.items()]).sum()
        return {"loss": total, **{f"loss_{name}": value.detach() for name, value in parts.items()}}

    @torch.no_grad()
    def samples(self, count: int, seed: int) -> Samples:
        """Show pictures above what comes back of them; measure the mean signal-to-noise ratio in dB."""
        chosen = list(self.pictures.measured)[: max(MEASURED, count)]
        pairs = [self._there_and_back(number) for number in chosen]
        errors = [float((before - after).square().mean()) for before, after in pairs]
        ratios = [10 * torch.log10(torch.tensor(4 / max(error, 1e-12))).item() for error in errors]
        rows = [
            [pixels_to_images(each, truncate=False)[0] for each in side] for side in zip(*pairs[:count], strict=True)
        ]
        return Samples(sheet(rows), {"psnr": sum(ratios) / len(ratios)})

    def save(self, folder: Path, dtype: torch.dtype, metadata: Mapping[str, str], *, complete: bool) -> None:
        """Write the autoencoder; if its encoder has learnt, latents times the scale get mean 0 and variance 1."""
        family = autoencoder_kl.FAMILY
        scaled = copy_of(self.vae, family, torch.float32)
        if self.learns_latents:
            normalise_latents(scaled, *self._statistics(), self.job.latent_scale)
        save_network(scaled.to(dtype), family, scaled.config, folder / FILE, family.layouts[0].name, metadata)

    def describe(self) -> dict[str, Any]:
        """Return sizes and the data's hash."""
        count = sum(weight.numel() for weight in self.vae.parameters())
        return {
            "networks": {"autoencoder_kl": {"parameters": count, "config": asdict(self.vae.config)}},
            "data": {"pictures": len(self.pictures), "sha256": self.pictures.digest},
        }

    def _check_sizes(self) -> None:
        config = self.vae.config
        if config.in_channels != PIXEL_CHANNELS:
            raise InvalidRequest(f"the autoencoder has {config.in_channels} in_channels; pictures have 3.")
        self.pictures.check_sides(config.downscale)
        if self.job.crop % config.downscale:
            raise InvalidRequest(
                f"autoencoder.crop: must be a multiple of {config.downscale}, the pixels of one latent, "
                f"not {self.job.crop}."
            )

    def _there_and_back(self, number: int) -> tuple[Tensor, Tensor]:
        pixels = to_pixels(self.pictures.picture(number)[0][None].to(self.device))
        return pixels, self.vae(pixels).float().clamp(-1, 1)

    @torch.no_grad()
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each latent channel, over pictures spread over the data."""
        numbers = list(self.pictures.trained)
        chosen = numbers[:: max(len(numbers) // MEASURED, 1)][:MEASURED]
        rows = []
        for number in chosen:
            pixels = to_pixels(self.pictures.picture(number)[0][None].to(self.device))
            rows.append(self.vae.encode(pixels).mean[0].flatten(1).float())
        values = torch.cat(rows, dim=1)  # (C, all positions)
        return values.mean(dim=1), values.std(dim=1)

    def _perceptual(self, drawn: Tensor, pixels: Tensor) -> Tensor:
        """Compare what the encoder's levels make of both pictures; the encoder does not learn from this."""
        encoder = self.vae.encoder
        encoder.requires_grad_(requires_grad=False)
        try:
            with torch.no_grad():
                wanted = list(_levels(encoder, pixels))
            found = list(_levels(encoder, drawn))
        finally:
            encoder.requires_grad_(self.learns_latents)
        return torch.stack([F.mse_loss(*pair) / pair[1].var() for pair in zip(found, wanted, strict=True)]).mean()


def _levels(encoder: nn.Module, pixels: Tensor) -> Iterator[Tensor]:
    hidden: Tensor = encoder.conv_in(pixels)  # type: ignore[operator]
    for block in encoder.down_blocks:  # type: ignore[union-attr]
        hidden = block(hidden)
        yield hidden.float()


def crop(pixels: Tensor, side: int, step: int, generator: torch.Generator) -> Tensor:
    """Cut a square out of each picture, anywhere on a grid: (B, 3, H, W) to (B, 3, side, side).

    The rows' places are drawn first, all at once, then the columns'.

    Args:
        pixels: pictures.
        side: of the square; a shorter side of the picture stays whole.
        step: pixels of the grid; with those of a latent, a crop's latents are like those of the whole picture.
        generator: gives the places.
    """
    height, width = pixels.shape[-2:]
    side_high, side_wide = min(side, height), min(side, width)
    tops = step * torch.randint((height - side_high) // step + 1, (len(pixels),), generator=generator)
    lefts = step * torch.randint((width - side_wide) // step + 1, (len(pixels),), generator=generator)
    return torch.stack(
        [
            image[:, top : top + side_high, left : left + side_wide]
            for image, top, left in zip(pixels, tops.tolist(), lefts.tolist(), strict=True)
        ]
    )


def gradient_error(drawn: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean absolute error of differences between neighbours, at full, half and quarter size."""
    difference = drawn - pixels
    parts = []
    for _ in range(SCALES):
        parts += [difference.diff(dim=-1).abs().mean(), difference.diff(dim=-2).abs().mean()]
        if min(difference.shape[-2:]) < 4:
            break
        difference = F.avg_pool2d(difference, 2)
    return torch.stack(parts).mean()


def kl_per_value(posterior: Posterior) -> Tensor:
    """Return the Kullback-Leibler divergence of a posterior from N(0, 1), the mean over latent values."""
    mean, std = posterior.mean.float(), posterior.std.float()
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()


@torch.no_grad()
def set_log_variance(vae: AutoencoderKL, value: float) -> None:
    """Have a new autoencoder predict one log-variance for all latent values."""
    channels = vae.config.latent_channels
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    assert bias is not None
    weight[channels:] = 0.0
    bias[channels:] = value


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, mean: Tensor, std: Tensor, scale: float) -> None:
    """Change an autoencoder so that its latents, times ``scale``, have zero mean and unit variance.

    What it draws stays the same, but for rounding: the 1x1 convolutions around the latents undo each other's change.

    Args:
        vae: the autoencoder, changed in place.
        mean: (C,), of each latent channel as it is.
        std: (C,), of each latent channel as it is.
        scale: what a pipeline multiplies latents by.
    """
    channels, spread = vae.config.latent_channels, std * scale  # new latents = (old - mean) / spread
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before.bias is not None
    assert after.bias is not None
    before.weight[:channels] /= spread[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / spread
    before.bias[channels:] -= 2 * spread.log()
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= spread[None, :, None, None]
