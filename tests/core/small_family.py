"""A family of networks small enough to be understood at once, for tests of what ``core`` does with any family."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffsynth.core.convert import Drop, Join, Rename, Rules, keep
from diffsynth.core.family import Layout, ModelFamily
from diffsynth.core.signature import Match, Signature


@dataclass(frozen=True, kw_only=True)
class LampConfig:
    """Sizes of a lamp."""

    width: int = 6
    depth: int = 2

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd")


class Lamp(nn.Module):
    """A stem and some blocks; it counts how often it was put in order after its weights were assigned."""

    def __init__(self, config: LampConfig) -> None:
        super().__init__()
        self.config = config
        self.finished = 0
        self.stem = nn.Linear(4, config.width)
        self.blocks = nn.ModuleList(nn.Linear(config.width, 2 * config.width) for _ in range(config.depth))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def after_load(self) -> None:
        self.finished += 1

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.stem(values)
        return found


def read_config(match: Match) -> LampConfig:
    return LampConfig(width=match.sizes["width"], depth=match.count("block"))


PLAIN: Rules = (keep("stem"), keep("blocks.{i}"), keep("count"), Drop("blocks.{i}.mask", "made anew"))
SPLIT: Rules = (
    Rename("root", "stem"),
    Join(("blocks.{i}.up", "blocks.{i}.down"), "blocks.{i}"),
    Rename("count", "count"),
)


def family(name: str = "lamp", *, prefix: str = "", extras: tuple[str, ...] = ()) -> ModelFamily:
    plain = Signature({"stem.weight": ("width", 4), "blocks.{block}.weight": ("_", "width")})
    split = Signature({"root.weight": ("width", 4), "blocks.{block}.up.weight": ("width", "width")})
    layouts = (
        Layout(name="plain", signature=plain, read_config=read_config, rules=lambda _: PLAIN),
        Layout(name="split", signature=split, read_config=read_config, rules=lambda _: SPLIT),
    )
    return ModelFamily(
        name=name,
        build=Lamp,
        tiny=LampConfig,
        layouts=tuple(replace(layout, prefix=prefix, extras=extras) for layout in layouts),
        aliases=(f"{name}_alias",),
    )


def state(prefix: str = "", *, width: int = 6, depth: int = 2) -> dict[str, Tensor]:
    """Return the weights of a lamp in the first layout."""
    network = Lamp(LampConfig(width=width, depth=depth))
    return {prefix + key: tensor.clone() for key, tensor in network.state_dict().items()}
