"""Make a finished training the model that comes with the package.

    python -m examples.emoji_painter.bundle RUN/final --evaluation evaluation.json --autoencoder RUN/final/...

Writes networks in float16, vocabularies, licence and card to diffsynth/hub/bundled/HunyuanDiT-Emoji.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from diffsynth import ModelManager
from diffsynth.core.saving import save_network
from diffsynth.hub import bundled
from diffsynth.hub.catalog import CATALOG
from diffsynth.training.state import write_folder
from diffsynth.training.whole import FILES
from examples.emoji_painter.card import card

MODEL_ID = "HunyuanDiT-Emoji"
HOME = Path(bundled.__file__).parent
LICENSE_TEXT = Path(__file__).with_name("model_license.txt")
MOST_BYTES = 40_000_000
RECIPE = "training"  # the text in a saved network's header that tells how it was trained
VOCABULARIES = tuple(name.removeprefix(f"{MODEL_ID}/t2i/") for name in CATALOG[MODEL_ID].vocabularies)


def bundle(result: Path, figures: Mapping[str, Any], *, autoencoder: Path | None = None, home: Path = HOME) -> Path:
    """Write the model's folder; one that is there is replaced when the new one is complete.

    Args:
        result: folder of finished networks, as the trainer writes it.
        figures: what `evaluate` measured.
        autoencoder: its own training's file, whose header tells how it was trained; by default that of ``result``.
        home: where the folder is written.

    Returns:
        The folder.

    Raises:
        SystemExit: weights are too large for float16, or all files together for the package.
        CheckpointError: a file cannot be used.
    """
    sources = {name: result / file for name, file in FILES.items()}
    if autoencoder is not None:
        sources["autoencoder"] = autoencoder
    return write_folder(home / MODEL_ID, partial(_write, result, sources, figures))


def _write(result: Path, sources: Mapping[str, Path], figures: Mapping[str, Any], folder: Path) -> None:
    root, recipes = folder / "t2i", {}
    for name, source in sources.items():
        recipes[name] = write_network(source, root / FILES[name])
    for vocabulary in VOCABULARIES:
        (root / vocabulary).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result / vocabulary, root / vocabulary)
    shutil.copyfile(LICENSE_TEXT, folder / "LICENSE")
    recipe = {"denoiser and text encoders": recipes["denoiser"], "autoencoder": recipes["autoencoder"]}
    text = json.dumps(card(recipe, figures), indent=2, ensure_ascii=False) + "\n"
    (folder / "card.json").write_text(text, "utf-8")
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        raise SystemExit(f"the model has {size / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB of a package")


def write_network(source: Path, target: Path) -> Any:
    """Write the one network of a file in float16, and return how it was trained."""
    manager = ModelManager(torch.float16, device="cpu")
    [entry] = manager.load_model(source, torch_dtype=torch.float16)
    too_large = [key for key, weight in entry.module.state_dict().items() if not weight.isfinite().all()]
    if too_large:
        raise SystemExit(f"{source}: {len(too_large)} weights overflow in float16, such as {too_large[0]}")
    recipe = _without_folders(json.loads(entry.checkpoint.metadata.get(RECIPE, "{}")))
    metadata = {RECIPE: json.dumps(recipe, ensure_ascii=False)}
    save_network(entry.module, entry.family, entry.config, target, entry.family.layouts[0].name, metadata)
    return recipe


def _without_folders(value: Any) -> Any:
    """Return a recipe with the bare names of files: where they lay on one machine tells others nothing."""
    if isinstance(value, dict):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return PurePosixPath(value).name if isinstance(value, str) and value.startswith("/") else value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="folder of finished networks")
    parser.add_argument("--evaluation", type=Path, help="evaluation.json; without it the card has no figures")
    parser.add_argument("--autoencoder", type=Path, help="file of the autoencoder's own training")
    parser.add_argument("--home", type=Path, default=HOME, help="by default inside the package")
    chosen = parser.parse_args(arguments)
    figures = json.loads(chosen.evaluation.read_text("utf-8")) if chosen.evaluation else {}
    folder = bundle(chosen.result, figures, autoencoder=chosen.autoencoder, home=chosen.home)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB" + ("" if figures else "; no figures in the card yet, see --evaluation"))


if __name__ == "__main__":
    main()
