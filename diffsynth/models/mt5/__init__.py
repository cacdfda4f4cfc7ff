"""The encoder of mT5 (arXiv 2010.11934), HunyuanDiT's second text encoder."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.mt5.config import MT5Config
from diffsynth.models.mt5.model import MT5Encoder
from diffsynth.models.mt5.weights import LAYOUTS

FAMILY = ModelFamily(
    name="mt5",
    build=MT5Encoder,
    tiny=MT5Config.tiny,
    layouts=LAYOUTS,
    aliases=("t5_text_encoder", "hunyuan_dit_t5_text_encoder"),
)
