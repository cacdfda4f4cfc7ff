"""Headers of released files: keys and shapes without weights, from the folded JSON files in ``headers``."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

FOLDER = Path(__file__).parent / "headers"
LAYOUTS = Path(__file__).parents[2] / "shared" / "facts" / "layouts"

Shapes = dict[str, tuple[int, ...]]

_NUMBERS = re.compile(r"\{([0-9,-]+)\}")


@dataclass(frozen=True)
class Released:
    """What is known of one released file: where it lies, the fact sheet of its keys, its signature, its tensors."""

    name: str
    origin: str
    facts: str
    signature: str
    shapes: Shapes


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def read(name: str) -> Released:
    content = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    shapes = {key: tuple(shape) for text, shape in content["tensors"].items() for key in expand(text)}
    return Released(name, content["origin"], content["facts"], content["signature"], shapes)


def expand(text: str) -> Iterator[str]:
    """Turn ``blocks.{0-2,5}.weight`` into the four keys it stands for."""
    parts = _NUMBERS.split(text)
    choices = [[part] if index % 2 == 0 else _numbers(part) for index, part in enumerate(parts)]
    return ("".join(chosen) for chosen in product(*choices))


def _numbers(text: str) -> list[str]:
    spans = [part.split("-") for part in text.split(",")]
    return [str(number) for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]


def signature(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the md5 by which DiffSynth 1.x recognises a file: of its keys, with and without shapes, sorted."""
    with_shapes = (f"{key}:{'_'.join(map(str, shape))}" for key, shape in shapes.items())
    return hashlib.md5(",".join(sorted([*with_shapes, *shapes])).encode()).hexdigest()


def write_hollow(shapes: Mapping[str, tuple[int, ...]], path: Path, *, dtype: str = "F16", itemsize: int = 2) -> Path:
    """Write a safetensors file of full size whose tensors are a hole: it has a header and takes no room on disk."""
    entries, position = {}, 0
    for key, shape in shapes.items():
        end = position + math.prod(shape) * itemsize
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + position)
    return path


def beneath(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {prefix + key: shape for key, shape in shapes.items()}
