"""Training a denoiser of any family: captions and noisy latents go in, what was added should come out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsynth.pipelines.latents import pixels_to_images
from diffsynth.training.buckets import BatchOrder, Frame, Shape
from diffsynth.training.config import TrainingConfig
from diffsynth.training.ensemble import Ensemble, Student
from diffsynth.training.job import Samples
from diffsynth.training.kinds import DenoisingJob
from diffsynth.training.latents import LatentStore, encode
from diffsynth.training.networks import checkpoint_activations
from diffsynth.training.objective import add_noise, separate, target
from diffsynth.training.pictures import Batch, BatchStream, Pictures
from diffsynth.training.randomness import generator_for
from diffsynth.training.record import sheet


class DenoiserTraining:
    """Trains a denoiser, or something small beside it.

    Args:
        config: of the run.
        job: its part about denoising.
        ensemble: the networks.
        student: what of them, or beside them, learns.
        pictures: prepared data.
        device: where to train.
        cache: folder where latents are kept from one start to the next, or None.
    """

    def __init__(
        self,
        config: TrainingConfig,
        job: DenoisingJob,
        ensemble: Ensemble,
        student: Student,
        pictures: Pictures,
        device: torch.device,
        cache: Path | None = None,
    ) -> None:
        self.job, self.ensemble, self.student = job, ensemble, student
        self.pictures, self.device = pictures, device
        self.precision = config.precision
        pictures.check_sides(ensemble.multiple)
        if config.checkpoint_activations:
            for module in {ensemble.denoiser, *student.networks.values()}:
                checkpoint_activations(module, ensemble.blocks)
        for module in self._modules().values():
            module.to(device)
        order = BatchOrder(pictures.trained, config.schedule.batch_size, config.seed)
        load, workers = pictures.batch, 0 if pictures.kept else config.data.workers
        if job.cache and pictures.fixed:
            digest = ensemble.digest("autoencoder")
            store = LatentStore(ensemble.vae, digest, pictures, config.precision, device, cache, student.hint)
            load, workers = store.batch, 0
        if job.cache:
            texts = ["", *job.sample_prompts, *(text for texts in pictures.texts for text in texts)]
            ensemble.keep(texts, device, config.data.memory)
        self._stream = BatchStream(order, load, workers)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """What learns."""
        return self.student.networks

    @property
    def rates(self) -> Mapping[str, float]:
        """How fast, where not as the run says."""
        return self.student.rates

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
        objective = self.ensemble.objective
        texts = choose_texts(batch.texts, self.job.dropout, generator)
        levels = objective.draw(len(batch.numbers), generator)
        clean = self._latents(batch.pixels)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        levels = levels.to(self.device)
        height, width = clean.shape[-2:]
        predict = self.student.told(texts, batch.frames, (height, width), self._hints(batch))
        said = predict(add_noise(clean, noise, levels), levels.timestep)
        wanted = target(objective.prediction, clean, noise, levels)
        errors = (said.float() - wanted).square().mean(dim=(1, 2, 3))
        losses = {"loss": (objective.weight(levels) * errors).mean()}
        if self.job.min_snr:
            losses["loss_plain"] = errors.detach().mean()
        return losses

    @torch.no_grad()
    def samples(self, count: int, seed: int) -> Samples:
        """Draw captions with the same noise each time, by DDIM steps (arXiv 2010.02502)."""
        objective, vae = self.ensemble.objective, self.ensemble.vae
        texts = list(self.job.sample_prompts) or self._captions(count)
        shape = self.pictures.shapes[self.pictures.measured[0]]
        height, width = vae.config.latent_size(shape.height, shape.width)
        latents = torch.randn(
            (len(texts), vae.config.latent_channels, height, width), generator=generator_for(seed, "samples")
        ).to(self.device)
        frames = [Frame(shape.height, shape.width)] * (2 * len(texts))
        hints = self._hints_for(len(texts), shape)
        both_hints = None if hints is None else hints.repeat(2, 1, 1, 1)
        predict = self.student.told([*texts, *([""] * len(texts))], frames, (height, width), both_hints)
        times = torch.linspace(1, 0, self.job.sample_steps + 1)
        levels = [objective.at(time[None]).to(self.device) for time in times]
        for level, following in pairwise(levels):
            both = predict(latents.repeat(2, 1, 1, 1), level.timestep.expand(2 * len(texts)))
            prompted, free = both.float().chunk(2)
            said = free + self.job.sample_cfg_scale * (prompted - free)
            clean, noise = separate(objective.prediction, said, latents, level)
            latents = clean if following is levels[-1] else add_noise(clean, noise, following)
        images = pixels_to_images(vae.decode(latents / self.ensemble.latent_scale), truncate=False)
        columns = math.ceil(len(images) ** 0.5)
        return Samples(sheet([images[start : start + columns] for start in range(0, len(images), columns)]), {})

    def save(self, folder: Path, dtype: torch.dtype, metadata: Mapping[str, str], *, complete: bool) -> None:
        """Write what learns."""
        self.student.save(folder, dtype, metadata, complete=complete)

    def describe(self) -> dict[str, Any]:
        """Return sizes, hashes of what is frozen, and the data's hash."""
        networks: dict[str, Any] = {}
        for name, module in self._modules().items():
            config: Any = getattr(module, "config", None)
            count = sum(weight.numel() for weight in module.parameters())
            networks[name] = {"parameters": count} | ({"config": asdict(config)} if config else {})
        return {
            "networks": networks,
            "autoencoder_sha256": self.ensemble.digest("autoencoder"),
            "data": {"pictures": len(self.pictures), "sha256": self.pictures.digest},
            **self.student.describe(),
        }

    def _latents(self, pixels: Tensor) -> Tensor:
        """Return scaled latents of pictures, or of latents that are not scaled yet."""
        values = pixels.to(self.device)
        if not values.is_floating_point():
            values = encode(self.ensemble.vae, values, self.precision)
        return values * self.ensemble.latent_scale

    def _hints(self, batch: Batch) -> Tensor | None:
        """Return scaled latents of what the student is shown of a batch; nothing for a student without a hint."""
        if self.student.hint is None:
            return None
        return self._latents(self.student.hint.of(batch.pixels) if batch.hints is None else batch.hints)

    def _hints_for(self, count: int, shape: Shape) -> Tensor | None:
        """Return hints for drawing: of the measured pictures of a shape, as often as need be."""
        if self.student.hint is None:
            return None
        fitting = [number for number in self.pictures.measured if self.pictures.shapes[number] == shape]
        numbers = list(islice(cycle(fitting), count))
        return self._latents(self.student.hint.of(self.pictures.batch(numbers).pixels))

    def _modules(self) -> dict[str, nn.Module]:
        return {**self.ensemble.modules, **self.student.networks}

    def _captions(self, count: int) -> list[str]:
        """Return captions of the measured pictures, the languages by turns."""
        numbers = list(self.pictures.measured)[:count]
        chosen = [self.pictures.texts[number] for number in numbers]
        return [texts[place % len(texts)] for place, texts in enumerate(chosen)]


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
