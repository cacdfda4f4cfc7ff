"""The sizes that benchmarks run at: toy, small and published, all with the published structure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.bert_clip.config import BertClipConfig
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.mt5.config import MT5Config


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One HunyuanDiT release: its four networks, and the image tower that lies unread beside the CLIP text tower.

    Hidden widths that Diffusers does not let one choose are four times the layer's own width, as published.
    """

    dit: HunyuanDiTConfig
    clip: BertClipConfig
    t5: MT5Config
    vae: AutoencoderKLConfig
    tower_width: int
    tower_layers: int


def _dit(*, hidden: int, heads: int, mlp: int, depth: int, clip: BertClipConfig, t5: MT5Config) -> HunyuanDiTConfig:
    return HunyuanDiTConfig(
        hidden_size=hidden,
        num_heads=heads,
        mlp_size=mlp,
        depth=depth,
        text_dim=clip.hidden_size,
        t5_dim=t5.d_model,
        t5_proj_size=4 * t5.d_model,
        extra_size=4 * hidden,
        size_conditioning=True,
    )


def _tiny() -> Sizes:
    clip, t5 = replace(BertClipConfig.tiny(), vocab_size=300), replace(MT5Config.tiny(), vocab_size=400)
    dit = _dit(hidden=48, heads=3, mlp=80, depth=6, clip=clip, t5=t5)
    return Sizes(dit=dit, clip=clip, t5=t5, vae=AutoencoderKLConfig.tiny(), tower_width=24, tower_layers=2)


def _small() -> Sizes:
    clip = BertClipConfig(vocab_size=8000, hidden_size=512, num_layers=6, mlp_size=2048)
    t5 = MT5Config(vocab_size=8000, d_model=1024, d_ff=2048, num_layers=4, num_heads=16)
    dit = _dit(hidden=704, heads=8, mlp=3072, depth=6, clip=clip, t5=t5)
    vae = AutoencoderKLConfig(channels=(64, 128, 256, 256))
    return Sizes(dit=dit, clip=clip, t5=t5, vae=vae, tower_width=320, tower_layers=4)


FULL = Sizes(
    dit=HunyuanDiTConfig(size_conditioning=True),
    clip=BertClipConfig(),
    t5=MT5Config(),
    vae=AutoencoderKLConfig(),
    tower_width=1280,
    tower_layers=32,
)
SIZES = {"tiny": _tiny(), "small": _small(), "full": FULL}
