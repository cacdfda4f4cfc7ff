"""Which of the loaded networks a LoRA was made for, told by names and shapes of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from diffsynth.core.checkpoint import Checkpoint
from diffsynth.errors import AdapterMismatch, AmbiguousModel
from diffsynth.lora.formats import Pair
from diffsynth.lora.names import Fit, N, Network, Place, fit


@dataclass(eq=False)
class Choice(Generic[N]):
    """The networks that were chosen.

    Args:
        checkpoint: the LoRA's file.
        tried: what surrounds the names of some of its layers → how these fit each network.
        fits: the same → how they fit the one that was chosen.
    """

    checkpoint: Checkpoint
    tried: dict[str, list[Fit[N]]]
    fits: dict[str, Fit[N]]

    @property
    def found(self) -> dict[Pair, tuple[N, Place]]:
        """The network and place of each change that has one."""
        return {pair: (each.network, place) for each in self.fits.values() for pair, place in each.found.items()}

    def mismatch(self, left: Sequence[Pair], strays: Sequence[str], remedy: str, partly: str = "") -> AdapterMismatch:
        """Say which changes and further keys fit nowhere, and what is nearest.

        Args:
            left: the changes.
            strays: the keys.
            remedy: what to do, a sentence.
            partly: what takes those that do fit, if anything does.
        """
        unmatched: dict[str, str] = {}
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for pair in left:
            outer = pair.places[0]
            candidates = [self.fits[outer]] if outer in self.fits else self.tried[outer]
            wrong = [one.wrong[pair] for one in candidates if pair in one.wrong]
            if wrong:
                shapes[pair.name] = wrong[0].shape, pair.shape
            else:
                near = (one.nearest(pair) for one in candidates if len(unmatched) < NAMED)
                unmatched[pair.name] = next(filter(None, near), "")
        unmatched |= dict.fromkeys(strays, "")
        networks = {id(each): each.label for each in (one.network for one in self.fits.values())}
        labels = list(networks.values()) or [one.network.label for one in next(iter(self.tried.values()))]
        fitting, total = len(self.found), len(self.found) + len(left)
        if 2 * fitting >= total:
            remedy += f" {fitting} of its {total} layers fit" + (f"; {partly} takes those." if partly else ".")
        elif fitting:
            remedy += f" No more than {fitting} of its {total} layers fit."
        return AdapterMismatch(self.checkpoint.path, labels, unmatched=unmatched, shapes=shapes, remedy=remedy)


NAMED = 5  # of the changes without a place, so many are told what is nearest, which takes a while to find


def choose(checkpoint: Checkpoint, pairs: Sequence[Pair], networks: Sequence[N]) -> Choice[N]:
    """Choose, for the layers under each outer name, the network that has most of them.

    Of several, the one that lies beside those chosen for the other layers.

    Raises:
        AmbiguousModel: several are left.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.places[0], []).append(pair)
    known: list[tuple[N, dict[str, dict[str, Place]]]] = [(network, {}) for network in networks]
    tried = {outer: [fit(group, *each) for each in known] for outer, group in groups.items()}
    best: dict[str, list[Fit[N]]] = {}
    for outer, each in tried.items():
        most = max(len(one.found) for one in each)
        best[outer] = _originals([one for one in each if most and len(one.found) == most])
    certain = [several[0].network for several in best.values() if len(several) == 1]
    chosen: dict[str, Fit[N]] = {}
    for outer, several in best.items():
        rivals = [one for one in several if any(_beside(one.network, network) for network in certain)] or several
        if len(rivals) > 1:
            named = f"the LoRA {checkpoint.path}" + (f" (its keys {outer}…)" if outer else "")
            raise AmbiguousModel(named, [one.network.label for one in rivals])
        if rivals:
            chosen[outer] = rivals[0]
    return Choice(checkpoint, tried, chosen)


def _originals(several: Sequence[Fit[N]]) -> list[Fit[N]]:
    """Leave out networks that have the layers as copies of another's, such as control networks beside a denoiser."""
    families = {one.network.family.name for one in several}
    return [one for one in several if one.network.family.copies not in families]


def _beside(one: Network, other: Network) -> bool:
    """Whether networks lie in one file, or in folders that lie in one folder."""
    paths = [network.path.absolute() for network in (one, other)]
    return paths[0] == paths[1] or (all(path.is_dir() for path in paths) and paths[0].parent == paths[1].parent)
