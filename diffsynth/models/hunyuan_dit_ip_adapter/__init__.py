"""The IP-Adapter of HunyuanDiT: pictures as prompts of its denoiser."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.hunyuan_dit_ip_adapter.config import HunyuanDiTIPAdapterConfig
from diffsynth.models.hunyuan_dit_ip_adapter.model import HunyuanDiTIPAdapter
from diffsynth.models.hunyuan_dit_ip_adapter.weights import LAYOUTS

FAMILY = ModelFamily(
    name="hunyuan_dit_ip_adapter",
    build=HunyuanDiTIPAdapter,
    tiny=HunyuanDiTIPAdapterConfig.tiny,
    layouts=LAYOUTS,
)
