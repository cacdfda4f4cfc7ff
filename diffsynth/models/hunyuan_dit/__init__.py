"""HunyuanDiT, versions 1.0 to 1.2 and their distilled weights (arXiv 2405.08748): denoiser and control networks."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.hunyuan_dit import control_weights, weights
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.models.hunyuan_dit.model import HunyuanDiT


def _version(config: HunyuanDiTConfig) -> str:
    return "v1.0/v1.1" if config.size_conditioning else "v1.2"


FAMILY = ModelFamily(
    name="hunyuan_dit",
    build=HunyuanDiT,
    tiny=HunyuanDiTConfig.tiny,
    layouts=weights.LAYOUTS,
    version=_version,
)
CONTROLNET_FAMILY = ModelFamily(
    name="hunyuan_dit_controlnet",
    build=HunyuanDiTControlNet,
    tiny=HunyuanDiTConfig.tiny,
    layouts=control_weights.LAYOUTS,
    version=_version,
    copies="hunyuan_dit",
)
FAMILIES = (FAMILY, CONTROLNET_FAMILY)
