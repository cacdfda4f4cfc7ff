"""Diffusers' and transformers' own networks at our sizes, and the published names in their spelling.

The names are written out here once more, apart from the tables of ``diffsynth``, so that neither can hide a mistake
of the other.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.bert_clip.config import BertClipConfig
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.mt5.config import MT5Config
from diffsynth.types import StateDict

TRANSFORMER_NAMES = (
    (r"^mlp_t5\.0\.", "text_embedder.linear_1."),
    (r"^mlp_t5\.2\.", "text_embedder.linear_2."),
    (r"^pooler\.", "time_extra_emb.pooler."),
    (r"^x_embedder\.", "pos_embed."),
    (r"^t_embedder\.mlp\.0\.", "time_extra_emb.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_extra_emb.timestep_embedder.linear_2."),
    (r"^extra_embedder\.0\.", "time_extra_emb.extra_embedder.linear_1."),
    (r"^extra_embedder\.2\.", "time_extra_emb.extra_embedder.linear_2."),
    (r"^style_embedder\.", "time_extra_emb.style_embedder."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    (r"^(blocks\.\d+)\.norm1\.", r"\1.norm1.norm."),
    (r"^(blocks\.\d+)\.default_modulation\.1\.", r"\1.norm1.linear."),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.NORM3."),  # they count in the order of use: 2 and 3 change places
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"\.NORM3\.", ".norm3."),
    (r"^(blocks\.\d+\.attn[12])\.([qk])_norm\.", r"\1.norm_\2."),
    (r"^(blocks\.\d+\.attn[12])\.out_proj\.", r"\1.to_out.0."),
    (r"^(blocks\.\d+\.attn2)\.q_proj\.", r"\1.to_q."),
    (r"^(blocks\.\d+)\.mlp\.fc1\.", r"\1.ff.net.0.proj."),
    (r"^(blocks\.\d+)\.mlp\.fc2\.", r"\1.ff.net.2."),
)


def transformer_state(published: StateDict, dtype: torch.dtype) -> StateDict:
    """Return the published weights of the denoiser under the names of Diffusers, in another dtype."""
    found: StateDict = {}
    for key, values in published.items():
        tensor = values.to(dtype)
        if fused := re.match(r"^(blocks\.\d+\.attn[12])\.(?:Wqkv|kv_proj)\.(weight|bias)$", key):
            names = ("to_q", "to_k", "to_v") if "Wqkv" in key else ("to_k", "to_v")
            parts = torch.chunk(tensor, len(names))
            found |= {f"{fused[1]}.{name}.{fused[2]}": part for name, part in zip(names, parts, strict=True)}
            continue
        if "adaLN_modulation" in key:  # theirs has the scale first, then the shift
            tensor = torch.cat(torch.chunk(tensor, 2)[::-1])
        for pattern, replacement in TRANSFORMER_NAMES:
            key = re.sub(pattern, replacement, key)
        found[key] = tensor
    return found


def build_transformer(config: HunyuanDiTConfig) -> nn.Module:
    """Build Diffusers' denoiser."""
    from diffusers import HunyuanDiT2DModel

    model: nn.Module = HunyuanDiT2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        patch_size=config.patch_size,
        sample_size=128,
        hidden_size=config.hidden_size,
        num_layers=config.depth,
        mlp_ratio=(config.mlp_size + 0.5) / config.hidden_size,
        learn_sigma=True,
        cross_attention_dim=config.text_dim,
        cross_attention_dim_t5=config.t5_dim,
        pooled_projection_dim=config.text_dim,
        text_len=config.text_len,
        text_len_t5=config.t5_len,
        use_style_cond_and_image_meta_size=config.size_conditioning,
    )
    return model.eval().requires_grad_(requires_grad=False)


def build_vae(config: AutoencoderKLConfig) -> Any:
    """Build Diffusers' autoencoder."""
    from diffusers import AutoencoderKL

    levels = len(config.channels)
    model = AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=0.13025,
    )
    return model.eval().requires_grad_(requires_grad=False)


def build_text_encoder(config: BertClipConfig) -> Any:
    """Build transformers' BERT, without the pooler that no published file has."""
    from transformers import BertConfig, BertModel

    settings = BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_size,
        max_position_embeddings=config.max_positions,
        type_vocab_size=config.token_types,
    )
    return BertModel(settings, add_pooling_layer=False).eval().requires_grad_(requires_grad=False)


def build_t5(config: MT5Config) -> Any:
    """Build transformers' T5 encoder."""
    from transformers import T5Config, T5EncoderModel

    settings = T5Config(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(settings).eval().requires_grad_(requires_grad=False)


def rotary_table(height: int, width: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return Diffusers' rotary positions of a token grid; the same as ours where it is square."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    region = get_resize_crop_region_for_grid((height, width), 32)
    cos, sin = get_2d_rotary_pos_embed(head_dim, region, (height, width), device=torch.device("cpu"), output_type="pt")
    return cos, sin
