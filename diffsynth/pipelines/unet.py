"""What Stable Diffusion and SDXL share: prompts and a UNet make an image, from noise or from another image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.loaded import LoadedModel
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.clip.model import ClipFeatures
from diffsynth.models.ip_adapter.model import IPAdapter
from diffsynth.models.unet.model import UNet
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.clip_prompt import ClipReader, learn_from
from diffsynth.pipelines.codec import ImageCodec, Tiles
from diffsynth.pipelines.denoise import denoise, first_bad
from diffsynth.pipelines.guidance import Guidance
from diffsynth.pipelines.hires import no_noise
from diffsynth.pipelines.inpaint import Inpainting
from diffsynth.pipelines.ip_adapter import PicturePrompts, SeenPictures
from diffsynth.pipelines.latents import LatentPreview, Noise
from diffsynth.pipelines.monitor import Monitor
from diffsynth.pipelines.precision import finite
from diffsynth.pipelines.recipe import Source
from diffsynth.pipelines.remarks import remark_mask, remark_no_guidance, remark_size, remark_tiles
from diffsynth.pipelines.texts import REMEDY, Texts, rows_of
from diffsynth.pipelines.unet_control import UNetControlNets
from diffsynth.pipelines.unet_conventions import UNetConventions
from diffsynth.pipelines.unet_pictures import attention_to
from diffsynth.pipelines.unet_predict import Row, Stage, predictor
from diffsynth.pipelines.unet_request import UNetRequest
from diffsynth.schedulers.base import Scheduler, SchedulerRun
from diffsynth.schedulers.catalog import make_scheduler

BETA_START, BETA_END = 0.00085, 0.012

R = TypeVar("R", bound=UNetRequest)
Features: TypeAlias = tuple[ClipFeatures, ...]  # of each text encoder


class Text(NamedTuple):
    """A prompt and how it is read.

    Args:
        prompt: the text; None is features that are all zero.
        negative: whether it is a negative prompt.
        clip_skips: layer of each text encoder, from the end.
        long_prompts: what becomes of one that is longer than they read.
    """

    prompt: str | None
    negative: bool
    clip_skips: tuple[int, ...]
    long_prompts: str


@dataclass(kw_only=True, eq=False)
class UNetImagePipeline(ImagePipeline[R]):
    """Draws with a UNet (arXiv 2112.10752).

    Args:
        denoiser: the UNet.
        readers: the text encoders.
        vae: the autoencoder.
        conventions: what is done when the caller leaves it open, and how.
        latent_scale: latents of the autoencoder times this have unit variance.
        prediction: what the denoiser predicts, "epsilon" or "velocity".
        zero_terminal_snr: whether it was trained on a schedule that ends in pure noise, and is drawn with that.
        controlnets: the control networks that may steer the denoiser.
        pictures: the IP-Adapter and its image encoder, if any.
        loaded: the networks as the manager knows them, for recipes and to notice changed files.
    """

    denoiser: UNet
    readers: tuple[ClipReader, ...]
    vae: AutoencoderKL
    conventions: UNetConventions
    latent_scale: float
    prediction: str = "epsilon"
    zero_terminal_snr: bool = False
    controlnets: UNetControlNets = field(default_factory=UNetControlNets)
    pictures: PicturePrompts[IPAdapter] = field(default_factory=PicturePrompts)
    loaded: tuple[LoadedModel[Any], ...] = ()
    inversions: tuple[Source, ...] = ()

    @override
    def __post_init__(self) -> None:
        usual: Any = self.request_type(prompt="")
        self.scheduler_for(usual)  # raises for a prediction or a schedule that cannot be drawn
        super().__post_init__()

    def load_textual_inversion(self, path: str | PathLike[str], word: str | None = None) -> str:
        """Learn a word from a file of embeddings.

        Args:
            path: a textual inversion, made for this kind of model.
            word: how it is written in prompts; by default as the file says, else the file's name.

        Returns:
            The word.

        Raises:
            CheckpointError: the file cannot be used; the message says why.
            InvalidRequest: the pipeline was released, or its text encoders were.
        """
        self._check_not_released()
        self.check_reads_texts()
        checkpoint = open_checkpoint(path)
        tensors = {key: checkpoint[key].clone() for key in checkpoint}
        word = learn_from(self.readers, tensors, Path(path), word)
        self.inversions += (Source.of_file("textual_inversion", Path(path), word=word),)
        return word

    @property
    @override
    def models(self) -> tuple[LoadedModel[Any], ...]:
        return self.loaded

    @override
    def with_models(self, models: Sequence[LoadedModel[Any]]) -> Self:
        new = dict(zip(self.loaded, models, strict=True))
        modules: Any = {old.module: entry.module for old, entry in new.items()}
        return replace(
            self,
            denoiser=modules[self.denoiser],
            readers=tuple(replace(reader, encoder=modules[reader.encoder]) for reader in self.readers),
            vae=modules[self.vae],
            loaded=tuple(models),
            controlnets=self.controlnets.exchanged(new),
            pictures=self.pictures.exchanged(new),
            **self._exchanged(modules),
        )

    def _exchanged(self, modules: Mapping[nn.Module, Any]) -> dict[str, Any]:
        """Return the fields with further networks, exchanged for others; see ``with_models``."""
        return {}

    @property
    @override
    def vocabularies(self) -> tuple[Source, ...]:
        files = {reader.tokenizer.source: reader for reader in self.readers if reader.tokenizer.source.is_file()}
        return (*(Source.of_file("clip_tokenizer", path) for path in files), *self.inversions)

    @property
    def codec(self) -> ImageCodec:
        """The autoencoder, used as the conventions say."""
        return ImageCodec.following(self.conventions, self.vae, self.latent_scale)

    @property
    @override
    def device(self) -> torch.device:
        """Where the denoiser is, and latents are kept."""
        return next(self.denoiser.parameters()).device

    @override
    def describe(self) -> dict[str, Any]:
        return {
            "conventions": self.conventions.name,
            "prediction": self.prediction,
            "zero_terminal_snr": self.zero_terminal_snr,
            "latent_scale": self.latent_scale,
        }

    @override
    def fill_in(self, request: R) -> R:
        conventions = self.conventions
        height, width = self.round_size(*request.wanted_size(conventions.size))
        Inpainting.check(request, self.denoiser.config)
        self.pictures.check(request)
        return replace(
            self.controlnets.fill_in(request),
            height=height,
            width=width,
            cfg_scale=conventions.cfg_scale if request.cfg_scale is None else request.cfg_scale,
            num_inference_steps=request.num_inference_steps or conventions.num_inference_steps,
            scheduler=request.scheduler or conventions.scheduler,
            spacing=request.spacing or self._usual_spacing(request),
            long_prompts=request.long_prompts or conventions.long_prompts,
        )

    def _usual_spacing(self, request: R) -> str | None:
        if self.zero_terminal_snr:
            return "trailing"  # starts at the last timestep, which is what such networks were trained for
        return self.conventions.spacing if request.scheduler is None else None

    @override
    def round_size(self, height: int, width: int) -> tuple[int, int]:
        return self.conventions.round_size(height, width, self.vae.config.downscale)

    @override
    def remark(self, request: R, complete: R) -> None:
        remark_size(request, request.wanted_size(self.conventions.size), (complete.height, complete.width))
        assert complete.cfg_scale is not None
        if not self.conventions.guides(complete.cfg_scale):
            remark_no_guidance(request, complete.cfg_scale, rescales=False)
        remark_tiles(request)
        remark_mask(request.mask_image)
        self.pictures.remark(request)
        if complete.controlnet_images:
            self.controlnets.remark(request, complete, len(self._run(complete, no_noise).timesteps))

    @override
    def scheduler_for(self, request: R) -> Scheduler:
        name = request.scheduler or self.conventions.scheduler
        return make_scheduler(
            self.conventions.samplers.get(name, name),
            beta_start=BETA_START,
            beta_end=BETA_END,
            prediction=self.prediction,
            spacing=request.spacing,
            final_sigma=self.conventions.final_sigma.get(name),
            zero_terminal_snr=self.zero_terminal_snr,
        )

    @property
    @override
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return tuple(reader.encoder for reader in self.readers)

    @override
    def texts_of(self, request: R) -> list[Text]:
        """Return the negative prompt, if it is asked for, and the prompt."""
        assert request.cfg_scale is not None
        conventions = self.conventions
        how = request.long_prompts or conventions.long_prompts
        prompt = Text(request.prompt, False, self.clip_skips(request, negative=False), how)
        if not conventions.guides(request.cfg_scale):
            return [prompt]
        skips = self.clip_skips(request, negative=not conventions.skips_negative)
        return [Text(conventions.negative(request.negative_prompt), True, skips, how), prompt]

    @override
    def encode(self, text: Text) -> Features:
        pairs = zip(self.readers, text.clip_skips, strict=True)
        return tuple(
            reader(text.prompt or "", clip_skip=skip, long_prompts=text.long_prompts) for reader, skip in pairs
        )

    @override
    def models_for(self, request: R) -> tuple[LoadedModel[Any], ...]:
        return self.pictures.in_use(self.controlnets.in_use(self.models, request), request)

    @override
    def draw_stage(self, requests: Sequence[R], texts: Texts, monitor: Monitor) -> Tensor:
        seen = self.pictures.see(requests[0])
        networks: list[nn.Module] = [unet for unet, _ in self.denoisers(requests[0])]
        networks += dict.fromkeys(control.network for control in self.controlnets.controls(requests[0]))
        networks += [] if seen is None else [seen.adapter]
        return finite(lambda: self._denoise(requests, texts, seen, monitor), networks, REMEDY)

    @abstractmethod
    def clip_skips(self, request: R, *, negative: bool) -> tuple[int, ...]:
        """Return the clip skip of each text encoder."""

    @abstractmethod
    def row(self, unet: UNet, text: Text, features: Features, request: R) -> Row:
        """Return what a denoiser is told of a text."""

    @override
    def denoisers(self, request: R) -> tuple[tuple[UNet, float], ...]:
        return ((self.denoiser, float("inf")),)

    def _denoise(
        self, requests: Sequence[R], texts: Texts, seen: SeenPictures[IPAdapter] | None, monitor: Monitor
    ) -> tuple[Tensor, str | None]:
        """Return clean latents (B, C, h, w) and where they first were not finite, if so.

        Args:
            requests: what to draw.
            texts: features of their texts.
            seen: pictures as prompts, if any.
            monitor: who is told about progress.
        """
        request = requests[0]
        assert request.height is not None
        assert request.width is not None
        size = self.vae.config.latent_size(request.height, request.width)
        seeds = [each.seed for each in requests if each.seed is not None]
        noise = Noise(seeds, (self.vae.config.latent_channels, *size), self.device)
        run = self._run(request, noise.draw)
        latents, inpainting = self._start(requests, run, noise)
        rows = rows_of(self.texts_of(each) for each in requests)
        guides = self.controlnets.guides(request, len(run.timesteps))
        index = [0 if text.negative else 1 for text in rows]
        scale_without = self.conventions.scale_without_picture
        pictures = None if seen is None else attention_to(seen, self.denoiser, index, scale_without=scale_without)
        stages = [
            Stage(
                unet,
                below,
                tuple(self.row(unet, text, texts[text], request) for text in rows),
                tuple(guides) if unet is self.denoiser else (),  # a refiner has no control networks, and no adapter
                pictures if unet is self.denoiser else None,
            )
            for unet, below in self.denoisers(request)
        ]
        assert request.cfg_scale is not None
        guided = self.conventions.guides(request.cfg_scale)
        guidance = Guidance(scale=request.cfg_scale if guided else None, rescale=request.guidance_rescale)
        predict = predictor(stages, run.timesteps, guidance, inpainting)
        on_step = monitor.on_step(run.timesteps, LatentPreview(self.vae, self.latent_scale))
        keep = None if inpainting is None else inpainting.keep
        latents, good = denoise(predict, latents, run, progress=monitor.progress, on_step=on_step, keep=keep)
        return latents, first_bad(good)

    def _run(self, request: R, draw_noise: Callable[[], Tensor]) -> SchedulerRun:
        """Return the steps of a complete request."""
        assert request.num_inference_steps is not None
        return self.scheduler_for(request).start(
            request.num_inference_steps, denoising_strength=request.denoising_strength, draw_noise=draw_noise
        )

    def _start(self, requests: Sequence[R], run: SchedulerRun, noise: Noise) -> tuple[Tensor, Inpainting | None]:
        """Return the latents a run starts from, and what keeps parts of the input images."""
        request = requests[0]
        assert request.height is not None
        assert request.width is not None
        pictures = [each.input_image for each in requests if each.input_image is not None]
        size, tiles = (request.height, request.width), Tiles.of(request)
        clean = None
        if pictures and not Inpainting.ignores_image(request, self.denoiser.config):
            clean = self.codec.encode(pictures, *size, noise=noise, tiles=tiles)
        fresh = noise.draw()
        if clean is None or (request.mask_image is not None and request.denoising_strength == 1):
            latents = fresh * run.noise_scale
        else:
            latents = run.add_noise(clean, fresh)
        if request.mask_image is None:
            return latents, None
        return latents, Inpainting.prepare(
            requests, self.denoiser.config, self.codec, run, clean=clean, fresh=fresh, noise=noise, tiles=tiles
        )
