"""Stable Diffusion 1.5 and SDXL in training: their networks, and what the UNet is told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import InvalidRequest
from diffsynth.manager import ModelManager
from diffsynth.models import unet
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.unet.model import UNet
from diffsynth.nn.resnet import ResnetBlock
from diffsynth.nn.transformer_2d import TransformerBlock
from diffsynth.pipelines.sd.pipeline import SDImagePipeline
from diffsynth.pipelines.sdxl.parts import BASE_NUMBERS, numbers_of
from diffsynth.pipelines.sdxl.pipeline import SDXLImagePipeline
from diffsynth.pipelines.unet import BETA_END, BETA_START, Text, UNetImagePipeline
from diffsynth.pipelines.unet_predict import Row
from diffsynth.training.buckets import Frame
from diffsynth.training.ensemble import Predict
from diffsynth.training.kinds import UNetJob
from diffsynth.training.networks import digest_of
from diffsynth.training.objective import Objective

logger = logging.getLogger(__name__)

ANY_SIDE = 64  # pixels, where a size is asked for that changes nothing
CONVENTIONS = "diffusers"  # of these only how texts are encoded counts, which is as the networks were trained


@dataclass(frozen=True)
class Release:
    """A family of networks around a UNet.

    Args:
        pipeline: brings the networks together and encodes prompts.
        says_frames: whether the UNet is told where a picture comes from.
    """

    pipeline: type[SDImagePipeline | SDXLImagePipeline]
    says_frames: bool

    def request(self, frame: Frame, height: int, width: int) -> Any:
        """Return what a pipeline is asked for to draw a picture of a frame and a size in pixels."""
        told: dict[str, Any] = {"prompt": "", "height": height, "width": width}
        if self.says_frames:
            told |= {"original_size": (frame.height, frame.width), "crop": (frame.top, frame.left)}
        return self.pipeline.request_type(**told)


SD = Release(SDImagePipeline, says_frames=False)
SDXL = Release(SDXLImagePipeline, says_frames=True)


class UNetEnsemble:
    """A UNet, its text encoders and an autoencoder, as a pipeline brings them together; all of them are frozen.

    Args:
        job: settings.

    Raises:
        CheckpointError: a file cannot be used.
        ModelNotLoaded: a network is missing.
        InvalidRequest: networks do not fit each other, or the denoiser is of a kind that is not trained.
    """

    family = unet.FAMILY
    blocks = (ResnetBlock, TransformerBlock)

    def __init__(self, job: UNetJob) -> None:
        manager = ModelManager(torch.float32, "cpu", file_path_list=job.files, mmap=False)
        unets = [entry for entry in manager if isinstance(entry.module, UNet)]
        self.release = SDXL if any(entry.config.label_size for entry in unets) else SD
        self.pipeline: UNetImagePipeline[Any] = self.release.pipeline.from_model_manager(
            manager, CONVENTIONS, prediction=job.prediction or None, clip_tokenizer=job.clip_tokenizer or None
        )
        _refuse(self.pipeline, self._loaded("denoiser"))
        for module in self.modules.values():
            module.requires_grad_(requires_grad=False).eval()
        self.latent_scale = self.pipeline.latent_scale
        self.objective = Objective(
            "velocity" if self.pipeline.prediction == "velocity" else "epsilon",
            BETA_START,
            BETA_END,
            job.timesteps,
            job.min_snr,
            zero_terminal_snr=self.pipeline.zero_terminal_snr,
        )
        self._kept: dict[str, Row] = {}

    @property
    def denoiser(self) -> UNet:
        """The UNet."""
        return self.pipeline.denoiser

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        return self.pipeline.vae

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All networks by name."""
        encoders = {f"clip_{place}": reader.encoder for place, reader in enumerate(self.pipeline.readers, 1)}
        return {"denoiser": self.denoiser, **encoders, "autoencoder": self.vae}

    @property
    def multiple(self) -> int:
        """What the sides of pictures must be multiples of: the pixels of a latent."""
        return self.vae.config.downscale

    @property
    def source(self) -> str:
        """The denoiser's file."""
        return str(self._loaded("denoiser").path)

    def digest(self, name: str) -> str:
        """Return the hash of the files of a network."""
        return digest_of(self._loaded(name).checkpoint.files)

    def keep(self, texts: Sequence[str], device: torch.device, megabytes: int) -> bool:
        """Keep the features of texts on the CPU if there is room; return whether they are kept."""
        distinct = sorted(set(texts))
        length = max(reader.tokenizer.max_length for reader in self.pipeline.readers)
        if len(distinct) * length * self.denoiser.config.context_size * 4 > megabytes * 10**6:
            logger.info("text features of %d captions need too much memory; encoded as they are used", len(distinct))
            return False
        for text in distinct:
            row = self._encode(text)
            self._kept[text] = replace(row, context=row.context.cpu(), pooled=_moved(row.pooled, torch.device("cpu")))
        return True

    def told(self, texts: Sequence[str], frames: Sequence[Frame], size: tuple[int, int]) -> Predict:
        """Return the UNet as it is told of B captions, for latents of a height and width."""
        device = next(self.denoiser.parameters()).device
        encoded = {text: self._kept.get(text) or self._encode(text) for text in set(texts)}
        rows = [encoded[text] for text in texts]
        context = torch.cat([row.context for row in rows]).to(device)
        if rows[0].pooled is None:
            return lambda noisy, timestep: self.denoiser(noisy, timestep, context)
        pooled = torch.cat([row.pooled for row in rows if row.pooled is not None]).to(device)
        height, width = (side * self.vae.config.downscale for side in size)
        told = [self.release.request(frame, height, width).numbers(BASE_NUMBERS, negative=False) for frame in frames]
        numbers = torch.tensor(told, dtype=torch.float32, device=device)
        return lambda noisy, timestep: self.denoiser(noisy, timestep, context, pooled, numbers)

    @torch.no_grad()
    def _encode(self, text: str) -> Row:
        """Return what the UNet is told of a text; what is too long is cut, with a warning."""
        request = self.release.request(Frame(ANY_SIDE, ANY_SIDE), ANY_SIDE, ANY_SIDE)
        asked = Text(text, False, self.pipeline.clip_skips(request, negative=False), "cut")
        return self.pipeline.row(self.denoiser, asked, self.pipeline.encode(asked), request)

    def _loaded(self, name: str) -> LoadedModel[Any]:
        module = self.modules[name]
        return next(entry for entry in self.pipeline.loaded if entry.module is module)


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _refuse(pipeline: UNetImagePipeline[Any], denoiser: LoadedModel[Any]) -> None:
    """Make sure that a denoiser takes what training gives it.

    Raises:
        InvalidRequest: it does not.
    """
    config = denoiser.config
    if config.in_channels != config.out_channels:
        raise InvalidRequest(
            f"{denoiser.label} is an inpainting network, with {config.in_channels} channels in; "
            "take the network that it was made from."
        )
    if config.label_size and numbers_of(config, pipeline.readers[-1].encoder.config.projection_size) != BASE_NUMBERS:
        raise InvalidRequest(f"{denoiser.label} is a refiner; take the base network of SDXL.")
