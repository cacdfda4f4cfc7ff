"""Levels of a UNet: residual blocks, transformers that look at the text, half and double size.

A control network is the first half of a UNet, so these levels serve both. Weights are named as Diffusers names
them. In shapes: B images, C channels, H and W height and width at a level, T the size of the time embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffsynth.nn.attention import AttentionHook, KeysValues, plain_attention
from diffsynth.nn.resnet import Downsample, ResnetBlock, Upsample
from diffsynth.nn.transformer_2d import Transformer2D

RESNET_EPS = 1e-5


@dataclass(frozen=True)
class LevelCondition:
    """What every level is told beside the image.

    Args:
        time: (B, T), embedding of the timestep and of whatever was added to it.
        text: name of a cross-attention → its keys and values.
        attention: what mixes queries, keys and values.
    """

    time: Tensor
    text: Mapping[str, KeysValues]
    attention: AttentionHook = plain_attention


@dataclass(frozen=True, kw_only=True)
class LevelSizes:
    """Sizes of one level.

    Args:
        channels: width of the level.
        time_size: T.
        attends: whether the level has transformers.
        depth: blocks of each of them; 0 for those that are projections around nothing.
        heads: attention heads of a transformer.
        context_size: width of the text features.
        groups: groups of every GroupNorm.
    """

    channels: int
    time_size: int
    attends: bool
    depth: int
    heads: int
    context_size: int
    groups: int

    def resnet(self, in_channels: int) -> ResnetBlock:
        """Build a residual block that ends at the width of the level."""
        return ResnetBlock(
            in_channels, self.channels, groups=self.groups, eps=RESNET_EPS, time_size=self.time_size
        )  # fmt: skip

    def transformers(self, count: int) -> nn.ModuleList:
        """Build the transformers of the level, none if it has none."""
        return nn.ModuleList(
            Transformer2D(
                self.channels, depth=self.depth, heads=self.heads, context_size=self.context_size, groups=self.groups
            )
            for _ in range(count if self.attends else 0)
        )


class DownLevel(nn.Module):
    """Residual blocks, each with a transformer if the level has them, then half the size unless it is the last.

    Args:
        in_channels: width of the level before.
        sizes: those of this level.
        layers: residual blocks.
        last: whether there is no level below.
    """

    def __init__(self, in_channels: int, sizes: LevelSizes, *, layers: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            sizes.resnet(sizes.channels if number else in_channels) for number in range(layers)
        )
        self.attentions = sizes.transformers(layers)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(sizes.channels, centred=True)])

    def forward(self, images: Tensor, condition: LevelCondition) -> list[Tensor]:
        """Return the output of every layer and of the downsampler; the last is the level's output.

        Args:
            images: (B, in_channels, H, W).
            condition: of B rows.
        """
        outputs = []
        for number, resnet in enumerate(self.resnets):
            images = resnet(images, condition.time)
            if self.attentions:
                images = self.attentions[number](images, condition.text, condition.attention)
            outputs.append(images)
        return outputs + [downsample(images) for downsample in self.downsamplers]


class MidLevel(nn.Module):
    """A residual block; if the level has a transformer, that and another residual block.

    Args:
        sizes: those of the lowest level, with the depth of this transformer.
    """

    def __init__(self, sizes: LevelSizes) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(sizes.resnet(sizes.channels) for _ in range(2 if sizes.attends else 1))
        self.attentions = sizes.transformers(1)

    def forward(self, images: Tensor, condition: LevelCondition) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        images = self.resnets[0](images, condition.time)
        for attention in self.attentions:
            images = attention(images, condition.text, condition.attention)
            images = self.resnets[1](images, condition.time)
        return images


class UpLevel(nn.Module):
    """Residual blocks that each take one output of the way down, then double the size unless it is the last.

    Args:
        in_channels: width of the level before.
        skips: widths of the outputs taken, in the order they are taken.
        sizes: those of this level.
        last: whether there is no level above.
    """

    def __init__(self, in_channels: int, skips: tuple[int, ...], sizes: LevelSizes, *, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            sizes.resnet((sizes.channels if number else in_channels) + skip) for number, skip in enumerate(skips)
        )
        self.attentions = sizes.transformers(len(skips))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(sizes.channels)])

    def forward(self, images: Tensor, skips: list[Tensor], condition: LevelCondition) -> Tensor:
        """Map (B, in_channels, H, W) to the level's width and the size of the level above.

        Args:
            images: output of the level below.
            skips: outputs of the way down, the next one last; those taken are removed.
            condition: of B rows.
        """
        for number, resnet in enumerate(self.resnets):
            images = resnet(torch.cat((images, skips.pop()), dim=1), condition.time)
            if self.attentions:
                images = self.attentions[number](images, condition.text, condition.attention)
        for upsample in self.upsamplers:
            images = upsample(images, size=tuple(skips[-1].shape[-2:]))  # an odd side was rounded up on the way down
        return images
