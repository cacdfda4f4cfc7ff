"""The networks that a Stable Diffusion pipeline is made of."""

from __future__ import annotations

from diffsynth.manager import ModelManager
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.clip.model import ClipText
from diffsynth.models.unet.model import UNet
from diffsynth.pipelines.unet_parts import Entry, Need, check_loaded, fitting_vae, is_kolors, pick, refuse_kolors

WHOLE = "in whole files such as v1-5-pruned-emaonly.safetensors (StableDiffusion_v15 of the catalogue)"
DENOISER = f"unet/diffusion_pytorch_model.safetensors of a Diffusers folder, and {WHOLE}"
TEXT = f"text_encoder/model.safetensors of a Diffusers folder, and {WHOLE}"
VAE = f"vae/diffusion_pytorch_model.safetensors of a Diffusers folder, and {WHOLE}"
NEEDS = (
    Need("a denoiser without pooled prompts", UNet, lambda entry: _fits(entry), DENOISER),
    Need("a text encoder", ClipText, lambda entry: True, TEXT),
    Need("an autoencoder", AutoencoderKL, lambda entry: True, VAE),
)


def find_parts(
    manager: ModelManager, *, denoiser: str | int | None, clip: str | int | None, vae: str | int | None
) -> tuple[Entry, Entry, Entry]:
    """Return the denoiser, the text encoder and the autoencoder; see ``pick``."""
    refuse_kolors(manager, denoiser)
    check_loaded(manager, "Stable Diffusion", NEEDS)
    unet = pick(manager, UNet, denoiser, fits=_fits, wanted="a denoiser of Stable Diffusion 1.5", published=DENOISER)
    size = unet.config.context_size
    text = pick(
        manager,
        ClipText,
        clip,
        fits=lambda entry: bool(entry.config.hidden_size == size),
        wanted=f"a text encoder of width {size}",
        published=TEXT,
        near=unet,
    )
    autoencoder = pick(
        manager, AutoencoderKL, vae, fits=fitting_vae(unet), wanted="a fitting autoencoder", published=VAE, near=unet
    )
    return unet, text, autoencoder


def _fits(entry: Entry) -> bool:
    return not entry.config.label_size and not is_kolors(entry.config)
