"""How HunyuanDiT's IP-Adapter is recognised and how its names become ours: those of the denoiser it belongs to."""

from __future__ import annotations

from diffsynth.core.convert import Rename, Rules
from diffsynth.core.family import Layout
from diffsynth.core.signature import Match, Signature
from diffsynth.models.hunyuan_dit_ip_adapter.config import HunyuanDiTIPAdapterConfig


def read_config(match: Match) -> HunyuanDiTIPAdapterConfig:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    size = match.sizes
    if size["features"] % size["text"]:
        raise ValueError(f"{size['features']} features do not divide into tokens of {size['text']}")
    if size["keys_values"] % (2 * size["head"]):
        raise ValueError(f"{size['keys_values']} keys and values do not divide into heads of {size['head']}")
    hidden = size["keys_values"] // 2
    return HunyuanDiTIPAdapterConfig(
        embed_size=size["embed"],
        text_dim=size["text"],
        tokens=size["features"] // size["text"],
        hidden_size=hidden,
        depth=match.count("block"),
        num_heads=hidden // size["head"],
    )


SIGNATURE = Signature(
    {
        "ip_adapter_clip_len_trans_block.weight": ("features", "embed"),
        "ip_adapter_img_norm_cond.weight": ("text",),
        "blocks.{block}.attn2.kv_proj_ip_adapter.weight": ("keys_values", "text"),
        "blocks.{block}.attn2.k_norm_ip_adapter.weight": ("head",),
    }
)
RULES: Rules = (
    Rename("ip_adapter_clip_len_trans_block", "proj"),
    Rename("ip_adapter_img_norm_cond", "norm"),
    Rename("blocks.{i}.attn2.kv_proj_ip_adapter", "blocks.{i}.kv"),
    Rename("blocks.{i}.attn2.k_norm_ip_adapter", "blocks.{i}.k_norm"),
)
LAYOUTS = (Layout(name="original", signature=SIGNATURE, read_config=read_config, rules=lambda _: RULES),)
