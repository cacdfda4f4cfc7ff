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
        "HunyuanDiT-Emoji": (
            "HunyuanDiT-Emoji/t2i/clip_text_encoder/pytorch_model.safetensors",
            "HunyuanDiT-Emoji/t2i/mt5/pytorch_model.safetensors",
            "HunyuanDiT-Emoji/t2i/model/pytorch_model_ema.safetensors",
            "HunyuanDiT-Emoji/t2i/sdxl-vae-fp16-fix/diffusion_pytorch_model.safetensors",
        ),
    }
)

TOKENIZERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "HunyuanDiT": ("HunyuanDiT/t2i/tokenizer/vocab.txt", "HunyuanDiT/t2i/mt5/spiece.model"),
        "HunyuanDiT-Emoji": ("HunyuanDiT-Emoji/t2i/tokenizer/vocab.txt", "HunyuanDiT-Emoji/t2i/mt5/spiece.model"),
    }
)

REPOSITORIES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"HunyuanDiT": {"ModelScope": "modelscope/HunyuanDiT", "HuggingFace": "Tencent-Hunyuan/HunyuanDiT"}}
)

# These come with the package, so no hub is asked for them.
BUNDLED = frozenset({"HunyuanDiT-Emoji"})
