"""The UNets of Stable Diffusion 1.5, SDXL, its refiner, and networks of the same structure (arXiv 2112.10752)."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.model import UNet
from diffsynth.models.unet.weights import LAYOUTS

FAMILY = ModelFamily(
    name="unet",
    build=UNet,
    tiny=UNetConfig.tiny,
    layouts=LAYOUTS,
    aliases=("sd_unet", "sdxl_unet"),
    version=lambda config: config.version,
)
