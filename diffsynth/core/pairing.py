"""Files that are merged, and which network of the one belongs to which of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.core.loading import check_header
from diffsynth.core.registry import Identified, Registry, without_copies
from diffsynth.errors import AmbiguousCheckpoint, UnsupportedCheckpoint, listed


@dataclass(frozen=True)
class Source:
    """A file to merge and the networks that it holds."""

    checkpoint: Checkpoint
    networks: Sequence[Identified]

    @classmethod
    def of(cls, checkpoint: Checkpoint, registry: Registry, kind: str | None) -> Source:
        """Recognise the networks of a file, or those of one kind.

        Raises:
            CheckpointError: there are none, or it cannot be told what they are.
        """
        return cls(checkpoint, without_copies(registry.identify(checkpoint, kind).networks))

    @property
    def path(self) -> Path:
        """The file."""
        return self.checkpoint.path

    @property
    def labels(self) -> list[str]:
        """What its networks are."""
        return [found.label for found in self.networks]


def partners(first: Source, other: Source) -> list[Identified | None]:
    """Return, for each network of the first file, the same one of another file, or None if it is not there.

    Raises:
        CheckpointError: it has networks of a family, but of other sizes; or several that fit.
    """
    found = [_partner(network, first, other) for network in first.networks]
    met = {network.family.name for network, partner in zip(first.networks, found, strict=True) if partner}
    for network in first.networks:
        rivals = [each for each in other.networks if each.family is network.family and network.family.name not in met]
        if rivals:
            _refuse_sizes(network, min(rivals, key=lambda each: each.prefix != network.prefix), first, other)
    return found


def _partner(network: Identified, first: Source, other: Source) -> Identified | None:
    def alike(source: Source) -> list[Identified]:
        return [each for each in source.networks if (each.family, each.config) == (network.family, network.config)]

    there = alike(other)
    if not there or len(there) == len(alike(first)) == 1:
        return there[0] if there else None
    for each in there:
        if each.prefix == network.prefix:
            return each
    places = listed(repr(each.prefix) for each in there)
    raise AmbiguousCheckpoint(
        other.path,
        f"it is not clear which network belongs to {network.label} of {first.path}: {len(there)} fit, under {places}",
        "Give files in which each network lies once, or under the same names.",
    )


def _refuse_sizes(network: Identified, rival: Identified, first: Source, other: Source) -> None:
    """Say how the sizes of two networks of a family differ, in the other file's own keys.

    Raises:
        CheckpointError: always.
    """
    ours = network.family.build_on_meta(network.config).state_dict()
    check_header(replace(rival, config=network.config), other.checkpoint, ours, like=first.path)
    differing = [
        f"{each.name} is {getattr(rival.config, each.name)!r}, expected {getattr(network.config, each.name)!r}"
        for each in fields(network.config)
        if getattr(rival.config, each.name) != getattr(network.config, each.name)
    ]
    problem = f"its {rival.label} is not the network that {first.path} holds: {listed(differing)}"
    raise UnsupportedCheckpoint(other.path, problem, "Only networks of the same sizes can be merged.")
