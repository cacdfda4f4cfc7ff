"""The card of the model: what it knows, how it is asked, where it comes from, and how well it does.

python -m examples.emoji_painter.card --figures evaluation.json --recipe run.json --output card.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.emoji_painter.colors import COLORS
from examples.emoji_painter.objects import Thing, things
from examples.emoji_painter.scenes import (
    HELD_OUT_PERCENT,
    MEETING,
    ONE,
    ONE_SHORT,
    PAIR_SIZES,
    SIDE,
    SINGLE_SIZES,
    TWO,
    TWO_SHORT,
)

CFG_SCALE = 2.5  # a small network's outlines dissolve at the 7.5 that pipelines usually take
LICENSE = {
    "weights": "Apache-2.0",
    "pictures": "Noto Color Emoji, SIL Open Font License 1.1, drawn from Debian's fonts-noto-color-emoji",
    "names": "Unicode CLDR (Unicode License v3), from the PyPI package emoji (BSD-3-Clause)",
}


def card(recipe: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card.

    Args:
        recipe: how the networks were trained, such as the configs of the runs.
        figures: what `evaluate` measured.
    """
    return {
        "name": "HunyuanDiT-Emoji",
        "size": [SIDE, SIDE],
        "objects": [_described(each) for each in things() if not each.tint],
        "tinted": [{**_described(each), "tint": each.tint} for each in things() if each.tint],
        "colors": {color.en: {"zh": color.zh, "rgb": list(color.rgb)} for color in COLORS},
        "templates": {
            "one": ONE,
            "two": TWO,
            "one, any color": ONE_SHORT,
            "two, any color": TWO_SHORT,
            "an animal and another": MEETING,
        },
        "placeholders": {
            "a, b": "the objects from left to right, counted: a panda, 一只熊猫",
            "A, B": "their bare names: panda, 熊猫",
            "c": "the color: blue, 蓝色",
            "k": "the color with its article: a blue",
        },
        "data": {
            "single_sizes": list(SINGLE_SIZES),
            "pair_sizes": list(PAIR_SIZES),
            "held_out_percent": HELD_OUT_PERCENT,
        },
        "settings": {"height": SIDE, "width": SIDE, "cfg_scale": CFG_SCALE, "num_inference_steps": 20},
        "license": LICENSE,
        "recipe": dict(recipe),
        "figures": dict(figures),
    }


def _described(thing: Thing) -> dict[str, str]:
    return {"char": thing.char, "en": thing.en, "zh": thing.zh, "measure": thing.measure, "kind": thing.kind}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; several recipes are kept under the names of their files' folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, required=True, help="evaluation.json")
    parser.add_argument("--recipe", type=Path, action="append", default=[], help="run.json of a training; repeatable")
    parser.add_argument("--output", type=Path, default=Path("card.json"))
    chosen = parser.parse_args(arguments)
    recipe = {path.parent.name or path.stem: json.loads(path.read_text("utf-8")) for path in chosen.recipe}
    made = card(recipe, json.loads(chosen.figures.read_text("utf-8")))
    chosen.output.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"{chosen.output}: {len(made['objects'])} objects, {len(made['colors'])} colors")


if __name__ == "__main__":
    main()
