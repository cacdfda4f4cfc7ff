"""The UNets of Stable Diffusion 1.5, SDXL, its refiner, and networks of the same structure (arXiv 2112.10752).

Their control networks (arXiv 2302.05543) are copies of a UNet's first half, so they live in the same folder.
"""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.unet import control_weights
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.control import ControlNet
from diffsynth.models.unet.control_config import ControlNetConfig
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
CONTROLNET_FAMILY = ModelFamily(
    name="unet_controlnet",
    build=ControlNet,
    tiny=ControlNetConfig.tiny,
    layouts=control_weights.LAYOUTS,
    aliases=("sd_controlnet", "sdxl_controlnet", "sdxl_controlnet_union"),
    version=lambda config: config.version,
    copies=FAMILY.name,
)
FAMILIES = (FAMILY, CONTROLNET_FAMILY)
