"""CLIP's image encoder: a thin face on that of the transformers library."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from diffsynth.models.clip_vision.config import ClipVisionConfig
from diffsynth.nn.text_encoder import copy_buffers


class ClipVision(nn.Module):
    """Transformer over the patches of a picture, and a projection of its summary (arXiv 2103.00020)."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # slow to import

        self.config = config
        self.vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.mlp_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                projection_dim=config.projection_size,
                hidden_act="quick_gelu" if config.quick_gelu else "gelu",
                layer_norm_eps=1e-5,
                attention_dropout=0.0,
                attn_implementation="sdpa",
            )
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return next(self.parameters()).dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            pixels: (B, 3, image_size, image_size), with CLIP's mean and spread taken out of each channel.

        Returns:
            (B, projection_size), in the weights' dtype; of no certain length.
        """
        embeds: Tensor = self.vision(pixel_values=pixels.to(self.dtype)).image_embeds
        return embeds

    def after_load(self) -> None:
        """Rebuild what no file holds, after weights were assigned to a module made on the meta device.

        The library's position numbers are such: they come from a small encoder that it builds itself, so we need
        not know what they are.
        """
        with torch.device("cpu"):
            twin = ClipVision(
                replace(self.config, hidden_size=self.config.num_heads, num_layers=1, mlp_size=1, projection_size=1)
            )
        copy_buffers(twin, self, next(self.parameters()).device)
