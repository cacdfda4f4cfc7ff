"""The autoencoder of Stable Diffusion, SDXL and HunyuanDiT (arXiv 2112.10752).

The autoencoders of SD and SDXL share every key and shape; the scale of their latents belongs to the pipeline.
"""

from __future__ import annotations

import torch

from diffsynth.core.family import ModelFamily
from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.autoencoder_kl.weights import LAYOUTS

FAMILY = ModelFamily(
    name="autoencoder_kl",
    build=AutoencoderKL,
    tiny=AutoencoderKLConfig.tiny,
    layouts=LAYOUTS,
    aliases=("sdxl_vae", "sdxl_vae_encoder", "sdxl_vae_decoder", "vae"),
    dtype=torch.float32,
)
