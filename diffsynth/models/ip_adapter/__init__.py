"""IP-Adapter of Stable Diffusion 1.5 and SDXL (arXiv 2308.06721): pictures as prompts, in its plain version."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.ip_adapter.config import IPAdapterConfig
from diffsynth.models.ip_adapter.model import IPAdapter
from diffsynth.models.ip_adapter.weights import LAYOUTS, RELATIVES

FAMILY = ModelFamily(
    name="ip_adapter",
    build=IPAdapter,
    tiny=IPAdapterConfig.tiny,
    layouts=LAYOUTS,
    aliases=("sd_ipadapter", "sdxl_ipadapter"),
    version=lambda config: config.version,
    relatives=RELATIVES,
)
