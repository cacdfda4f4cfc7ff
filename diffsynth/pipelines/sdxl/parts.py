"""The networks that an SDXL pipeline is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffsynth.errors import InvalidRequest
from diffsynth.manager import ModelManager
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.clip.model import ClipText
from diffsynth.models.unet.model import UNet
from diffsynth.pipelines.sdxl.request import REFINER_NUMBERS
from diffsynth.pipelines.unet_parts import Entry, Need, check_loaded, fitting_vae, is_kolors, pick, refuse_kolors

BASE_NUMBERS = 6
WHOLE = "in whole files such as sd_xl_base_1.0.safetensors (StableDiffusionXL_v1 of the catalogue)"
DENOISER = f"unet/diffusion_pytorch_model.safetensors of a Diffusers folder, and {WHOLE}"
TEXT = f"text_encoder/model.safetensors of a Diffusers folder, and {WHOLE}"
TEXT_2 = f"text_encoder_2/model.safetensors of a Diffusers folder, and {WHOLE}"
VAE = f"vae/diffusion_pytorch_model.safetensors of a Diffusers folder, and {WHOLE}"
REFINER = "sd_xl_refiner_1.0.safetensors, and unet/ of the refiner's Diffusers folder"
NEEDS = (
    Need("a denoiser with pooled prompts", UNet, lambda entry: _is_xl(entry), DENOISER),
    Need("a text encoder with a projection", ClipText, lambda entry: _has_projection(entry), TEXT_2),
    Need("an autoencoder", AutoencoderKL, lambda entry: True, VAE),
)


def numbers_of(config: Any, pooled_size: int) -> int:
    """Return how many numbers a UNet is told beside a pooled prompt of some size, or 0 if that does not fit."""
    left = config.label_size - pooled_size
    return left // config.number_size if left > 0 and left % config.number_size == 0 else 0


@dataclass(frozen=True)
class Parts:
    """The networks: ``clip`` is None for a refiner that draws alone, ``refiner`` for a base without one."""

    denoiser: Entry
    clip: Entry | None
    clip_2: Entry
    vae: Entry
    refiner: Entry | None

    @property
    def all(self) -> tuple[Entry, ...]:
        """Those that are there, the denoiser first."""
        each = (self.denoiser, self.clip, self.clip_2, self.vae, self.refiner)
        return tuple(entry for entry in each if entry is not None)


def find_parts(
    manager: ModelManager,
    *,
    denoiser: str | int | None,
    clip: str | int | None,
    clip_2: str | int | None,
    vae: str | int | None,
    refiner: str | int | bool | None,
) -> Parts:
    """Return the networks; see ``pick``. Beside a base network, a refiner is taken only if it is asked for.

    Raises:
        ModelNotLoaded: a network is missing.
        AmbiguousModel: several fit.
        InvalidRequest: networks do not fit each other.
    """
    refuse_kolors(manager, denoiser)
    check_loaded(manager, "SDXL", NEEDS)
    unet = _denoiser(manager, denoiser)
    text_2 = pick(
        manager,
        ClipText,
        clip_2,
        fits=lambda entry: _has_projection(entry) and bool(_numbers(unet, entry)),
        wanted="a text encoder with a projection that fits the denoiser",
        published=TEXT_2,
        near=unet,
    )
    autoencoder = pick(
        manager, AutoencoderKL, vae, fits=fitting_vae(unet), wanted="a fitting autoencoder", published=VAE, near=unet
    )
    left = unet.config.context_size - text_2.config.hidden_size
    if left < 0:
        raise InvalidRequest(f"{text_2.label} does not fit {unet.label}: its features are too wide.")
    if left == 0:
        if refiner:
            raise InvalidRequest(f"{unet.label} is a refiner itself; name the base network with denoiser=.")
        if clip is not None:
            raise InvalidRequest(
                f"{unet.label} is a refiner, which reads the second text encoder only; leave out clip=."
            )
        return Parts(unet, None, text_2, autoencoder, None)
    text = pick(
        manager,
        ClipText,
        clip,
        fits=lambda entry: bool(entry.config.hidden_size == left and not entry.config.projection_size),
        wanted=f"a text encoder of width {left}",
        published=TEXT,
        near=unet,
    )
    second = None
    if refiner is not None and refiner is not False:
        second = pick(
            manager,
            UNet,
            None if refiner is True else refiner,
            fits=lambda entry: _is_refiner_for(entry, text_2),
            wanted="a refiner that fits the text encoder",
            published=REFINER,
        )
    return Parts(unet, text, text_2, autoencoder, second)


def _denoiser(manager: ModelManager, variant: str | int | None) -> Entry:
    """Return the denoiser: a base network if there is one, else a refiner."""
    encoders = [entry for entry in manager if isinstance(entry.module, ClipText) and _has_projection(entry)]

    def is_base(entry: Entry) -> bool:
        return _is_xl(entry) and not any(_is_refiner_for(entry, text) for text in encoders)

    base = any(isinstance(entry.module, UNet) and is_base(entry) for entry in manager)
    fits = is_base if base and variant is None else _is_xl
    return pick(manager, UNet, variant, fits=fits, wanted="a denoiser of SDXL", published=DENOISER)


def _is_xl(entry: Entry) -> bool:
    return bool(entry.config.label_size) and not is_kolors(entry.config)


def _has_projection(entry: Entry) -> bool:
    return bool(entry.config.projection_size)


def _numbers(unet: Entry, text: Entry) -> int:
    count = numbers_of(unet.config, text.config.projection_size)
    return count if count in (BASE_NUMBERS, REFINER_NUMBERS) else 0


def _is_refiner_for(unet: Entry, text: Entry) -> bool:
    same = unet.config.context_size == text.config.hidden_size
    return bool(same and _numbers(unet, text) == REFINER_NUMBERS)
