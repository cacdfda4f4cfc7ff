"""Measure whether a control network decides where an object stands: drawings with it and without it.

    python -m examples.emoji_painter.placement --model models/HunyuanDiT-Emoji --control FILE

The outlines are of objects and colours that were never drawn together in training, in sizes and places off the grid
that the model has learnt; prompts do not tell the place. Writes placement.json and placement.png. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from examples.emoji_painter.card import CFG_SCALE
from examples.emoji_painter.evaluate import FIRST_SEED, files_of
from examples.emoji_painter.measure import color_of, extent, recognise
from examples.emoji_painter.scenes import LANGUAGES, SIDE, Scene, caption, random_scene
from examples.emoji_painter.sheet import contact_sheet

NEAR = 8.0  # pixels between two middles that count as one place
SCENES = 48
COLUMNS = 8


@dataclass(frozen=True)
class Drawn:
    """A drawing of a scene, or the scene itself: its picture, the middle and the longer side of what is on it."""

    image: Image.Image
    middle: tuple[float, float] | None
    side: float

    @classmethod
    def of(cls, image: Image.Image) -> Drawn:
        """Measure a picture."""
        box = extent(image)
        if box is None:
            return cls(image, None, 0.0)
        left, top, right, bottom = box
        return cls(image, ((left + right) / 2, (top + bottom) / 2), float(max(right - left, bottom - top)))

    def distance(self, other: Drawn) -> float:
        """Return the pixels between two middles; infinite if there is nothing on one of the pictures."""
        if self.middle is None or other.middle is None:
            return math.inf
        return math.dist(self.middle, other.middle)


def scenes(count: int) -> list[Scene]:
    """Return scenes of one object each, of combinations that are held out, anywhere."""
    rng = Random(7)
    return [random_scene(rng, objects=1, held_out=True).anywhere(rng) for _ in range(count)]


def draw(pipe: HunyuanDiTImagePipeline, scene: Scene, prompt: str, number: int, scale: float | None) -> Image.Image:
    """Draw a prompt, guided by a scene's edges at a scale, or without them."""
    settings: dict[str, Any] = {"height": SIDE, "width": SIDE, "cfg_scale": CFG_SCALE, "num_inference_steps": 20}
    if scale is not None:
        settings |= {"controlnet_images": scene.draw(), "controlnet_scales": scale, "controlnet_processors": "canny"}
    image: Image.Image = pipe(prompt, seed=FIRST_SEED + number, **settings)
    return image


def figures(wanted: Sequence[Scene], drawn: Sequence[Image.Image]) -> dict[str, float | None]:
    """Return how many of the drawings have their object in its place, of its size, and are what was asked for."""
    shares = {"place": 0, "size": 0, "object": 0, "background": 0}
    distances = []
    for scene, image in zip(wanted, drawn, strict=True):
        outline, found = Drawn.of(scene.draw()), Drawn.of(image)
        seen = recognise(image)
        distances.append(outline.distance(found))
        shares["place"] += distances[-1] <= NEAR
        shares["size"] += abs(found.side - outline.side) <= NEAR
        shares["object"] += seen is not None and seen.thing == scene.things[0]
        shares["background"] += color_of(image) == scene.color
    middle = sorted(distances)[len(distances) // 2]
    percent = {name: round(100 * value / len(wanted), 1) for name, value in shares.items()}
    return {"count": len(wanted), **percent, "middle distance": round(middle, 1) if math.isfinite(middle) else None}


def evaluate(
    pipe: HunyuanDiTImagePipeline, count: int = SCENES, scale: float = 1.0
) -> tuple[dict[str, Any], Image.Image]:
    """Return the figures, and a sheet: outlines above drawings with control above drawings without it."""
    wanted, rng = scenes(count), Random(11)
    prompts = [caption(scene, LANGUAGES[number % 2], rng, complete=True) for number, scene in enumerate(wanted)]
    drawn = {
        name: [draw(pipe, scene, prompts[number], number, how) for number, scene in enumerate(wanted)]
        for name, how in (("with control", scale), ("without", None))
    }
    found = {name: figures(wanted, images) for name, images in drawn.items()}
    rows = [(f"wanted: {scene.things[0].en}, {scene.color.en}", scene.draw()) for scene in wanted[:COLUMNS]]
    for name, images in drawn.items():
        rows += [(name, image) for image in images[:COLUMNS]]
    return {"near": NEAR, "scale": scale, "first_seed": FIRST_SEED, **found}, contact_sheet(rows, COLUMNS)


def load(model: Path, control: Path) -> HunyuanDiTImagePipeline:
    """Return the pipeline of a folder with the model, and a control network: a file, or a folder that holds one."""
    found = [control] if control.is_file() else sorted(control.rglob("*.safetensors"))
    manager = ModelManager(torch.float32, file_path_list=[*files_of(model), *found])
    return HunyuanDiTImagePipeline.from_model_manager(manager)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with the model, t2i/ inside or itself")
    parser.add_argument("--control", type=Path, required=True, help="the control network, or the folder it lies in")
    parser.add_argument("--output", type=Path, default=Path(), help="folder that gets placement.json and .png")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the control network")
    chosen = parser.parse_args(arguments)
    found, sheet = evaluate(load(chosen.model, chosen.control), chosen.scenes, chosen.scale)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "placement.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    sheet.save(chosen.output / "placement.png")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
