"""CLIP's image tower (arXiv 2103.00020): ViT-H and ViT-bigG of IP-Adapters, and that of HunyuanDiT's bilingual CLIP."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.clip_vision.config import ClipVisionConfig
from diffsynth.models.clip_vision.model import ClipVision
from diffsynth.models.clip_vision.weights import LAYOUTS

FAMILY = ModelFamily(
    name="clip_vision",
    build=ClipVision,
    tiny=ClipVisionConfig.tiny,
    layouts=LAYOUTS,
    aliases=("image_encoder", "sd_ipadapter_clip_image_encoder", "sdxl_ipadapter_clip_image_encoder"),
    version=lambda config: config.version,
    on_request=True,
)
