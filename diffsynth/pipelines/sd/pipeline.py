"""Stable Diffusion 1.5: prompts to images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import ClassVar

from typing_extensions import Self, override

from diffsynth.manager import ModelManager
from diffsynth.models.unet.control import ControlNet
from diffsynth.models.unet.model import UNet
from diffsynth.pipelines.clip_prompt import ClipReader, tokenizer_for
from diffsynth.pipelines.sd.conventions import CONVENTIONS
from diffsynth.pipelines.sd.parts import find_parts
from diffsynth.pipelines.sd.request import SDRequest
from diffsynth.pipelines.unet import Features, Text, UNetImagePipeline
from diffsynth.pipelines.unet_control import UNetControlNets, misfit
from diffsynth.pipelines.unet_conventions import choose
from diffsynth.pipelines.unet_parts import prediction_of, zero_snr_of
from diffsynth.pipelines.unet_pictures import choose_pictures
from diffsynth.pipelines.unet_predict import Row

LATENT_SCALE = 0.18215  # no file tells it; that of SDXL's autoencoder, which has the same structure, differs


@dataclass(kw_only=True, eq=False)
class SDImagePipeline(UNetImagePipeline[SDRequest]):
    """Draws with Stable Diffusion 1.5 or its inpainting variant; make it with ``from_model_manager``."""

    request_type: ClassVar[type[SDRequest]] = SDRequest

    latent_scale: float = LATENT_SCALE

    @classmethod
    def from_model_manager(
        cls,
        manager: ModelManager,
        conventions: str = "diffsynth",
        *,
        denoiser: str | int | None = None,
        clip: str | int | None = None,
        vae: str | int | None = None,
        prediction: str | None = None,
        zero_terminal_snr: bool | None = None,
        clip_tokenizer: str | PathLike[str] | None = None,
        controlnets: Sequence[str | int] | None = None,
        ip_adapter: str | int | None = None,
        image_encoder: str | int | None = None,
    ) -> Self:
        """Wire loaded networks into a pipeline.

        Args:
            manager: has loaded the denoiser, the text encoder and the autoencoder.
            conventions: ``diffsynth`` (what DiffSynth 1.x did) or ``diffusers``.
            denoiser: which one, if several fit: the name of its file or folder, or its index.
            clip: which text encoder, likewise.
            vae: which autoencoder, likewise; by default that of the denoiser's release.
            prediction: "epsilon" or "velocity"; by default as the file's marks say.
            zero_terminal_snr: whether to start from a schedule's end in pure noise; by default as the marks say.
            clip_tokenizer: vocab.json or its folder; by default looked for near the text encoder's file.
            controlnets: which control networks, likewise, in the order of the settings that are meant for them; by
                default all loaded ones that fit.
            ip_adapter: which IP-Adapter takes pictures as prompts; by default the loaded one that fits, if any.
            image_encoder: which image encoder it reads with, likewise.

        Raises:
            ModelNotLoaded: a network is missing.
            AmbiguousModel: several networks of a kind fit and none is named.
            TokenizerNotFound: the vocabulary is nowhere; the message lists the places.
            InvalidRequest: unknown conventions, or networks that do not fit each other.
        """
        chosen = choose(CONVENTIONS, conventions)
        unet, text, autoencoder = find_parts(manager, denoiser=denoiser, clip=clip, vae=vae)
        tokenizer = tokenizer_for(text, clip_tokenizer)
        predicts = prediction_of([unet], prediction)
        nets = UNetControlNets.choose(manager, ControlNet, controlnets, misfit(unet, autoencoder))
        pictures = choose_pictures(manager, unet, adapter=ip_adapter, encoder=image_encoder)
        return cls(
            denoiser=unet.module,
            readers=(ClipReader(name="the text encoder", encoder=text.module, tokenizer=tokenizer),),
            vae=autoencoder.module,
            conventions=chosen,
            prediction=predicts,
            zero_terminal_snr=zero_snr_of(unet, zero_terminal_snr, predicts),
            controlnets=nets,
            pictures=pictures,
            loaded=(unet, text, autoencoder, *dict.fromkeys(nets.loaded), *pictures.loaded),
        )

    @override
    def clip_skips(self, request: SDRequest, *, negative: bool) -> tuple[int, ...]:
        return (1 if negative else request.clip_skip,)

    @override
    def row(self, unet: UNet, text: Text, features: Features, request: SDRequest) -> Row:
        return Row(features[0].hidden)
