"""How the text tower of the bilingual CLIP is recognised and how its names become ours.

The published file holds the tower under ``bert.`` and an image tower beside it, the family ``clip_vision``.
"""

from __future__ import annotations

from diffsynth.core.convert import Drop, Rename, Rules
from diffsynth.core.family import Layout
from diffsynth.core.signature import Match, Signature
from diffsynth.models.bert_clip.config import BertClipConfig


def read_config(match: Match) -> BertClipConfig:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    size = match.sizes
    return BertClipConfig(
        vocab_size=size["vocab"],
        hidden_size=size["hidden"],
        num_layers=match.count("layer"),
        mlp_size=size["mlp"],
        max_positions=size["positions"],
        token_types=size["types"],
    )


SIGNATURE = Signature(
    {
        "embeddings.word_embeddings.weight": ("vocab", "hidden"),
        "embeddings.position_embeddings.weight": ("positions", "hidden"),
        "embeddings.token_type_embeddings.weight": ("types", "hidden"),
        "encoder.layer.{layer}.attention.self.query.weight": ("hidden", "hidden"),
        "encoder.layer.{layer}.intermediate.dense.weight": ("mlp", "hidden"),
    }
)

_LAYERS = (
    "embeddings.word_embeddings",
    "embeddings.position_embeddings",
    "embeddings.token_type_embeddings",
    "embeddings.LayerNorm",
    "encoder.layer.{i}.attention.self.query",
    "encoder.layer.{i}.attention.self.key",
    "encoder.layer.{i}.attention.self.value",
    "encoder.layer.{i}.attention.output.dense",
    "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layer.{i}.intermediate.dense",
    "encoder.layer.{i}.output.dense",
    "encoder.layer.{i}.output.LayerNorm",
)

RULES: Rules = (
    *(Rename(name, f"bert.{name}") for name in _LAYERS),
    Drop("pooler.dense", "a head for sentences; the features are those of the tokens"),
    Drop("embeddings.position_ids", "a buffer we recompute"),
    Drop("embeddings.token_type_ids", "a buffer we recompute"),
)

LAYOUTS = (
    Layout(
        name="original",
        signature=SIGNATURE,
        read_config=read_config,
        rules=lambda _: RULES,
        prefix="bert.",
        extras=("logit_scale",),
    ),
    Layout(name="transformers", signature=SIGNATURE, read_config=read_config, rules=lambda _: RULES),
)
