"""How CLIP's image encoders are recognised and how their names become ours.

Two spellings: that of the transformers library, and that of the bilingual CLIP of HunyuanDiT, whose file holds the
tower beside a text encoder, and which keeps query, key and value in one tensor and the projection transposed.
Neither tells the activation: the bilingual tower, and those that OpenAI trained, have the quick GELU. OpenCLIP's own
files have the second spelling too, beside a text encoder of theirs, but the exact GELU; they are told by that encoder
and left alone.
"""

from __future__ import annotations

from math import isqrt

from diffsynth.core.convert import TRANSPOSE, Drop, Rename, Rule, Rules, Split
from diffsynth.core.family import Layout
from diffsynth.core.signature import Match, Signature
from diffsynth.models.clip_vision.config import ClipVisionConfig

OPENAI_WIDTH = 1024  # of the widest image encoder that OpenAI trained; those up to it have the quick GELU
BASE_WIDTH = 768  # of the encoders with 12 attention heads; all others have 16


def _read(match: Match, *, quick_gelu: bool) -> ClipVisionConfig:
    size = match.sizes
    side = isqrt(size["positions"] - 1)  # one position is that of the summary
    if side * side + 1 != size["positions"]:
        raise ValueError(f"{size['positions']} positions are not those of a square picture and its summary")
    return ClipVisionConfig(
        hidden_size=size["hidden"],
        num_layers=match.count("layer"),
        mlp_size=size["mlp"],
        image_size=side * size["patch"],
        patch_size=size["patch"],
        projection_size=size["projection"],
        num_heads=12 if size["hidden"] == BASE_WIDTH else 16,
        quick_gelu=quick_gelu,
    )


def read_config(match: Match) -> ClipVisionConfig:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    return _read(match, quick_gelu=match.sizes["hidden"] <= OPENAI_WIDTH)


def read_bilingual(match: Match) -> ClipVisionConfig:
    """As `read_config`, for a tower of HunyuanDiT.

    Raises:
        ValueError: the sizes contradict each other.
    """
    return _read(match, quick_gelu=True)


TRANSFORMERS = Signature(
    {
        "vision_model.embeddings.class_embedding": ("hidden",),
        "vision_model.embeddings.patch_embedding.weight": ("hidden", 3, "patch", "patch"),
        "vision_model.embeddings.position_embedding.weight": ("positions", "hidden"),
        "vision_model.encoder.layers.{layer}.self_attn.q_proj.weight": ("hidden", "hidden"),
        "vision_model.encoder.layers.{layer}.mlp.fc1.weight": ("mlp", "hidden"),
        "visual_projection.weight": ("projection", "hidden"),
    },
    absent=("concept_embeds",),  # the safety checker of Stable Diffusion is built around such a tower
)
BILINGUAL = Signature(
    {
        "visual.class_embedding": ("hidden",),
        "visual.conv1.weight": ("hidden", 3, "patch", "patch"),
        "visual.positional_embedding": ("positions", "hidden"),
        "visual.transformer.resblocks.{layer}.attn.in_proj_weight": ("_", "hidden"),
        "visual.transformer.resblocks.{layer}.mlp.c_fc.weight": ("mlp", "hidden"),
        "visual.proj": ("hidden", "projection"),
    },
    absent=("token_embedding.weight",),  # of OpenCLIP's text encoder
)

_LAYER = "encoder.layers.{i}"
_LAYERS = (
    "embeddings.class_embedding",
    "embeddings.patch_embedding",
    "embeddings.position_embedding",
    "pre_layrnorm",  # spelt so in every file
    *(f"{_LAYER}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(f"{_LAYER}.{name}" for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")),
    "post_layernorm",
)
TRANSFORMERS_RULES: Rules = (
    *(Rename(f"vision_model.{name}", f"vision.vision_model.{name}") for name in _LAYERS),
    Rename("visual_projection", "vision.visual_projection"),
    Drop("vision_model.embeddings.position_ids", "a buffer we recompute"),
)


def _stacked(kind: str) -> Rule:
    """The weights, or the biases, of query, key and value; their names have no dot before the kind."""
    parts = tuple(f"vision.vision_model.{_LAYER}.self_attn.{part}_proj.{kind}" for part in "qkv")
    return Split(f"visual.transformer.resblocks.{{i}}.attn.in_proj_{kind}", parts)


def _resblock(theirs: str, ours: str) -> Rule:
    return Rename(f"visual.transformer.resblocks.{{i}}.{theirs}", f"vision.vision_model.{_LAYER}.{ours}")


BILINGUAL_RULES: Rules = (
    Rename("visual.class_embedding", "vision.vision_model.embeddings.class_embedding"),
    Rename("visual.conv1", "vision.vision_model.embeddings.patch_embedding"),
    Rename("visual.positional_embedding", "vision.vision_model.embeddings.position_embedding.weight"),
    Rename("visual.ln_pre", "vision.vision_model.pre_layrnorm"),
    _stacked("weight"),
    _stacked("bias"),
    _resblock("attn.out_proj", "self_attn.out_proj"),
    _resblock("ln_1", "layer_norm1"),
    _resblock("ln_2", "layer_norm2"),
    _resblock("mlp.c_fc", "mlp.fc1"),
    _resblock("mlp.c_proj", "mlp.fc2"),
    Rename("visual.ln_post", "vision.vision_model.post_layernorm"),
    Rename("visual.proj", "vision.visual_projection.weight", TRANSPOSE),
)

LAYOUTS = (
    Layout(
        name="transformers",
        signature=TRANSFORMERS,
        read_config=read_config,
        rules=lambda _: TRANSFORMERS_RULES,
        extras=("logit_scale",),
    ),
    Layout(
        name="bilingual",
        signature=BILINGUAL,
        read_config=read_bilingual,
        rules=lambda _: BILINGUAL_RULES,
        extras=("logit_scale",),
    ),
)
