"""The networks of a Diffusers folder: whose class each is, and the dtype of its file. Imports nothing, to be timed."""

from __future__ import annotations

# Component → library, class, dtype as published
COMPONENTS = {
    "text_encoder": ("transformers", "BertModel", "float32"),
    "text_encoder_2": ("transformers", "T5EncoderModel", "float16"),
    "transformer": ("diffusers", "HunyuanDiT2DModel", "float16"),
    "vae": ("diffusers", "AutoencoderKL", "float32"),
}
