"""How IP-Adapters are recognised and how their names become ours.

One spelling: a projection of the image encoder's features under ``image_proj``, and under ``ip_adapter`` two layers for
each cross-attention of the UNet, numbered 1, 3, 5 ... on the way down, on the way up, and in the middle.
"""

from __future__ import annotations

from diffsynth.core.convert import Rename, Rules
from diffsynth.core.family import Layout, Relative
from diffsynth.core.signature import Match, Signature
from diffsynth.models.ip_adapter.config import IPAdapterConfig


def read_config(match: Match) -> IPAdapterConfig:
    """Turn measured sizes into a config.

    Raises:
        ValueError: the sizes contradict each other.
    """
    size = match.sizes
    tokens, left = divmod(size["features"], size["context"])
    if left:
        raise ValueError(f"{size['features']} features do not divide into tokens of {size['context']}")
    return IPAdapterConfig(
        embed_size=size["embed"],
        context_size=size["context"],
        tokens=tokens,
        widths=tuple(size[f"width{slot}"] for slot in range(1, match.count("slot"), 2)),
    )


SIGNATURE = Signature(
    {
        "image_proj.proj.weight": ("features", "embed"),
        "image_proj.norm.weight": ("context",),
        "ip_adapter.{slot}.to_k_ip.weight": ("width{slot}", "context"),
        "ip_adapter.{slot}.to_v_ip.weight": ("width{slot}", "context"),
    }
)
RULES: Rules = (
    Rename("image_proj.proj", "proj"),
    Rename("image_proj.norm", "norm"),
    Rename("ip_adapter.{i}.to_k_ip", "layers.{i}.to_k"),
    Rename("ip_adapter.{i}.to_v_ip", "layers.{i}.to_v"),
)
LAYOUTS = (Layout(name="original", signature=SIGNATURE, read_config=read_config, rules=lambda _: RULES),)

_PLAIN = "Load a plain version, such as ip-adapter_sd15.bin or ip-adapter_sdxl.bin."
RELATIVES = (
    Relative(
        keys=("image_proj.perceiver_resampler.proj_in.weight",),
        words="an IP-Adapter FaceID Plus, which reads the features of a face recogniser and is not drawn with",
        advice=_PLAIN,
    ),
    Relative(
        keys=("image_proj.proj.0.weight", "image_proj.proj.3.weight"),
        words="an IP-Adapter Full Face, which reads every patch of a picture and is not drawn with",
        advice=_PLAIN,
    ),
    Relative(
        keys=("image_proj.proj.0.weight", "image_proj.norm.weight"),
        words="an IP-Adapter FaceID, which reads the features of a face recogniser and is not drawn with",
        advice=_PLAIN,
    ),
    Relative(
        keys=("image_proj.latents", "image_proj.proj_in.weight"),
        words="an IP-Adapter Plus, which resamples every patch of a picture and is not drawn with",
        advice=_PLAIN,
    ),
)
