"""Draw with a model and measure whether it drew what was asked.

    python -m examples.emoji_painter.evaluate --model models/HunyuanDiT-Emoji

Writes evaluation.json and evaluation.png, a sheet of Chinese and English prompts. Seeds and scenes are fixed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from diffsynth.pipelines.latents import image_to_pixels, pixels_to_images
from examples.emoji_painter.card import CFG_SCALE
from examples.emoji_painter.colors import COLORS
from examples.emoji_painter.measure import color_of, recognise, recognise_pair
from examples.emoji_painter.objects import things
from examples.emoji_painter.scenes import (
    LANGUAGES,
    ONE_SHORT,
    SIDE,
    Scene,
    arrange,
    caption,
    fill,
    is_held_out,
    random_scene,
)
from examples.emoji_painter.sheet import contact_sheet

PARTS = ("clip_text_encoder", "mt5", "model", "sdxl-vae-fp16-fix")
ENDINGS = (".safetensors", ".bin", ".pt")
FIRST_SEED = 1000
UNKNOWN = {
    "en": (
        "a blorgon on a blue background",
        "xyzzy",
        "quarterly tax report, green background",
        "??? !!! 12345",
        "é ß ñ",
    ),
    "zh": ("一只魑魅，蓝色背景", "量子力学", "龘龘龘，绿色背景", "。。。", "一张没有意义的表格"),
}


@dataclass(frozen=True)
class Result:
    """A drawing and what was measured in it."""

    scene: Scene
    prompt: str
    image: Image.Image
    right_objects: bool
    right_color: bool
    clean: bool


@dataclass(frozen=True)
class Painter:
    """A pipeline with the settings that everything is measured with."""

    pipe: HunyuanDiTImagePipeline
    steps: int = 20
    cfg_scale: float = CFG_SCALE

    def draw(self, prompts: Sequence[str], **settings: Any) -> list[Image.Image]:
        """Return a picture of each prompt; prompt k has always the same seed."""
        known = {"num_inference_steps": self.steps, "cfg_scale": self.cfg_scale, **settings}
        return list(self.pipe(list(prompts), height=SIDE, width=SIDE, seed=FIRST_SEED, batch_size=16, **known))


def load(folder: Path) -> HunyuanDiTImagePipeline:
    """Return the pipeline of a folder in the published layout, in float32; see `files_of`."""
    return HunyuanDiTImagePipeline.from_model_manager(ModelManager(torch.float32, file_path_list=files_of(folder)))


def files_of(folder: Path) -> list[Path]:
    """Return the weights in a folder in the published layout, with or without ``t2i``.

    Raises:
        SystemExit: a part is missing.
    """
    root = folder / "t2i" if (folder / "t2i").is_dir() else folder
    files = []
    for part in PARTS:
        found = sorted(path for path in (root / part).glob("*") if path.suffix in ENDINGS)
        if not found:
            raise SystemExit(f"{root / part} has no weights ({', '.join(ENDINGS)})")
        files.append(found[0])
    return files


def single_scenes(*, held_out: bool, count: int) -> list[Scene]:
    """Return ``count`` scenes of one object that were or were not in training, every object as often as possible."""
    rng = Random(f"single {held_out}")
    known = [
        [arrange((thing,), color, rng) for color in COLORS if is_held_out((thing,), color) == held_out]
        for thing in things()
    ]
    rng.shuffle(known)
    for scenes in known:
        rng.shuffle(scenes)
    turns = (scenes[turn] for turn in range(len(COLORS)) for scenes in known if turn < len(scenes))
    return list(islice(turns, count))


def pair_scenes(*, held_out: bool, count: int) -> list[Scene]:
    """Return ``count`` scenes of two objects that were or were not in training."""
    rng = Random(f"pair {held_out}")
    return [random_scene(rng, objects=2, held_out=held_out) for _ in range(count)]


def measure(scene: Scene, prompt: str, image: Image.Image) -> Result:
    """Compare a drawing with the scene that was asked for."""
    seen = (recognise(image),) if len(scene.placed) == 1 else recognise_pair(image)
    names = tuple(each.thing if each else None for each in seen)
    clean = all(each is not None and each.is_clean for each in seen)
    return Result(scene, prompt, image, names == scene.things, color_of(image) == scene.color, clean)


def paint(painter: Painter, scenes: Sequence[Scene], language: str, **settings: Any) -> list[Result]:
    """Ask for scenes in one language and measure what is drawn."""
    rng = Random(f"captions {language}")
    prompts = [caption(scene, language, rng, complete=True) for scene in scenes]
    images = painter.draw(prompts, **settings)
    return [measure(*each) for each in zip(scenes, prompts, images, strict=True)]


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return the shares in percent."""
    return {
        "count": len(results),
        "object": percent(each.right_objects for each in results),
        "background": percent(each.right_color for each in results),
        "clean": percent(each.clean for each in results),
    }


def percent(values: Iterable[bool]) -> float:
    """Return how many percent are true."""
    known = list(values)
    return round(100 * sum(known) / len(known), 1)


