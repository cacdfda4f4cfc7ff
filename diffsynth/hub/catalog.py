"""The models that can be asked for by name: one line per file, relative to the folder of downloaded models."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# In the order that load_models wants them; tokenizers are found by the text encoders and are not loaded themselves.
CATALOG: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "HunyuanDiT": (
            "HunyuanDiT/t2i/clip_text_encoder/pytorch_model.bin",
            "HunyuanDiT/t2i/mt5/pytorch_model.bin",
            "HunyuanDiT/t2i/model/pytorch_model_ema.pt",
            "HunyuanDiT/t2i/sdxl-vae-fp16-fix/diffusion_pytorch_model.bin",
        ),
    }
)

TOKENIZERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"HunyuanDiT": ("HunyuanDiT/t2i/tokenizer/vocab.txt", "HunyuanDiT/t2i/mt5/spiece.model")}
)

REPOSITORIES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"HunyuanDiT": {"ModelScope": "modelscope/HunyuanDiT", "HuggingFace": "Tencent-Hunyuan/HunyuanDiT"}}
)
