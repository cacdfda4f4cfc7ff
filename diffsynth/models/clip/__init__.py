"""CLIP's text tower (arXiv 2103.00020): CLIP-L of SD 1.5 and SDXL, OpenCLIP bigG of SDXL, and others."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.models.clip.model import ClipText
from diffsynth.models.clip.weights import LAYOUTS

FAMILY = ModelFamily(
    name="clip",
    build=ClipText,
    tiny=ClipTextConfig.tiny,
    layouts=LAYOUTS,
    aliases=("sd_text_encoder", "sdxl_text_encoder", "sdxl_text_encoder_2"),
    version=lambda config: config.version,
)
