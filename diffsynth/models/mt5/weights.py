"""How the mT5 encoder is recognised and how its names become ours.

The published file holds the decoder, the output head and further copies of the embedding too; they stay unread.
"""

from __future__ import annotations

from diffsynth.core.convert import Drop, Rename, Rules, Tie
from diffsynth.core.family import Layout
from diffsynth.core.signature import Match, Signature
from diffsynth.models.mt5.config import MT5Config


def read_config(match: Match) -> MT5Config:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    size = match.sizes
    if size["inner"] % size["heads"]:
        raise ValueError(f"{size['inner']} attention features do not divide into {size['heads']} heads")
    return MT5Config(
        vocab_size=size["vocab"],
        d_model=size["model"],
        d_kv=size["inner"] // size["heads"],
        d_ff=size["mlp"],
        num_layers=match.count("block"),
        num_heads=size["heads"],
        buckets=size["buckets"],
    )


SIGNATURE = Signature(
    {
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ("buckets", "heads"),
        "shared.weight": ("vocab", "model"),
        "encoder.block.{block}.layer.0.SelfAttention.q.weight": ("inner", "model"),
        "encoder.block.{block}.layer.1.DenseReluDense.wi_0.weight": ("mlp", "model"),
        "encoder.final_layer_norm.weight": ("model",),
    }
)

_LAYERS = (
    "encoder.block.{i}.layer.0.SelfAttention.q",
    "encoder.block.{i}.layer.0.SelfAttention.k",
    "encoder.block.{i}.layer.0.SelfAttention.v",
    "encoder.block.{i}.layer.0.SelfAttention.o",
    "encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias",
    "encoder.block.{i}.layer.0.layer_norm",
    "encoder.block.{i}.layer.1.DenseReluDense.wi_0",
    "encoder.block.{i}.layer.1.DenseReluDense.wi_1",
    "encoder.block.{i}.layer.1.DenseReluDense.wo",
    "encoder.block.{i}.layer.1.layer_norm",
    "encoder.final_layer_norm",
)

RULES: Rules = (
    Tie("shared", ("t5.shared", "t5.encoder.embed_tokens")),
    *(Rename(name, f"t5.{name}") for name in _LAYERS),
    Drop("encoder.embed_tokens", "the same tensor as shared"),
    Drop("decoder.**", "only the encoder is used"),
    Drop("lm_head", "only the encoder is used"),
)

LAYOUTS = (
    Layout(
        name="transformers",
        signature=SIGNATURE,
        read_config=read_config,
        rules=lambda _: RULES,
        extras=("spiece_model", "logit_scale"),
    ),
)
