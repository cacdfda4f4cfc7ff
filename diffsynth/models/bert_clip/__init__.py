"""The bilingual CLIP of HunyuanDiT: a BERT-large text tower for Chinese and English."""

from __future__ import annotations

from diffsynth.core.family import ModelFamily
from diffsynth.models.bert_clip.config import BertClipConfig
from diffsynth.models.bert_clip.model import BertClip
from diffsynth.models.bert_clip.weights import LAYOUTS

FAMILY = ModelFamily(
    name="bert_clip",
    build=BertClip,
    tiny=BertClipConfig.tiny,
    layouts=LAYOUTS,
    aliases=("clip_text_encoder", "hunyuan_dit_clip_text_encoder"),
)
