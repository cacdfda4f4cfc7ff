"""How UNets are recognised and what their shapes tell, in each of three spellings; ``names.py`` translates the names.

Head counts are in no file. Networks that keep the projections around a transformer as 1x1 convolutions have 8 heads
at every level, those that keep them as linear layers have heads of 64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from diffsynth.core.family import Layout
from diffsynth.core.signature import Dims, Match, Signature
from diffsynth.models.unet import names
from diffsynth.models.unet.config import UNetConfig

HEAD_DIM = 64
SCHEDULE = (  # buffers of the noise schedule that older training programs saved beside the network
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "denoiser.sigmas",
    "model_ema.decay", "model_ema.num_updates",
)  # fmt: skip
MARKS = ("v_pred", "ztsnr")  # of a fine-tune that predicts the velocity, to zero signal at the last timestep


def read_diffusers(match: Match) -> UNetConfig:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    levels = [(match.sizes[f"width{i}"], depth_of(match, f"text{i}.0")) for i in range(match.count("level"))]
    return _config(match, levels, match.count("unit"), match.count("block"), convs=match.sizes["kernel"] == 2)


def read_ldm(match: Match) -> UNetConfig:
    """As `read_diffusers`; the first block that halves the size tells how many a level has."""
    stride = ldm_stride(match)
    levels = [(match.sizes[f"width{n}"], depth_of(match, f"text{n}")) for n in range(1, match.count("n"), stride)]
    return _config(match, levels, stride - 1, match.count("block"), convs=match.sizes["kernel"] == 2)


def read_diffsynth(match: Match) -> UNetConfig:
    """As `read_diffusers`; one count goes through all layers, and all projections are linear.

    That those of other files are convolutions is told by the missing label, which all later networks have.
    """
    halves = [n for n in range(match.count("n")) if f"half{n}" in match.sizes]
    layers = sum(f"width{n}" in match.sizes for n in range(halves[0] if halves else match.count("n")))
    levels: list[tuple[int, int]] = []
    position = 0
    for _ in range(len(halves) // 2 + 1):  # the other half of them are on the way up
        position += names.HALF_SLOTS if levels else 0
        levels.append((match.sizes[f"width{position}"], depth_of(match, f"text{position + 1}")))
        position += names.level_slots(layers, levels[-1][1])
    return _config(match, levels, layers, depth_of(match, f"text{position + 1}"), convs="label" not in match.sizes)


def _config(match: Match, levels: list[tuple[int, int]], layers: int, mid_depth: int, *, convs: bool) -> UNetConfig:
    """Turn measured sizes into a config; ``levels`` are widths and transformer depths."""
    size = match.sizes
    return UNetConfig(
        in_channels=size["in"],
        out_channels=size["out"],
        channels=tuple(width for width, _ in levels),
        depths=tuple(depth for _, depth in levels),
        mid_depth=mid_depth,
        layers_per_block=layers,
        context_size=size["context"],
        text_size=size.get("text", 0),
        time_size=size["time"],
        label_size=size.get("label", 0),
        conv_projections=convs,
        head_dim=0 if convs else HEAD_DIM,
    )


def ldm_stride(match: Match) -> int:
    """Return how many of latent-diffusion's blocks make a level: its residual blocks, and one that halves the size."""
    count = match.count("n")
    return next((n for n in range(1, count) if f"half{n}" in match.sizes), count)


def depth_of(match: Match, transformer: str) -> int:
    """Return how many blocks a transformer has, 0 if it is not there."""
    return sum(re.fullmatch(rf"{re.escape(transformer)}\.\d+", name) is not None for name in match.sizes)


LDM_LEVELS: Mapping[str, Dims] = {
    "input_blocks.{n}.0.op.weight": ("half{n}", "half{n}", 3, 3),
    "input_blocks.{n}.1.transformer_blocks.{deep}.attn2.to_k.weight": ("text{n}.{deep}", "context"),
}
_TO_KEYS = "transformer_blocks.{block}.attn2.to_k.weight"
_PROJECTED = {"encoder_hid_proj.weight": ("context", "text")}

DIFFUSERS = Signature(
    {
        "conv_in.weight": ("width0", "in", 3, 3),
        "time_embedding.linear_1.weight": ("time", "width0"),
        "down_blocks.{level}.resnets.{unit}.conv2.weight": ("width{level}", "width{level}", 3, 3),
        f"mid_block.attentions.0.{_TO_KEYS}": ("_", "context"),
        "mid_block.attentions.0.proj_in.weight": ("_", "_", "*kernel"),
        "up_blocks.{level}.resnets.{taken}.conv2.weight": ("_", "_", 3, 3),  # a control network has none
        "conv_out.weight": ("out", "width0", 3, 3),
    },
    optional={
        "down_blocks.{level}.attentions.{unit}.transformer_blocks.{deep}.attn2.to_k.weight": (
            "text{level}.{unit}.{deep}",
            "context",
        ),
        "add_embedding.linear_1.weight": ("_", "label"),
    }
    | _PROJECTED,
)
LDM = Signature(
    {
        "input_blocks.0.0.weight": ("first", "in", 3, 3),
        "time_embed.0.weight": ("time", "first"),
        "input_blocks.{n}.0.out_layers.3.weight": ("width{n}", "width{n}", 3, 3),
        f"middle_block.1.{_TO_KEYS}": ("_", "context"),
        "middle_block.1.proj_in.weight": ("_", "_", "*kernel"),
        "output_blocks.{taken}.0.out_layers.3.weight": ("_", "_", 3, 3),
        "out.2.weight": ("out", "first", 3, 3),
    },
    optional={**LDM_LEVELS, "label_emb.0.0.weight": ("_", "label"), **_PROJECTED},
)
DIFFSYNTH = Signature(
    {
        "conv_in.weight": ("first", "in", 3, 3),
        "time_embedding.0.weight": ("time", "first"),
        "blocks.{n}.conv2.weight": ("width{n}", "width{n}", 3, 3),
        "blocks.{n}.transformer_blocks.{deep}.attn2.to_k.weight": ("text{n}.{deep}", "context"),
        "conv_out.weight": ("out", "first", 3, 3),
    },
    optional={
        "blocks.{n}.conv.weight": ("half{n}", "half{n}", 3, 3),
        "add_time_embedding.0.weight": ("_", "label"),
    }
    | _PROJECTED,
)

LAYOUTS = (
    Layout(name="ldm", signature=LDM, read_config=read_ldm, rules=names.ldm, extras=SCHEDULE, marks=MARKS),
    Layout(name="diffusers", signature=DIFFUSERS, read_config=read_diffusers, rules=names.diffusers, marks=MARKS),
    Layout(name="diffsynth", signature=DIFFSYNTH, read_config=read_diffsynth, rules=names.diffsynth, marks=MARKS),
)
