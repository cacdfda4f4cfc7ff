"""What a folder of ``diffsynth.models`` declares: a family of networks and its spellings in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from diffsynth.core.convert import Converter, Rules
from diffsynth.core.signature import Match, Signature
from diffsynth.types import Header, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One spelling of a family's weights.

    Args:
        name: what the spelling is called, for example ``original`` or ``diffusers``.
        signature: how it is recognised.
        read_config: measured sizes → the family's config; may raise ValueError if they make no sense.
        rules: config → the table that translates the names.
        prefix: what the keys begin with in this spelling; only files where they do are recognised.
        extras: names around the network that belong with it, such as an embedded vocabulary.
        marks: names around it that tell by being there what it was trained for.
    """

    name: str
    signature: Signature
    read_config: Callable[[Match], Any]
    rules: Callable[[Any], Rules]
    prefix: str = ""
    extras: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A network that resembles a family and is known by name, but is none of it and cannot be used.

    Args:
        keys: all of them are in its files.
        words: what it is and why it cannot be used, to follow "is".
        advice: what to do instead, a sentence.
    """

    keys: tuple[str, ...]
    words: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A kind of network.

    Args:
        name: the family's name, that of its folder.
        build: config → module; called on the meta device when weights follow.
        tiny: a config that runs on a CPU in milliseconds, its sizes all different.
        layouts: the spellings we read and write, the preferred one first.
        aliases: other names by which scripts ask for the network.
        version: config → which release this is, in words.
        dtype: what the network is kept in whatever the manager's dtype, or None.
        on_request: whether it is left in a file that holds other networks too, unless it is asked for by name.
        relatives: networks that are told apart by name and refused.
        copies: name of a family of which this has some layers too; a change that fits both is meant for that one.
    """

    name: str
    build: Callable[[Any], nn.Module]
    tiny: Callable[[], Any]
    layouts: tuple[Layout, ...]
    aliases: tuple[str, ...] = ()
    version: Callable[[Any], str] = field(default=lambda config: "")
    dtype: torch.dtype | None = None
    on_request: bool = False
    relatives: tuple[Relative, ...] = ()
    copies: str = ""

    def layout(self, name: str) -> Layout:
        """Return one layout by its name.

        Raises:
            KeyError: there is none; the message names those there are.
        """
        for layout in self.layouts:
            if layout.name == name:
                return layout
        raise KeyError(f"{self.name} has no layout {name!r}, only {', '.join(each.name for each in self.layouts)}")

    def build_on_meta(self, config: Any) -> nn.Module:
        """Build the module without using memory for its weights."""
        with torch.device("meta"):
            return self.build(config)

    def header(self, config: Any, layout: Layout) -> Header:
        """Return the keys (without prefix), shapes and dtypes that a file of this config has in this layout."""
        state = self.build_on_meta(config).state_dict()
        theirs = Converter(layout.rules(config)).to_theirs(state)
        return {key: TensorSpec(tuple(tensor.shape), tensor.dtype) for key, tensor in theirs.items()}
