"""The HunyuanDiT denoiser, versions 1.0 to 1.2 and their distilled weights (arXiv 2405.08748)."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.weights import LAYOUTS

FAMILY = ModelFamily(
    name="hunyuan_dit",
    build=HunyuanDiT,
    tiny=HunyuanDiTConfig.tiny,
    layouts=LAYOUTS,
    version=lambda config: "v1.0/v1.1" if config.size_conditioning else "v1.2",
)
