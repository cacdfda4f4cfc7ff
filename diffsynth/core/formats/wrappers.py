"""Where in a torch file the dict of tensors lies: at its top, or wrapped by the program that saved it."""

from __future__ import annotations

import logging
from pathlib import Path

from diffsynth.core.formats.pickle_data import Global, Opaque
from diffsynth.core.formats.torch_pickle import TensorView
from diffsynth.errors import UnsupportedCheckpoint, listed

logger = logging.getLogger(__name__)

# Where tensors may lie below the top, the preferred first: averaged weights draw better images. The last is where
# textual inversions have theirs.
WRAPPERS = ("ema", "params_ema", "state_dict", "model_state_dict", "model", "module", "state", "string_to_param")


def find_tensors(top: object, path: Path) -> tuple[dict[str, TensorView], str]:
    """Return the named tensors of a torch file's value, and the wrapper they were found under.

    They lie in a dict: at the top, or at most two levels below under one of ``WRAPPERS``. Where several places
    hold tensors, the first of ``WRAPPERS`` wins, unless it has less than half as many as another place. Where none
    does, they may lie one level deeper, in several dicts: a dot joins the name of each with those inside.

    Raises:
        UnsupportedCheckpoint: there are no tensors in these places, or their names are no text.
    """
    places = {name: found for name, value in _places(top) if (found := _tensors(value))} or {
        name: found for name, value in _places(top) if (found := _tensors_in_parts(value))
    }
    if not places:
        problem = f"holds {describe(top)}, not a mapping of names to tensors"
        raise UnsupportedCheckpoint(path, problem, "Give the file that holds the weights.")
    largest = max(map(len, places.values()))
    wrapper = next(name for name, found in places.items() if 2 * len(found) >= largest)
    if len(places) > 1:
        others = [name or "the top" for name in places if name != wrapper]
        logger.info("%s: took the tensors under %s, left those under %s", path, wrapper or "the top", listed(others))
    tensors: dict[str, TensorView] = {}
    for key, value in places[wrapper].items():
        if not isinstance(key, str):
            problem = f"has a tensor under {describe(key)} instead of a name"
            raise UnsupportedCheckpoint(path, problem, "Save it as a mapping of names to tensors.")
        tensors[key] = value
    return tensors, wrapper


def _places(top: object) -> list[tuple[str, object]]:
    """List where tensors may lie, the preferred place first; the top itself comes last, under an empty name."""
    if not isinstance(top, dict):
        return []
    below = [(name, top[name]) for name in WRAPPERS if isinstance(top.get(name), dict)]
    deeper = [
        (f"{outer}.{name}", value[name])
        for outer, value in below
        for name in WRAPPERS
        if isinstance(value.get(name), dict)
    ]
    return [*below, *deeper, ("", top)]


def _tensors(value: object) -> dict[object, TensorView]:
    return {key: item for key, item in value.items() if isinstance(item, TensorView)} if isinstance(value, dict) else {}


def _tensors_in_parts(value: object) -> dict[object, TensorView]:
    """Return the tensors of dicts inside a dict under joined names; none if a joined name comes twice."""
    parts = {name: _tensors(part) for name, part in value.items()} if isinstance(value, dict) else {}
    named = {name: part for name, part in parts.items() if isinstance(name, str)}
    joined = {
        f"{name}.{key}" if isinstance(key, str) else key: tensor
        for name, part in named.items()
        for key, tensor in part.items()
    }
    return joined if len(joined) == sum(map(len, named.values())) else {}


def describe(value: object) -> str:
    """Say in a few words what a value of a pickle is, without walking through it."""
    match value:
        case None:
            return "nothing (None)"
        case dict() if not value:
            return "an empty dict"
        case dict():
            names = (key if isinstance(key, str) else type(key).__name__ for key in value)
            return f"a dict of {listed(names)}"
        case list() | tuple():
            return f"a {type(value).__name__} of {len(value)}"
        case TensorView():
            return "one tensor without a name"
        case Opaque():
            return "an object"
        case Global():
            return f"the name {value}"
    return f"a value of the type {type(value).__name__}"
