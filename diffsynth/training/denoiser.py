"""Training HunyuanDiT: captions and noisy latents go in, what was added should come out."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsynth.core.family import ModelFamily
from diffsynth.core.saving import save_network
from diffsynth.models import autoencoder_kl, bert_clip, hunyuan_dit, mt5
from diffsynth.models.hunyuan_dit.blocks import Block
from diffsynth.models.hunyuan_dit.rope import Rope, build_rope
from diffsynth.pipelines.latents import pixels_to_images
from diffsynth.training.buckets import BatchOrder
from diffsynth.training.config import DenoiserJob, TrainingConfig
from diffsynth.training.job import Samples
from diffsynth.training.latents import LatentStore, encode
from diffsynth.training.networks import checkpoint_activations, copy_of
from diffsynth.training.objective import Objective, add_noise, separate, target
from diffsynth.training.parts import DenoiserParts, load_parts
from diffsynth.training.pictures import Batch, BatchStream, Pictures
from diffsynth.training.randomness import generator_for
from diffsynth.training.record import sheet

logger = logging.getLogger(__name__)

FILES = {
    "denoiser": "model/pytorch_model_ema.safetensors",
    "clip": "clip_text_encoder/pytorch_model.safetensors",
    "t5": "mt5/pytorch_model.safetensors",
    "autoencoder": "sdxl-vae-fp16-fix/diffusion_pytorch_model.safetensors",
}


class DenoiserTraining:
    """Trains a `HunyuanDiT`, and its text encoders if wanted.

    Args:
        config: of the run.
        job: its part about the denoiser.
        pictures: prepared data.
        device: where to train.
        cache: folder where latents are kept from one start to the next, or None.
    """

    def __init__(
        self,
        config: TrainingConfig,
        job: DenoiserJob,
        pictures: Pictures,
        device: torch.device,
        cache: Path | None = None,
    ) -> None:
        self.job, self.pictures, self.device = job, pictures, device
        self.precision = config.precision
        self.parts: DenoiserParts = load_parts(job, config.seed)
        pictures.check_sides(self.parts.multiple)
        self.denoiser, self.text, self.vae = self.parts.denoiser, self.parts.text, self.parts.vae
        if config.checkpoint_activations:
            checkpoint_activations(self.denoiser, (Block,))
        for module in self._modules().values():
            module.to(device)
        self.objective = Objective(job.prediction, job.beta_start, job.beta_end, job.timesteps, job.min_snr)
        order = BatchOrder(pictures.trained, config.schedule.batch_size, config.seed)
        load, workers = pictures.batch, 0 if pictures.kept else config.data.workers
        if job.cache and pictures.fixed:
            load, workers = (
                LatentStore(self.vae, self.parts.vae_digest, pictures, config.precision, device, cache).batch,
                0,
            )
        if job.cache:
            texts = ["", *job.sample_prompts, *(text for texts in pictures.texts for text in texts)]
            self.text.keep(texts, device, config.data.memory)
        self._stream = BatchStream(order, load, workers)
        self._ropes: dict[tuple[int, int], Rope] = {}
        assumed = 0.03 if self.denoiser.config.size_conditioning else 0.018
        if job.prediction == "velocity" and job.beta_end != assumed:
            logger.warning(
                "denoiser.beta_end is %g, but a pipeline takes %g for this network unless told",
                job.beta_end,
                assumed,
            )

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The denoiser, and the text encoders if they learn."""
        return {"denoiser": self.denoiser, **(self.text.modules() if self.text.learning else {})}

    @property
    def rates(self) -> Mapping[str, float]:
        """The text encoders may learn at a rate of their own."""
        return dict.fromkeys(self.text.modules(), self.job.text_rate)

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """Yield batches by their numbers."""
        return self._stream.batches(numbers)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss, and the mean squared error without weights.

        From the generator come, in this order, which caption each picture takes, which captions are left out, the
        noise levels, and the noise.

        Args:
            batch: pictures or their latents, and captions.
            generator: on the CPU.
        """
        count = len(batch.numbers)
        texts = choose_texts(batch.texts, self.job.dropout, generator)
        levels = self.objective.draw(count, generator)
        clean = batch.pixels.to(self.device)
        if not clean.is_floating_point():
            clean = encode(self.vae, clean, self.precision)
        clean = clean * self.job.latent_scale
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        levels = levels.to(self.device)
        said = self.denoiser(
            add_noise(clean, noise, levels),
            levels.timestep,
            self.text(texts, self.device),
            self._rope(*clean.shape[-2:]),
            self._size_condition(count, *clean.shape[-2:]),
        )
        wanted = target(self.job.prediction, clean, noise, levels)
        errors = (said.float() - wanted).square().mean(dim=(1, 2, 3))
        losses = {"loss": (self.objective.weight(levels) * errors).mean()}
        if self.job.min_snr:
            losses["loss_plain"] = errors.detach().mean()
        return losses

    @torch.no_grad()
    def samples(self, count: int, seed: int) -> Samples:
        """Draw captions with the same noise each time, by DDIM steps (arXiv 2010.02502)."""
        texts = list(self.job.sample_prompts) or self._captions(count)
        shape = self.pictures.shapes[self.pictures.measured[0]]
        height, width = self.vae.config.latent_size(shape.height, shape.width)
        size = (len(texts), self.denoiser.config.in_channels, height, width)
        latents = torch.randn(size, generator=generator_for(seed, "samples")).to(self.device)
        both = self.text([*texts, *([""] * len(texts))], self.device)
        condition = self.denoiser.encode_condition(both, self._size_condition(2 * len(texts), height, width))
        times = torch.linspace(1, 0, self.job.sample_steps + 1)
        levels = [self.objective.at(time[None]).to(self.device) for time in times]
        rope = self._rope(height, width)
        plan = self.denoiser.plan([float(level.timestep) for level in levels[:-1]], condition, rope)
        for step in range(self.job.sample_steps):
            prompted, free = self.denoiser.denoise(latents.repeat(2, 1, 1, 1), step, plan).float().chunk(2)
            said = free + self.job.sample_cfg_scale * (prompted - free)
            clean, noise = separate(self.job.prediction, said, latents, levels[step])
            latents = clean if step + 1 == self.job.sample_steps else add_noise(clean, noise, levels[step + 1])
        images = pixels_to_images(self.vae.decode(latents / self.job.latent_scale), truncate=False)
        columns = math.ceil(len(images) ** 0.5)
        return Samples(sheet([images[start : start + columns] for start in range(0, len(images), columns)]), {})

    def save(self, folder: Path, dtype: torch.dtype, metadata: Mapping[str, str], *, complete: bool) -> None:
        """Write networks where published files of HunyuanDiT lie, with the vocabularies."""
        families = self._families()
        for name, module in self._modules().items():
            if complete or name in self.networks:
                family = families[name]
                save_network(
                    copy_of(module, family, dtype),
                    family,
                    module.config,
                    folder / FILES[name],
                    family.layouts[0].name,
                    metadata,
                )
        for name, file in self.text.vocabularies.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)

    def describe(self) -> dict[str, Any]:
        """Return sizes and the data's hash."""
        networks: dict[str, Any] = {}
        for name, module in self._modules().items():
            config: Any = module.config
            count = sum(weight.numel() for weight in module.parameters())
            networks[name] = {"parameters": count, "config": asdict(config)}
        return {
            "networks": networks,
            "autoencoder_sha256": self.parts.vae_digest,
            "data": {"pictures": len(self.pictures), "sha256": self.pictures.digest},
        }

    def _modules(self) -> dict[str, nn.Module]:
        return {"denoiser": self.denoiser, **self.text.modules(), "autoencoder": self.vae}

    def _families(self) -> dict[str, ModelFamily]:
        return {
            "denoiser": hunyuan_dit.FAMILY,
            "clip": bert_clip.FAMILY,
            "t5": mt5.FAMILY,
            "autoencoder": autoencoder_kl.FAMILY,
        }

    def _captions(self, count: int) -> list[str]:
        """Return captions of the measured pictures, the languages by turns."""
        numbers = list(self.pictures.measured)[:count]
        chosen = [self.pictures.texts[number] for number in numbers]
        return [texts[place % len(texts)] for place, texts in enumerate(chosen)]

    def _rope(self, height: int, width: int) -> Rope:
        """Return the positions for latents of a size."""
        config = self.denoiser.config
        if (height, width) not in self._ropes:
            rows, columns = height // config.patch_size, width // config.patch_size
            self._ropes[height, width] = build_rope(rows, columns, config.head_dim, device=self.device)
        return self._ropes[height, width]

    def _size_condition(self, count: int, height: int, width: int) -> Tensor | None:
        """Return the six numbers that versions 1.0 and 1.1 are told: no picture was larger than it is, none is cut."""
        if not self.denoiser.config.size_conditioning:
            return None
        sizes = [side * self.vae.config.downscale for side in (width, height)]
        return torch.tensor([[*sizes, *sizes, 0, 0]] * count, dtype=torch.float32, device=self.device)


def choose_texts(texts: Sequence[Sequence[str]], dropout: float, generator: torch.Generator) -> list[str]:
    """Take one caption of each picture at random, and leave some out.

    Args:
        texts: captions of each picture.
        dropout: probability that a picture gets the empty caption.
        generator: gives a number per picture for the choice, then one for the leaving out.
    """
    chosen = torch.rand(len(texts), generator=generator).tolist()
    dropped = (torch.rand(len(texts), generator=generator) < dropout).tolist()
    return [
        "" if drop else each[int(place * len(each))] for each, place, drop in zip(texts, chosen, dropped, strict=True)
    ]
