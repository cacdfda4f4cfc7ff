"""How HunyuanDiT's files are recognised, what their shapes tell, and how their names become ours.

Three spellings: that of the published checkpoints, that of Diffusers, and the internal one of DiffSynth 1.x.
Two traps load without a message when forgotten: the published files and Diffusers number the second and third
norm of a block differently, and Diffusers stores the halves of the last modulation in the other order.
"""

from __future__ import annotations

from diffsynth.core.convert import SWAP_HALVES, VECTOR_TO_ROW, Join, Rename, Rules, keep
from diffsynth.core.family import Layout
from diffsynth.core.signature import Dims, Match, Signature
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig


def read_config(match: Match) -> HunyuanDiTConfig:
    """Turn measured sizes of a denoiser into its config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    return config_of(match, depth=match.count("block"))


def config_of(match: Match, *, depth: int) -> HunyuanDiTConfig:
    """Turn measured sizes into a config for a denoiser of so many blocks.

    Raises:
        ValueError: the sizes contradict each other.
    """
    size = match.sizes
    with_sizes = size["text"] + 6 * 256 + size["hidden"]
    if size["condition"] not in (size["text"], with_sizes):
        raise ValueError(f"the condition has {size['condition']} values; {size['text']} or {with_sizes} were expected")
    if size["hidden"] % size["head"]:
        raise ValueError(f"hidden size {size['hidden']} is not a multiple of the head size {size['head']}")
    if size["tokens"] < size["pooled"]:
        raise ValueError(f"the padding has {size['tokens']} tokens, fewer than the {size['pooled']} of the pooler")
    t5_len = size["pooled"] - 1  # the pooler adds one summary token
    return HunyuanDiTConfig(
        in_channels=size["channels"],
        patch_size=size["patch"],
        hidden_size=size["hidden"],
        depth=depth,
        num_heads=size["hidden"] // size["head"],
        mlp_size=size["mlp"],
        text_dim=size["text"],
        text_len=size["tokens"] - t5_len,
        t5_dim=size["t5"],
        t5_len=t5_len,
        extra_size=size["extra"],
        t5_proj_size=size["t5_proj"],
        size_conditioning=size["condition"] == with_sizes,
    )


ORIGINAL_SIZES: dict[str, Dims] = {
    "x_embedder.proj.weight": ("hidden", "channels", "patch", "patch"),
    "text_embedding_padding": ("tokens", "text"),
    "pooler.positional_embedding": ("pooled", "t5"),
    "mlp_t5.0.weight": ("t5_proj", "t5"),
    "extra_embedder.0.weight": ("extra", "condition"),
    "blocks.{block}.attn1.Wqkv.weight": ("_", "hidden"),
    "blocks.{block}.attn1.q_norm.weight": ("head",),
    "blocks.{block}.mlp.fc1.weight": ("mlp", "hidden"),
}

# The rules of what a control network has in common with the denoiser.
ORIGINAL_BACKBONE: Rules = (
    Rename("x_embedder.proj", "patch_embed.proj"),
    Rename("t_embedder.mlp.{n}", "time_embed.{n}"),
    Rename("extra_embedder.{n}", "extra_embed.{n}"),
    Rename("style_embedder", "style_embed"),
    Rename("mlp_t5.{n}", "t5_proj.{n}"),
    Rename("text_embedding_padding", "text_padding"),
    keep("pooler.positional_embedding"),
    Rename("pooler.q_proj", "pooler.q"),
    Rename("pooler.k_proj", "pooler.k"),
    Rename("pooler.v_proj", "pooler.v"),
    Rename("pooler.c_proj", "pooler.out"),
    keep("blocks.{i}.norm1"),
    Rename("blocks.{i}.norm3", "blocks.{i}.norm_cross"),
    Rename("blocks.{i}.norm2", "blocks.{i}.norm_mlp"),
    Rename("blocks.{i}.default_modulation.1", "blocks.{i}.shift"),
    Rename("blocks.{i}.attn1.Wqkv", "blocks.{i}.self_attn.qkv"),
    Rename("blocks.{i}.attn1.q_norm", "blocks.{i}.self_attn.q_norm"),
    Rename("blocks.{i}.attn1.k_norm", "blocks.{i}.self_attn.k_norm"),
    Rename("blocks.{i}.attn1.out_proj", "blocks.{i}.self_attn.out"),
    Rename("blocks.{i}.attn2.q_proj", "blocks.{i}.cross_attn.q"),
    Rename("blocks.{i}.attn2.kv_proj", "blocks.{i}.cross_attn.kv"),
    Rename("blocks.{i}.attn2.q_norm", "blocks.{i}.cross_attn.q_norm"),
    Rename("blocks.{i}.attn2.k_norm", "blocks.{i}.cross_attn.k_norm"),
    Rename("blocks.{i}.attn2.out_proj", "blocks.{i}.cross_attn.out"),
    Rename("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.0"),
    Rename("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.2"),
)

ORIGINAL_RULES: Rules = (
    *ORIGINAL_BACKBONE,
    keep("blocks.{i}.skip_norm"),
    keep("blocks.{i}.skip_linear"),
    Rename("final_layer.adaLN_modulation.1", "final.modulation"),
    Rename("final_layer.linear", "final.linear"),
)

ORIGINAL_SIGNATURE = Signature({**ORIGINAL_SIZES, "final_layer.linear.weight": ("_", "hidden")})

DIFFUSERS_SIZES: dict[str, Dims] = {
    "pos_embed.proj.weight": ("hidden", "channels", "patch", "patch"),
    "text_embedding_padding": ("tokens", "text"),
    "time_extra_emb.pooler.positional_embedding": ("pooled", "t5"),
    "text_embedder.linear_1.weight": ("t5_proj", "t5"),
    "time_extra_emb.extra_embedder.linear_1.weight": ("extra", "condition"),
    "blocks.{block}.attn1.to_q.weight": ("_", "hidden"),
    "blocks.{block}.attn1.norm_q.weight": ("head",),
    "blocks.{block}.ff.net.0.proj.weight": ("mlp", "hidden"),
}


def _joined(block: str, attention: str, parts: str, ours: str) -> Join:
    return Join(tuple(f"{block}.{attention}.to_{part}" for part in parts), f"{block}.{ours}")


_BLOCK = "blocks.{i}"

DIFFUSERS_BACKBONE: Rules = (
    Rename("pos_embed.proj", "patch_embed.proj"),
    Rename("time_extra_emb.timestep_embedder.linear_1", "time_embed.0"),
    Rename("time_extra_emb.timestep_embedder.linear_2", "time_embed.2"),
    Rename("time_extra_emb.extra_embedder.linear_1", "extra_embed.0"),
    Rename("time_extra_emb.extra_embedder.linear_2", "extra_embed.2"),
    Rename("time_extra_emb.style_embedder", "style_embed"),
    Rename("text_embedder.linear_1", "t5_proj.0"),
    Rename("text_embedder.linear_2", "t5_proj.2"),
    Rename("text_embedding_padding", "text_padding"),
    Rename("time_extra_emb.pooler.positional_embedding", "pooler.positional_embedding"),
    Rename("time_extra_emb.pooler.q_proj", "pooler.q"),
    Rename("time_extra_emb.pooler.k_proj", "pooler.k"),
    Rename("time_extra_emb.pooler.v_proj", "pooler.v"),
    Rename("time_extra_emb.pooler.c_proj", "pooler.out"),
    Rename("blocks.{i}.norm1.norm", "blocks.{i}.norm1"),
    Rename("blocks.{i}.norm2", "blocks.{i}.norm_cross"),
    Rename("blocks.{i}.norm3", "blocks.{i}.norm_mlp"),
    Rename("blocks.{i}.norm1.linear", "blocks.{i}.shift"),
    _joined(_BLOCK, "attn1", "qkv", "self_attn.qkv"),
    Rename("blocks.{i}.attn1.norm_q", "blocks.{i}.self_attn.q_norm"),
    Rename("blocks.{i}.attn1.norm_k", "blocks.{i}.self_attn.k_norm"),
    Rename("blocks.{i}.attn1.to_out.0", "blocks.{i}.self_attn.out"),
    Rename("blocks.{i}.attn2.to_q", "blocks.{i}.cross_attn.q"),
    _joined(_BLOCK, "attn2", "kv", "cross_attn.kv"),
    Rename("blocks.{i}.attn2.norm_q", "blocks.{i}.cross_attn.q_norm"),
    Rename("blocks.{i}.attn2.norm_k", "blocks.{i}.cross_attn.k_norm"),
    Rename("blocks.{i}.attn2.to_out.0", "blocks.{i}.cross_attn.out"),
    Rename("blocks.{i}.ff.net.0.proj", "blocks.{i}.mlp.0"),
    Rename("blocks.{i}.ff.net.2", "blocks.{i}.mlp.2"),
)

DIFFUSERS_RULES: Rules = (
    *DIFFUSERS_BACKBONE,
    keep("blocks.{i}.skip_norm"),
    keep("blocks.{i}.skip_linear"),
    Rename("norm_out.linear", "final.modulation", SWAP_HALVES),
    Rename("proj_out", "final.linear"),
)

DIFFUSERS_SIGNATURE = Signature({**DIFFUSERS_SIZES, "proj_out.weight": ("_", "hidden")})

DIFFSYNTH_SIGNATURE = Signature(
    {
        "patch_embedder.proj.weight": ("hidden", "channels", "patch", "patch"),
        "text_emb_padding": ("tokens", "text"),
        "t5_pooler.positional_embedding": ("pooled", "t5"),
        "t5_embedder.0.weight": ("t5_proj", "t5"),
        "extra_embedder.0.weight": ("extra", "condition"),
        "blocks.{block}.attn1.to_q.weight": ("_", "hidden"),
        "blocks.{block}.rota1.q_norm.weight": ("head",),
        "blocks.{block}.mlp.0.weight": ("mlp", "hidden"),
        "final_layer.linear.weight": ("_", "hidden"),
    }
)

DIFFSYNTH_RULES: Rules = (
    Rename("patch_embedder.proj", "patch_embed.proj"),
    Rename("timestep_embedder.mlp.{n}", "time_embed.{n}"),
    Rename("extra_embedder.{n}", "extra_embed.{n}"),
    Rename("style_embedder", "style_embed.weight", VECTOR_TO_ROW),
    Rename("t5_embedder.{n}", "t5_proj.{n}"),
    Rename("text_emb_padding", "text_padding"),
    Rename("t5_pooler.positional_embedding", "pooler.positional_embedding"),
    Rename("t5_pooler.q_proj", "pooler.q"),
    Rename("t5_pooler.k_proj", "pooler.k"),
    Rename("t5_pooler.v_proj", "pooler.v"),
    Rename("t5_pooler.c_proj", "pooler.out"),
    keep("blocks.{i}.norm1"),
    Rename("blocks.{i}.norm3", "blocks.{i}.norm_cross"),
    Rename("blocks.{i}.norm2", "blocks.{i}.norm_mlp"),
    Rename("blocks.{i}.modulation.1", "blocks.{i}.shift"),
    _joined(_BLOCK, "attn1", "qkv", "self_attn.qkv"),
    Rename("blocks.{i}.rota1.q_norm", "blocks.{i}.self_attn.q_norm"),
    Rename("blocks.{i}.rota1.k_norm", "blocks.{i}.self_attn.k_norm"),
    Rename("blocks.{i}.attn1.to_out", "blocks.{i}.self_attn.out"),
    Rename("blocks.{i}.attn2.to_q", "blocks.{i}.cross_attn.q"),
    _joined(_BLOCK, "attn2", "kv", "cross_attn.kv"),
    Rename("blocks.{i}.rota2.q_norm", "blocks.{i}.cross_attn.q_norm"),
    Rename("blocks.{i}.rota2.k_norm", "blocks.{i}.cross_attn.k_norm"),
    Rename("blocks.{i}.attn2.to_out", "blocks.{i}.cross_attn.out"),
    keep("blocks.{i}.mlp.{n}"),
    keep("blocks.{i}.skip_norm"),
    keep("blocks.{i}.skip_linear"),
    Rename("final_layer.adaLN_modulation.1", "final.modulation"),
    Rename("final_layer.linear", "final.linear"),
)

LAYOUTS = (
    Layout(name="original", signature=ORIGINAL_SIGNATURE, read_config=read_config, rules=lambda _: ORIGINAL_RULES),
    Layout(name="diffusers", signature=DIFFUSERS_SIGNATURE, read_config=read_config, rules=lambda _: DIFFUSERS_RULES),
    Layout(name="diffsynth", signature=DIFFSYNTH_SIGNATURE, read_config=read_config, rules=lambda _: DIFFSYNTH_RULES),
)
