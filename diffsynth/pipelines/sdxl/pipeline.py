"""SDXL, base, turbo and refiner: prompts to images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self, override

from diffsynth.manager import ModelManager
from diffsynth.models.unet.control import ControlNet
from diffsynth.models.unet.model import UNet
from diffsynth.pipelines.clip_prompt import BANG, ClipReader, tokenizer_for
from diffsynth.pipelines.remarks import remark_idle
from diffsynth.pipelines.sdxl.conventions import CONVENTIONS
from diffsynth.pipelines.sdxl.parts import find_parts, numbers_of
from diffsynth.pipelines.sdxl.request import SDXLRequest
from diffsynth.pipelines.unet import Features, Text, UNetImagePipeline
from diffsynth.pipelines.unet_control import UNetControlNets, misfit
from diffsynth.pipelines.unet_conventions import choose
from diffsynth.pipelines.unet_parts import prediction_of, zero_snr_of
from diffsynth.pipelines.unet_pictures import choose_pictures
from diffsynth.pipelines.unet_predict import Row
from diffsynth.schedulers.betas import TRAIN_TIMESTEPS

logger = logging.getLogger(__name__)

LATENT_SCALE = 0.13025  # no file tells it
TARGETS = ("target_size", "negative_target_size")
SCORES = ("aesthetic_score", "negative_aesthetic_score")
NEGATIVE = ("negative_original_size", "negative_crop", "negative_target_size", "negative_aesthetic_score")


@dataclass(kw_only=True, eq=False)
class SDXLImagePipeline(UNetImagePipeline[SDXLRequest]):
    """Draws with SDXL (arXiv 2307.01952); make it with ``from_model_manager``.

    Args:
        refiner: takes over from the denoiser at ``refiner_start`` of the schedule; None for none.
    """

    request_type: ClassVar[type[SDXLRequest]] = SDXLRequest

    latent_scale: float = LATENT_SCALE
    refiner: UNet | None = None

    @classmethod
    def from_model_manager(
        cls,
        manager: ModelManager,
        conventions: str = "diffsynth",
        *,
        denoiser: str | int | None = None,
        clip: str | int | None = None,
        clip_2: str | int | None = None,
        vae: str | int | None = None,
        refiner: str | int | bool | None = None,
        prediction: str | None = None,
        zero_terminal_snr: bool | None = None,
        clip_tokenizer: str | PathLike[str] | None = None,
        controlnets: Sequence[str | int] | None = None,
        ip_adapter: str | int | None = None,
        image_encoder: str | int | None = None,
    ) -> Self:
        """Wire loaded networks into a pipeline.

        Args:
            manager: has loaded the denoiser, both text encoders and the autoencoder. A refiner alone, which paints
                over an input image, needs the second text encoder only.
            conventions: ``diffsynth`` (what DiffSynth 1.x did), ``diffusers``, ``sgm`` (Stability's own program) or
                ``turbo`` (one step without guidance, for SDXL turbo).
            denoiser: which one, if several fit: the name of its file or folder, its version or its index.
            clip: which first text encoder, likewise.
            clip_2: which second text encoder, the one with a projection, likewise.
            vae: which autoencoder, likewise; by default that of the denoiser's release.
            refiner: which network takes over at ``refiner_start`` of the schedule; True for the one that fits.
            prediction: "epsilon" or "velocity", of a refiner too; by default as the files' marks say.
            zero_terminal_snr: whether to start from a schedule's end in pure noise; by default as the marks say.
            clip_tokenizer: vocab.json or its folder; by default looked for near the text encoders' files.
            controlnets: which control networks, likewise, in the order of the settings that are meant for them; by
                default all loaded ones that fit. A union network may be named once for each picture it is shown.
            ip_adapter: which IP-Adapter takes pictures as prompts; by default the loaded one that fits, if any.
            image_encoder: which image encoder it reads with, likewise.

        Raises:
            ModelNotLoaded: a network is missing.
            AmbiguousModel: several networks of a kind fit and none is named.
            TokenizerNotFound: the vocabulary is nowhere; the message lists the places.
            InvalidRequest: unknown conventions, or networks that do not fit each other.
        """
        chosen = choose(CONVENTIONS, conventions)
        parts = find_parts(manager, denoiser=denoiser, clip=clip, clip_2=clip_2, vae=vae, refiner=refiner)
        readers: tuple[ClipReader, ...] = (
            ClipReader(
                name="the second text encoder",
                encoder=parts.clip_2.module,
                tokenizer=tokenizer_for(parts.clip_2, clip_tokenizer, padding=BANG),
                final_norm=False,
            ),
        )
        if parts.clip is not None:
            first = ClipReader(
                name="the first text encoder",
                encoder=parts.clip.module,
                tokenizer=tokenizer_for(parts.clip, clip_tokenizer),
                final_norm=False,
                first_layer=2,
            )
            readers = (first, *readers)
        denoisers = [entry for entry in (parts.denoiser, parts.refiner) if entry is not None]
        predicts = prediction_of(denoisers, prediction)
        nets = UNetControlNets.choose(manager, ControlNet, controlnets, misfit(parts.denoiser, parts.vae))
        pictures = choose_pictures(manager, parts.denoiser, adapter=ip_adapter, encoder=image_encoder)
        return cls(
            denoiser=parts.denoiser.module,
            readers=readers,
            vae=parts.vae.module,
            conventions=chosen,
            prediction=predicts,
            zero_terminal_snr=zero_snr_of(parts.denoiser, zero_terminal_snr, predicts),
            refiner=None if parts.refiner is None else parts.refiner.module,
            controlnets=nets,
            pictures=pictures,
            loaded=(*parts.all, *dict.fromkeys(nets.loaded), *pictures.loaded),
        )

    @override
    def _exchanged(self, modules: Mapping[nn.Module, Any]) -> dict[str, Any]:
        return {"refiner": None if self.refiner is None else modules[self.refiner]}

    @override
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "refined": self.refiner is not None}

    @override
    def remark(self, request: SDXLRequest, complete: SDXLRequest) -> None:
        super().remark(request, complete)
        refines = len(self.readers) == 1
        if refines:
            remark_idle(request, (*TARGETS, "clip_skip"), "a refiner that draws alone is not told of it")
        if self.refiner is None:
            remark_idle(request, ("refiner_start",), "the pipeline has no refiner beside the base network")
            if not refines:
                remark_idle(request, SCORES, "only a refiner is told of it")
        if complete.controlnet_images and len(self.denoisers(complete)) > 1:
            logger.warning(
                "the refiner, which takes over at refiner_start %s, is not steered by control networks",
                complete.refiner_start,
            )
        assert complete.cfg_scale is not None
        if not self.conventions.guides(complete.cfg_scale):
            remark_idle(request, NEGATIVE, f"cfg_scale {complete.cfg_scale} turns guidance off")

    @override
    def denoisers(self, request: SDXLRequest) -> tuple[tuple[UNet, float], ...]:
        first = super().denoisers(request)
        if self.refiner is None or request.refiner_start == 1:
            return first
        cut = round(TRAIN_TIMESTEPS * (1 - request.refiner_start))
        return (*first, (self.refiner, float(cut)))

    @override
    def clip_skips(self, request: SDXLRequest, *, negative: bool) -> tuple[int, ...]:
        skips = (1, 2) if negative else (request.clip_skip, request.clip_skip_2)
        return skips[-len(self.readers) :]

    @override
    def row(self, unet: UNet, text: Text, features: Features, request: SDXLRequest) -> Row:
        second = features[-1]
        assert second.pooled is not None
        refines = unet.config.context_size == second.hidden.shape[-1]
        context = second.hidden if refines else torch.cat([each.hidden for each in features], dim=-1)
        pooled = second.pooled
        if text.prompt is None and not refines:  # a refiner was trained to read the empty text
            context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
        count = numbers_of(unet.config, pooled.shape[-1])
        return Row(context, pooled, request.numbers(count, negative=text.negative))
