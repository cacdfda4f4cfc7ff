"""How CLIP's text encoders are recognised and how their names become ours.

Three spellings: that of the transformers library, the same without its outer level, as its newer versions save it, and
that of OpenCLIP, which keeps query, key and value in one tensor and the projection transposed: as that is square,
forgetting it shows nowhere but in the images.
"""

from __future__ import annotations

from diffsynth.core.convert import TRANSPOSE, Drop, Rename, Rule, Rules, Split, keep
from diffsynth.core.family import Layout
from diffsynth.core.signature import Match, Signature
from diffsynth.models.clip.config import END_TOKEN, ClipTextConfig

OPENAI_WIDTH = 768  # of the widest text encoder that OpenAI trained; those up to it have the quick GELU


def read_config(match: Match) -> ClipTextConfig:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    size = match.sizes
    return ClipTextConfig(
        vocab_size=size["vocab"],
        hidden_size=size["hidden"],
        num_layers=match.count("layer"),
        mlp_size=size["mlp"],
        max_positions=size["positions"],
        projection_size=size.get("projection", 0),
        quick_gelu=size["hidden"] <= OPENAI_WIDTH,
        end_token=min(END_TOKEN, size["vocab"] - 1),  # a grown vocabulary has its new tokens behind it
    )


def read_bare(match: Match) -> ClipTextConfig:
    """As `read_config`, for names without the outer level.

    Raises:
        ValueError: the sizes contradict each other, or the outer level is there.
    """
    if match.prefix.endswith("text_model."):
        raise ValueError("under 'text_model.' it is the layout 'transformers'")
    return read_config(match)


def _signature(outer: str) -> Signature:
    return Signature(
        {
            f"{outer}embeddings.token_embedding.weight": ("vocab", "hidden"),
            f"{outer}embeddings.position_embedding.weight": ("positions", "hidden"),
            f"{outer}encoder.layers.{{layer}}.self_attn.q_proj.weight": ("hidden", "hidden"),
            f"{outer}encoder.layers.{{layer}}.mlp.fc1.weight": ("mlp", "hidden"),
            f"{outer}final_layer_norm.weight": ("hidden",),
        },
        optional={"text_projection.weight": ("projection", "hidden")},
    )


OPEN_CLIP = Signature(
    {
        "token_embedding.weight": ("vocab", "hidden"),
        "positional_embedding": ("positions", "hidden"),
        "transformer.resblocks.{layer}.attn.in_proj_weight": ("_", "hidden"),
        "transformer.resblocks.{layer}.mlp.c_fc.weight": ("mlp", "hidden"),
        "ln_final.weight": ("hidden",),
    },
    optional={"text_projection": ("hidden", "projection")},
)

_LAYER = "encoder.layers.{i}"
_LAYERS = (
    "embeddings.token_embedding",
    "embeddings.position_embedding",
    *(f"{_LAYER}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(f"{_LAYER}.{name}" for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")),
    "final_layer_norm",
)


def _transformers(outer: str) -> Rules:
    return (
        *(Rename(f"{outer}{name}", f"text.{name}") for name in _LAYERS),
        keep("text_projection"),
        Drop(f"{outer}embeddings.position_ids", "a buffer we recompute"),
    )


def _stacked(kind: str) -> Rule:
    """The weights, or the biases, of query, key and value; their names have no dot before the kind."""
    parts = tuple(f"text.{_LAYER}.self_attn.{part}_proj.{kind}" for part in "qkv")
    return Split(f"transformer.resblocks.{{i}}.attn.in_proj_{kind}", parts)


def _resblock(theirs: str, ours: str) -> Rule:
    return Rename(f"transformer.resblocks.{{i}}.{theirs}", f"text.{_LAYER}.{ours}")


OPEN_CLIP_RULES: Rules = (
    Rename("token_embedding", "text.embeddings.token_embedding"),
    Rename("positional_embedding", "text.embeddings.position_embedding.weight"),
    _stacked("weight"),
    _stacked("bias"),
    _resblock("attn.out_proj", "self_attn.out_proj"),
    _resblock("ln_1", "layer_norm1"),
    _resblock("ln_2", "layer_norm2"),
    _resblock("mlp.c_fc", "mlp.fc1"),
    _resblock("mlp.c_proj", "mlp.fc2"),
    Rename("ln_final", "text.final_layer_norm"),
    Rename("text_projection", "text_projection.weight", TRANSPOSE),
    Drop("attn_mask", "a buffer the library makes"),
)
_WITH_OUTER, _BARE = _transformers("text_model."), _transformers("")

LAYOUTS = (
    Layout(
        name="transformers",
        signature=_signature("text_model."),
        read_config=read_config,
        rules=lambda _: _WITH_OUTER,
        extras=("logit_scale",),
    ),
    Layout(
        name="open_clip",
        signature=OPEN_CLIP,
        read_config=read_config,
        rules=lambda _: OPEN_CLIP_RULES,
        extras=("logit_scale",),
    ),
    Layout(
        name="transformers-bare",
        signature=_signature(""),
        read_config=read_bare,
        rules=lambda _: _BARE,
        extras=("logit_scale",),
    ),
)
