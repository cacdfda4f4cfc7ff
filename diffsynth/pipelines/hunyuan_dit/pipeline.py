"""HunyuanDiT: Chinese and English prompts to images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from diffsynth.core.loaded import LoadedModel
from diffsynth.manager import ModelManager
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.bert_clip.model import BertClip
from diffsynth.models.hunyuan_dit.backbone import Backbone
from diffsynth.models.hunyuan_dit.condition import Condition, TextFeatures
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.rope import Rope, build_rope
from diffsynth.models.hunyuan_dit.tiled import TokenTiling
from diffsynth.models.hunyuan_dit_ip_adapter.model import HunyuanDiTIPAdapter
from diffsynth.models.mt5.model import MT5Encoder
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.codec import ImageCodec, Tiles
from diffsynth.pipelines.control import ControlNets
from diffsynth.pipelines.denoise import denoise, first_bad
from diffsynth.pipelines.guidance import Guidance, Region
from diffsynth.pipelines.hires import no_noise
from diffsynth.pipelines.hunyuan_dit.control import hint_latents, misfit
from diffsynth.pipelines.hunyuan_dit.conventions import Conventions, conventions_named
from diffsynth.pipelines.hunyuan_dit.parts import check_fit, check_loaded
from diffsynth.pipelines.hunyuan_dit.pictures import attention_to, choose_pictures
from diffsynth.pipelines.hunyuan_dit.predict import Steering, predictor, with_rows
from diffsynth.pipelines.hunyuan_dit.prompt import HunyuanDiTPromptEncoder, clip_tokenizer_for, t5_tokenizer_for
from diffsynth.pipelines.hunyuan_dit.request import HunyuanDiTRequest
from diffsynth.pipelines.ip_adapter import PicturePrompts, SeenPictures
from diffsynth.pipelines.latents import LatentPreview, Noise, region_mask
from diffsynth.pipelines.monitor import Monitor
from diffsynth.pipelines.precision import finite
from diffsynth.pipelines.recipe import Source
from diffsynth.pipelines.remarks import remark_no_guidance, remark_size, remark_tiles
from diffsynth.pipelines.texts import REMEDY, Texts, rows_of
from diffsynth.schedulers.base import Scheduler, SchedulerRun
from diffsynth.schedulers.catalog import make_scheduler

logger = logging.getLogger(__name__)

BETA_START = 0.00085


class Text(NamedTuple):
    """A prompt and the layer of each text encoder that it is read with, from the end."""

    prompt: str
    clip_skip: int
    clip_skip_2: int


@dataclass(kw_only=True, eq=False)
class HunyuanDiTImagePipeline(ImagePipeline[HunyuanDiTRequest]):
    """Draws with HunyuanDiT (arXiv 2405.08748); make it with ``from_model_manager``.

    Args:
        denoiser: the diffusion transformer.
        prompt_encoder: both text encoders with their tokenizers.
        vae: the autoencoder.
        conventions: what is done when the caller leaves it open, and how.
        beta_end: last beta of the noise schedule the denoiser was trained on.
        latent_scale: latents of the autoencoder times this have unit variance; that of the SDXL autoencoder.
        loaded: the networks as the manager knows them, for recipes and to notice changed files.
        controlnets: the control networks among them.
        pictures: the IP-Adapter and its image encoder among them, if any.
    """

    request_type: ClassVar[type[HunyuanDiTRequest]] = HunyuanDiTRequest

    denoiser: HunyuanDiT
    prompt_encoder: HunyuanDiTPromptEncoder
    vae: AutoencoderKL
    conventions: Conventions
    beta_end: float
    latent_scale: float = 0.13025
    loaded: tuple[LoadedModel[Any], ...] = ()
    controlnets: ControlNets[HunyuanDiTControlNet] = field(default_factory=ControlNets)
    pictures: PicturePrompts[HunyuanDiTIPAdapter] = field(default_factory=PicturePrompts)

    @classmethod
    def from_model_manager(
        cls,
        manager: ModelManager,
        conventions: str = "diffsynth",
        *,
        denoiser: str | int | None = None,
        clip: str | int | None = None,
        t5: str | int | None = None,
        vae: str | int | None = None,
        controlnets: Sequence[str | int] | None = None,
        beta_end: float | None = None,
        clip_tokenizer: str | PathLike[str] | None = None,
        t5_tokenizer: str | PathLike[str] | None = None,
        ip_adapter: str | int | None = None,
        image_encoder: str | int | None = None,
    ) -> Self:
        """Wire loaded networks into a pipeline.

        Args:
            manager: has loaded the denoiser, both text encoders and the autoencoder.
            conventions: ``diffsynth`` (what DiffSynth 1.x did), ``original`` (Tencent's program) or ``diffusers``.
            denoiser: which one, if several are loaded: the name of its file or folder, or its index.
            clip: which CLIP text encoder, likewise.
            t5: which mT5 encoder, likewise.
            vae: which autoencoder, likewise.
            controlnets: which control networks, likewise, in the order of the settings that are meant for them; by
                default all that fit the denoiser, in the order in which they were loaded.
            beta_end: last beta of the noise schedule; by default 0.03 for v1.0 and v1.1, 0.018 for v1.2.
            clip_tokenizer: vocab.txt or its folder; by default looked for near the text encoder's file.
            t5_tokenizer: spiece.model or its folder; by default looked for in and near the text encoder's file.
            ip_adapter: which IP-Adapter takes pictures as prompts; by default the loaded one that fits, if any.
            image_encoder: which image encoder it reads with, likewise.

        Raises:
            ModelNotLoaded: a network is missing.
            AmbiguousModel: several networks of a kind are loaded and none is named.
            TokenizerNotFound: a vocabulary is nowhere; the message lists the places.
            InvalidRequest: unknown conventions, or networks that do not fit each other.
        """
        chosen = conventions_named(conventions)
        check_loaded(manager)
        dit, bert = manager.find(HunyuanDiT, denoiser), manager.find(BertClip, clip)
        mt5, autoencoder = manager.find(MT5Encoder, t5), manager.find(AutoencoderKL, vae)
        check_fit(dit, bert, mt5, autoencoder)
        controls = ControlNets.choose(manager, HunyuanDiTControlNet, controlnets, partial(misfit, dit))
        pictures = choose_pictures(manager, dit, adapter=ip_adapter, encoder=image_encoder)
        if beta_end is None:
            beta_end = 0.03 if dit.config.size_conditioning else 0.018
        logger.info("%s is %s; noise schedule ends at beta %s", dit.path, dit.family.version(dit.config), beta_end)
        encoder = HunyuanDiTPromptEncoder(
            clip=bert.module,
            clip_tokenizer=clip_tokenizer_for(bert, clip_tokenizer, dit.config.text_len),
            t5=mt5.module,
            t5_tokenizer=t5_tokenizer_for(mt5, t5_tokenizer, dit.config.t5_len),
        )
        return cls(
            denoiser=dit.module,
            prompt_encoder=encoder,
            vae=autoencoder.module,
            conventions=chosen,
            beta_end=beta_end,
            loaded=(dit, bert, mt5, autoencoder, *controls.loaded, *pictures.loaded),
            controlnets=controls,
            pictures=pictures,
        )

    @property
    @override
    def models(self) -> tuple[LoadedModel[Any], ...]:
        return self.loaded

    @override
    def models_for(self, request: HunyuanDiTRequest) -> tuple[LoadedModel[Any], ...]:
        return self.pictures.in_use(self.controlnets.in_use(self.loaded, request), request)

    @override
    def with_models(self, models: Sequence[LoadedModel[Any]]) -> Self:
        new = dict(zip(self.loaded, models, strict=True))
        modules: Any = {old.module: entry.module for old, entry in new.items()}
        encoder = self.prompt_encoder
        return replace(
            self,
            denoiser=modules[self.denoiser],
            prompt_encoder=replace(encoder, clip=modules[encoder.clip], t5=modules[encoder.t5]),
            vae=modules[self.vae],
            loaded=tuple(models),
            controlnets=self.controlnets.exchanged(new),
            pictures=self.pictures.exchanged(new),
        )

    @property
    @override
    def vocabularies(self) -> tuple[Source, ...]:
        encoder = self.prompt_encoder
        found = {"clip_tokenizer": encoder.clip_tokenizer.source, "t5_tokenizer": encoder.t5_tokenizer.source}
        return tuple(Source.of_file(role, path) for role, path in found.items() if path.is_file())

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
        return {"conventions": self.conventions.name, "beta_end": self.beta_end, "latent_scale": self.latent_scale}

    @override
    def fill_in(self, request: HunyuanDiTRequest) -> HunyuanDiTRequest:
        conventions = self.conventions
        self.pictures.check(request)
        height, width = self._size(*request.wanted_size(1024), binning=request.resolution_binning)
        return replace(
            self.controlnets.complete(request),
            height=height,
            width=width,
            cfg_scale=conventions.cfg_scale if request.cfg_scale is None else request.cfg_scale,
            negative_prompt=conventions.negative(request.negative_prompt),
            num_inference_steps=request.num_inference_steps or conventions.num_inference_steps,
            scheduler=request.scheduler or conventions.scheduler,
            resolution_binning=False,
        )

    @override
    def round_size(self, height: int, width: int) -> tuple[int, int]:
        return self._size(height, width, binning=False)

    def _size(self, height: int, width: int, *, binning: bool | None) -> tuple[int, int]:
        multiple = self.vae.config.downscale * self.denoiser.config.patch_size
        return self.conventions.size(height, width, multiple, binning=binning)

    @override
    def remark(self, request: HunyuanDiTRequest, complete: HunyuanDiTRequest) -> None:
        remark_size(request, request.wanted_size(1024), (complete.height, complete.width))
        assert complete.cfg_scale is not None
        if not self.conventions.guides(complete.cfg_scale):
            remark_no_guidance(request, complete.cfg_scale, rescales=bool(request.perturbed_attention_scale))
        remark_tiles(request)
        self.pictures.remark(request)
        if complete.controlnet_images:
            self.controlnets.remark(request, complete, len(self._run(complete, no_noise).timesteps))

    @override
    def scheduler_for(self, request: HunyuanDiTRequest) -> Scheduler:
        name = request.scheduler or self.conventions.scheduler
        return make_scheduler(
            self.conventions.samplers.get(name, name),
            beta_start=BETA_START,
            beta_end=self.beta_end,
            prediction="velocity",
            spacing=request.spacing,
        )

    def _run(self, request: HunyuanDiTRequest, draw_noise: Callable[[], Tensor]) -> SchedulerRun:
        assert request.num_inference_steps is not None
        scheduler, strength = self.scheduler_for(request), request.denoising_strength
        return scheduler.start(request.num_inference_steps, denoising_strength=strength, draw_noise=draw_noise)

    @property
    @override
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return (self.prompt_encoder.clip, self.prompt_encoder.t5)

    @override
    def texts_of(self, request: HunyuanDiTRequest) -> list[Text]:
        """Return the negative prompt, if it is asked for, the prompt, and each local prompt."""
        strip = str.strip if self.conventions.strips_prompts else str
        prompts = [request.negative_prompt or ""] if self._guided(request) else []
        prompts += [request.prompt, *request.local_prompts]
        return [Text(strip(prompt), request.clip_skip, request.clip_skip_2) for prompt in prompts]

    @override
    def encode(self, text: Text) -> TextFeatures:
        return self.prompt_encoder([text.prompt], clip_skip=text.clip_skip, clip_skip_2=text.clip_skip_2)

    @override
    def draw_stage(self, requests: Sequence[HunyuanDiTRequest], texts: Texts, monitor: Monitor) -> Tensor:
        wanted = rows_of(self.texts_of(request) for request in requests)
        distinct = sorted(set(wanted))
        features = TextFeatures.cat([texts[text] for text in distinct])
        rows = [distinct.index(text) for text in wanted]
        seen = self.pictures.see(requests[0], squashed=True)
        networks: list[nn.Module] = [self.denoiser]
        networks += [control.network for control in self.controlnets.controls(requests[0])]
        networks += [] if seen is None else [seen.adapter]
        return finite(lambda: self._denoise(requests, features, rows, seen, monitor), networks, REMEDY)

    def _denoise(
        self,
        requests: Sequence[HunyuanDiTRequest],
        features: TextFeatures,
        rows: list[int],
        seen: SeenPictures[HunyuanDiTIPAdapter] | None,
        monitor: Monitor,
    ) -> tuple[Tensor, str | None]:
        """Return clean latents (B, C, h, w) and where they first were not finite, if so.

        Args:
            requests: what to draw.
            features: of every distinct text.
            rows: for every row the denoiser is run on, its text among them.
            seen: pictures as prompts, if any.
            monitor: who is told about progress.
        """
        request, config = requests[0], self.denoiser.config
        assert request.height is not None
        assert request.width is not None
        height, width = (side // self.vae.config.downscale for side in (request.height, request.width))
        seeds = [each.seed for each in requests if each.seed is not None]
        noise = Noise(seeds, (config.in_channels, height, width), self.device)
        run = self._run(request, noise.draw)
        pictures = [each.input_image for each in requests if each.input_image is not None]
        if not pictures:
            latents = noise.draw()
        else:
            size = (request.height, request.width)
            clean = self.codec.encode(pictures, *size, noise=noise, tiles=Tiles.of(request))
            latents = run.add_noise(clean, noise.draw())

        patches = (height // config.patch_size, width // config.patch_size)
        end_point = self.conventions.rope_end_point
        rope = build_rope(*patches, config.head_dim, end_point=end_point, device=self.device)
        features = features.to(self.device)
        plan = with_rows(
            self.denoiser.plan(run.timesteps, self._condition(self.denoiser, features, request), rope), rows
        )
        steering = self._steering(run.timesteps, features, rope, requests, rows, noise)
        if seen is not None:
            negative = len(requests) if self._guided(request) else 0
            index = [0] * negative + [1] * (len(rows) - negative)
            steering = replace(steering, pictures=attention_to(seen, self.denoiser, index))
        predict = predictor(self.denoiser, plan, self._guidance(request, height, width), len(requests), steering)
        on_step = monitor.on_step(run.timesteps, LatentPreview(self.vae, self.latent_scale))
        latents, good = denoise(predict, latents, run, progress=monitor.progress, on_step=on_step)
        return latents, first_bad(good)

    def _steering(
        self,
        timesteps: Sequence[float],
        features: TextFeatures,
        rope: Rope,
        requests: Sequence[HunyuanDiTRequest],
        rows: list[int],
        noise: Noise,
    ) -> Steering:
        """Return the tiles of the denoiser and what the control networks do in them; see ``_denoise``."""
        request = requests[0]
        guided = self._guided(request)
        if self.conventions.draws_hints_apart:
            noise = noise.again(copies=2 if guided else 1)
        parts = []
        for control in self.controlnets.controls(request):
            if control.acts_within(len(timesteps)):
                hint = hint_latents(control, self.codec, request, noise, len(rows) // len(requests))
                condition = self._condition(control.network, features, request)
                plan = with_rows(control.network.plan(timesteps, condition, rope, hint), rows)
                parts.append((control, plan))
        tile = TokenTiling(tile=request.tile_size, stride=request.tile_stride) if request.tiled else None
        return Steering(tuple(parts), tile)

    def _guided(self, request: HunyuanDiTRequest) -> bool:
        """Whether the denoiser is run on negative prompts too."""
        assert request.cfg_scale is not None
        return self.conventions.guides(request.cfg_scale)

    def _guidance(self, request: HunyuanDiTRequest, height: int, width: int) -> Guidance:
        scales = request.mask_scales or (1.0,) * len(request.masks)
        regions = [
            Region(region_mask(mask, height, width).to(self.device), scale)
            for mask, scale in zip(request.masks, scales, strict=True)
        ]
        return Guidance(
            scale=request.cfg_scale if self._guided(request) else None,
            rescale=request.guidance_rescale,
            perturbed_scale=request.perturbed_attention_scale,
            regions=regions,
        )

    def _condition(self, network: Backbone, features: TextFeatures, request: HunyuanDiTRequest) -> Condition:
        """Return what a network, the denoiser or a control network, makes of the texts and the image's size."""
        assert request.height is not None
        assert request.width is not None
        if not network.config.size_conditioning:
            return network.encode_condition(features)
        tile = request.tile_size if request.tiled else None
        numbers = self.conventions.image_meta_size(request.height, request.width, tile)
        sizes = torch.tensor([numbers] * len(features.clip), dtype=torch.float32, device=self.device)
        return network.encode_condition(features, sizes)
