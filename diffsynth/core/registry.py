"""The families there are, and which of them a file holds."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.core.convert import Converter
from diffsynth.core.family import Layout, ModelFamily
from diffsynth.core.signature import Match
from diffsynth.errors import AmbiguousCheckpoint, InvalidRequest, UnknownCheckpoint, listed, printable
from diffsynth.types import Header

logger = logging.getLogger(__name__)

# Tensors beside the networks of a file that have this share of a signature are a damaged network, if there are so many.
NEARLY, FEWEST = 0.75, 8


@dataclass(frozen=True)
class Identified:
    """One network found in a file: its family, spelling and config, and its keys there.

    ``beside`` are those of the keys that lie around the network, such as a vocabulary, and are no weights of it.
    """

    family: ModelFamily
    layout: Layout
    prefix: str
    config: Any
    keys: frozenset[str]
    beside: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """The family, its layout and where in the file it lies."""
        return f"{self.family.name} (layout {self.layout.name!r}" + (
            f", under {self.prefix!r})" if self.prefix else ")"
        )

    @property
    def marks(self) -> frozenset[str]:
        """The marks of its layout that lie beside it."""
        return frozenset(name for name in self.layout.marks if name in {key.rpartition(".")[2] for key in self.beside})

    def answers_to(self, variant: str, path: Path) -> bool:
        """Whether a variant means this network of a file: its path, name with or without ending, prefix, or version."""
        names = (path.name, path.stem, path.parent.name, self.prefix.rstrip("."), self.family.version(self.config))
        return variant in (str(path), *names) or Path(variant).absolute() == path.absolute()


@dataclass(frozen=True)
class Identification:
    """What a file holds.

    Args:
        networks: those in it.
        unclaimed: the keys that none of them claims.
        nearly: what these nearly are.
        on_request: networks whose keys are among them, because they have to be asked for by name.
    """

    networks: tuple[Identified, ...]
    unclaimed: tuple[str, ...]
    nearly: tuple[str, ...] = ()
    on_request: tuple[Identified, ...] = ()


class Registry:
    """Knows families by name and recognises their files."""

    def __init__(self, families: Iterable[ModelFamily]) -> None:
        self.families = tuple(families)
        self._names = {name: family for family in self.families for name in (family.name, *family.aliases)}

    @classmethod
    def collect(cls, package: ModuleType) -> Registry:
        """Take every folder of a package that declares a ``FAMILY``, or several as ``FAMILIES``."""
        modules = (
            importlib.import_module(f"{package.__name__}.{info.name}")
            for info in pkgutil.iter_modules(package.__path__)
        )
        return cls(family for module in modules for family in _declared_by(module))

    def family(self, name: str) -> ModelFamily:
        """Return a family by its name or one of its aliases.

        Raises:
            InvalidRequest: there is none; the message names the nearest.
        """
        if name in self._names:
            return self._names[name]
        near = get_close_matches(name, self._names, n=3) or sorted(self._names)
        raise InvalidRequest(f"there is no kind of network called {printable(name)!r}. Known are: {', '.join(near)}.")

    def identify(self, checkpoint: Checkpoint, kind: str | None = None) -> Identification:
        """Tell which networks a checkpoint holds.

        Args:
            checkpoint: an opened file; only its header is looked at.
            kind: a family's name, to look for that family only.

        Raises:
            UnknownCheckpoint: nothing known is in it; the message says what is nearest and what differs.
            AmbiguousCheckpoint: two families claim the same keys.
        """
        families = self.families if kind is None else (self.family(kind),)
        found = [each for family in families for each in self._find(checkpoint, family)]
        if not found:
            raise UnknownCheckpoint(checkpoint.path, *self._explain(checkpoint, families, kind))
        _refuse_double_claims(checkpoint, found)
        found.sort(key=lambda each: each.prefix)
        usual = [each for each in found if not each.family.on_request] or found
        waiting = [each for each in found if each not in usual]
        unclaimed = _without(checkpoint.header, usual)
        unknown = _without(unclaimed, waiting)
        nearly = _near_misses(unknown, families, NEARLY) if len(unknown) >= FEWEST else ()
        return Identification(tuple(usual), tuple(unclaimed), tuple(nearly[:1]), tuple(waiting))

    def _find(self, checkpoint: Checkpoint, family: ModelFamily) -> list[Identified]:
        """Return one network per prefix, in the first layout of the family that fits there."""
        found: dict[str, Identified] = {}
        for layout in family.layouts:
            for prefix in layout.signature.prefixes(checkpoint.header):
                if prefix not in found and prefix.endswith(layout.prefix):
                    identified = self._identify(checkpoint, family, layout, prefix)
                    if identified is not None:
                        found[prefix] = identified
        return list(found.values())

    def _identify(self, checkpoint: Checkpoint, family: ModelFamily, layout: Layout, prefix: str) -> Identified | None:
        match = layout.signature.measure(checkpoint.header, prefix)
        if not match.complete:
            return None
        try:
            config = _read_config(layout, match)
        except ValueError as error:
            logger.debug("%s: not %s (%s): %s", checkpoint.path, family.name, layout.name, error)
            return None
        inside = claimed_keys(checkpoint, prefix, Converter(layout.rules(config)))
        beside = keys_beside(checkpoint, prefix, (*layout.extras, *layout.marks))
        return Identified(family, layout, prefix, config, inside | beside, beside)

    def _explain(self, checkpoint: Checkpoint, families: Sequence[ModelFamily], kind: str | None) -> tuple[str, str]:
        header = checkpoint.header
        for relative in (relative for family in families for relative in family.relatives):
            if relative.keys and all(key in header for key in relative.keys):
                return f"is {relative.words}", relative.advice
        shown = [f"{printable(key, 100)} {spec.shape}" for key, spec in list(header.items())[:5]]
        what = f"as {kind}" if kind else "as any known network"
        problem = [f"is not recognised {what}. It holds {len(header)} tensors: {', '.join(shown)}"]
        problem += [f"  nearest: {line}" for line in _near_misses(header, families, least=0.0 if kind else 0.01)]
        if any("lora" in key.lower() for key in header):
            problem.append(
                "  its names are those of a LoRA, which changes a network: give it to load_lora, or as --lora"
            )
        known = ", ".join(sorted(family.name for family in self.families))
        advice = (
            "Give a file of that network, or leave it open what the file is."
            if kind
            else "If you know what it is, say so with kind= (in Python) or --as (on the command line), "
            f"with one of: {known}."
        )
        return "\n".join(problem), f"{advice} `diffsynth inspect` lists its keys."


def _declared_by(module: ModuleType) -> tuple[ModelFamily, ...]:
    """Return the families of a folder: one, or several that share layers."""
    one: tuple[ModelFamily, ...] = (module.FAMILY,) if hasattr(module, "FAMILY") else ()
    return tuple(getattr(module, "FAMILIES", one))


def without_copies(networks: Sequence[Identified]) -> list[Identified]:
    """Leave out the raw weights of a training checkpoint that holds their moving average beside them."""
    averaged = {each.family.name: each for each in networks if each.prefix.startswith("ema.")}
    kept = [each for each in networks if averaged.get(each.family.name, each) is each]
    for each in networks:
        if each not in kept:
            logger.info("taking the moving average under 'ema.' in the place of %s", each.label)
    return kept


def _without(header: Header, networks: Sequence[Identified]) -> Header:
    """Return the part of a header that none of some networks claims."""
    claimed = frozenset[str]().union(*(each.keys for each in networks))
    return {key: spec for key, spec in header.items() if key not in claimed}


def claimed_keys(checkpoint: Checkpoint, prefix: str, converter: Converter) -> frozenset[str]:
    """Return the keys under a prefix whose first name the table speaks of."""
    roots = converter.roots()
    return frozenset(
        key for key in checkpoint.header if key.startswith(prefix) and key[len(prefix) :].split(".", 1)[0] in roots
    )


def keys_beside(checkpoint: Checkpoint, prefix: str, extras: Sequence[str]) -> frozenset[str]:
    """Return the extras that lie directly under a prefix, or above it."""
    parents = prefix.split(".")[:-1]
    names = (".".join([*parents[:depth], name]) for depth in range(len(parents) + 1) for name in extras)
    return frozenset(names) & checkpoint.header.keys()


def _refuse_double_claims(checkpoint: Checkpoint, found: Sequence[Identified]) -> None:
    for index, first in enumerate(found):
        for second in found[index + 1 :]:
            if both := (first.keys - first.beside) & (second.keys - second.beside):
                raise AmbiguousCheckpoint(
                    checkpoint.path,
                    f"{first.label} and {second.label} both claim {len(both)} keys: {listed(sorted(both))}",
                    f"Say which it is with kind={first.family.name!r} or kind={second.family.name!r} (--as).",
                )


def _read_config(layout: Layout, match: Match) -> Any:
    """Return the config that the measured sizes make.

    Raises:
        ValueError: they make none.
    """
    try:
        return layout.read_config(match)
    except LookupError as error:
        raise ValueError(f"no key tells the size {printable(error.args[0])}") from error


def _near_misses(header: Header, families: Sequence[ModelFamily], least: float) -> list[str]:
    """Say of the two spellings that come closest what they lack, if they have at least this score."""
    tried: list[tuple[float, str]] = []
    for family in families:
        for layout in family.layouts:
            prefixes = layout.signature.possible_prefixes(header)
            best = max((layout.signature.measure(header, prefix) for prefix in prefixes), key=_score)
            if best.score >= least:
                tried.append((best.score, f"{family.name} (layout {layout.name!r}): {_difference(best, layout)}"))
    tried.sort(key=lambda each: -each[0])
    return [line for _, line in tried[:2]]


def _score(match: Match) -> float:
    return match.score


def _difference(match: Match, layout: Layout) -> str:
    parts = []
    if match.missing:
        parts.append(f"missing {listed(match.prefix + text for text in match.missing)}")
    if match.conflicts:
        parts.append("; ".join(printable(text, 200) for text in match.conflicts[:3]))
    if not parts:
        try:
            _read_config(layout, match)
        except ValueError as error:
            parts.append(str(error))
    return "; ".join(parts) or "everything a signature looks at agrees"
