"""Make a trained control network the one that comes with the package.

    python -m examples.emoji_painter.bundle_control RUN/final/controlnet/FILE --placement placement.json

Writes it in float16, with licence and card, to diffsynth/hub/bundled/HunyuanDiT-Emoji-ControlNet.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffsynth.hub.catalog import CATALOG
from diffsynth.training.state import write_folder
from examples.emoji_painter.bundle import HOME, LICENSE_TEXT, write_network
from examples.emoji_painter.card import CFG_SCALE, LICENSE
from examples.emoji_painter.scenes import ANY_SIZES, SIDE

MODEL_ID = "HunyuanDiT-Emoji-ControlNet"
MOST_BYTES = 6_000_000


def bundle(source: Path, figures: Mapping[str, Any], home: Path = HOME) -> Path:
    """Write the network's folder; one that is there is replaced when the new one is complete.

    Args:
        source: the file that the trainer has written.
        figures: what `placement` measured.
        home: where the folder is written.

    Returns:
        The folder.

    Raises:
        SystemExit: weights are too large for float16, or the file for the package.
        CheckpointError: the file cannot be used.
    """
    return write_folder(home / MODEL_ID, partial(_write, source, figures))


def card(recipe: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the network is, how it is used, where it comes from, and how well it does."""
    return {
        "name": MODEL_ID,
        "base": "HunyuanDiT-Emoji",
        "hint": 'edges by Canny\'s method, white on black, as controlnet_processors="canny" makes them of a picture',
        "data": {"objects": 1, "sizes": list(ANY_SIZES), "places": "anywhere"},
        "settings": {"height": SIDE, "width": SIDE, "cfg_scale": CFG_SCALE, "num_inference_steps": 20},
        "license": LICENSE,
        "recipe": dict(recipe),
        "figures": dict(figures),
    }


def _write(source: Path, figures: Mapping[str, Any], folder: Path) -> None:
    (name,) = CATALOG[MODEL_ID].weights
    target = folder / Path(name).relative_to(MODEL_ID)
    recipe = write_network(source, target)
    if target.stat().st_size > MOST_BYTES:
        raise SystemExit(
            f"{target.stat().st_size / 1e6:.1f} MB are more than the {MOST_BYTES / 1e6:.0f} MB of a package"
        )
    shutil.copyfile(LICENSE_TEXT, folder / "LICENSE")
    text = json.dumps(card(recipe, figures), indent=2, ensure_ascii=False) + "\n"
    (folder / "card.json").write_text(text, "utf-8")
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="file of the trained control network")
    parser.add_argument("--placement", type=Path, help="placement.json; without it the card has no figures")
    parser.add_argument("--home", type=Path, default=HOME, help="by default inside the package")
    chosen = parser.parse_args(arguments)
    figures = json.loads(chosen.placement.read_text("utf-8")) if chosen.placement else {}
    folder = bundle(chosen.source, figures, chosen.home)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB" + ("" if figures else "; no figures in the card yet, see --placement"))


if __name__ == "__main__":
    main()