@torch.no_grad()
def autoencoder(pipe: HunyuanDiTImagePipeline, count: int) -> dict[str, Any]:
    """Pass held-out scenes through the autoencoder: mean PSNR in dB, and what can still be recognised."""
    scenes = [*single_scenes(held_out=True, count=count // 2), *pair_scenes(held_out=True, count=count - count // 2)]
    decibels, results = [], []
    for scene in scenes:
        pixels = image_to_pixels(scene.draw(), SIDE, SIDE).to(pipe.device)
        back = pipe.vae.decode(pipe.vae.encode(pixels).mean).clamp(-1, 1)
        decibels.append(-10 * float(((back - pixels) / 2).square().mean().clamp_min(1e-10).log10()))
        results.append(measure(scene, "", pixels_to_images(back.float(), truncate=False)[0]))
    return {"psnr": round(float(np.mean(decibels)), 2), "lowest": round(min(decibels), 2), **summary(results)}


def reliability(count: int) -> dict[str, Any]:
    """Measure the measure: what it finds in scenes as they are drawn by hand, blurred, and noisy."""
    noise = np.random.default_rng(0)
    ways: dict[str, Callable[[Image.Image], Image.Image]] = {
        "as drawn": lambda image: image,
        "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        "noisy": lambda image: Image.fromarray(
            np.clip(np.asarray(image) + noise.normal(0, 10, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        ),
    }
    scenes = [*single_scenes(held_out=False, count=count), *pair_scenes(held_out=False, count=count)]
    return {name: summary([measure(scene, "", way(scene.draw())) for scene in scenes]) for name, way in ways.items()}


def effects(painter: Painter, count: int) -> dict[str, Any]:
    """Measure what unknown words, the negative prompt and guidance do."""
    unknown = [text for language in LANGUAGES for text in UNKNOWN[language]]
    clean = [each is not None and each.is_clean for each in map(recognise, painter.draw(unknown))]

    scenes = single_scenes(held_out=False, count=count)
    plain = [fill(ONE_SHORT["en"][1], scene, "en") for scene in scenes]
    before = [color_of(image) for image in painter.draw(plain)]
    negatives = [f"{color.en} background" if color else "" for color in before]
    after = [color_of(image) for image in painter.draw(plain, negative_prompt=negatives)]
    left = [now != color for now, color in zip(after, before, strict=True) if color]
    return {
        "unknown words, clean": percent(clean),
        "negative prompt, background avoided": percent(left) if left else 0.0,
        "cfg_scale 1": summary(paint(painter, scenes, "en", cfg_scale=1.0)),
        "cfg_scale as measured": summary(paint(painter, scenes, "en")),
        "cfg_scale 7.5": summary(paint(painter, scenes, "en", cfg_scale=7.5)),
    }


def evaluate(painter: Painter, *, singles: int = 138, pairs: int = 100) -> tuple[dict[str, Any], Image.Image]:
    """Return all figures, and a sheet of drawings.

    Args:
        painter: draws.
        singles: scenes of one object of each kind, in each language.
        pairs: scenes of two objects.
    """
    start, columns = time.perf_counter(), min(12, singles, pairs)
    kinds = {
        "one object, seen": single_scenes(held_out=False, count=singles),
        "one object, held out": single_scenes(held_out=True, count=singles),
        "two objects, seen": pair_scenes(held_out=False, count=pairs),
        "two objects, held out": pair_scenes(held_out=True, count=pairs),
    }
    figures: dict[str, Any] = {"steps": painter.steps, "cfg_scale": painter.cfg_scale, "first_seed": FIRST_SEED}
    figures["measure"] = reliability(pairs)
    figures["autoencoder"] = autoencoder(painter.pipe, pairs)
    drawn: list[tuple[str, Image.Image]] = []
    for kind, scenes in kinds.items():
        results = {language: paint(painter, scenes, language) for language in LANGUAGES}
        figures[kind] = {language: summary(each) for language, each in results.items()}
        for language, each in results.items():
            drawn += [(f"{language}: {fill_en(one.scene)}", one.image) for one in each[:columns]]
    figures["effects"] = effects(painter, max(1, pairs // 2))
    figures["seconds"] = round(time.perf_counter() - start)
    return figures, contact_sheet(drawn, columns)


def fill_en(scene: Scene) -> str:
    """Return a short English label, whatever the language of the prompt."""
    return f"{' + '.join(each.en for each in scene.things)}, {scene.color.en}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder with the model, t2i/ inside or itself")
    parser.add_argument("--output", type=Path, default=Path(), help="folder that gets evaluation.json and .png")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg-scale", type=float, default=CFG_SCALE, help=f"usually {CFG_SCALE}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the scenes")
    chosen = parser.parse_args(arguments)
    painter = Painter(load(chosen.model), chosen.steps, chosen.cfg_scale)
    counts = {"singles": 14, "pairs": 10} if chosen.quick else {}
    figures, sheet = evaluate(painter, **counts)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    sheet.save(chosen.output / "evaluation.png")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
