"""The networks that a Stable Diffusion pipeline is made of."""

from __future__ import annotations

from diffsynth.manager import ModelManager
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.clip.model import ClipText
from diffsynth.models.unet.model import UNet
from diffsynth.pipelines.unet_parts import Entry, check_loaded, fitting_vae, pick

NEEDS = {
    "a denoiser without pooled prompts": (UNet, lambda entry: _fits(entry)),
    "a text encoder": (ClipText, lambda entry: True),
    "an autoencoder": (AutoencoderKL, lambda entry: True),
}


def find_parts(
    manager: ModelManager, *, denoiser: str | int | None, clip: str | int | None, vae: str | int | None
) -> tuple[Entry, Entry, Entry]:
    """Return the denoiser, the text encoder and the autoencoder; see ``pick``."""
    check_loaded(manager, "Stable Diffusion", NEEDS)
    unet = pick(manager, UNet, denoiser, fits=_fits, wanted="a denoiser of Stable Diffusion 1.5")
    size = unet.config.context_size
    text = pick(
        manager,
        ClipText,
        clip,
        fits=lambda entry: bool(entry.config.hidden_size == size),
        wanted=f"a text encoder of width {size}",
        near=unet,
    )
    autoencoder = pick(manager, AutoencoderKL, vae, fits=fitting_vae(unet), wanted="a fitting autoencoder", near=unet)
    return unet, text, autoencoder


def _fits(entry: Entry) -> bool:
    return not entry.config.label_size and not entry.config.text_size
