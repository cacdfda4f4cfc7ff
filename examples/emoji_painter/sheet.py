"""Contact sheets: many pictures with a line of text under each.

python -m examples.emoji_painter.sheet FOLDER      writes FOLDER/objects.png and FOLDER/scenes.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

from diffsynth.pipelines.lettering import Lettering
from examples.emoji_painter.colors import COLORS
from examples.emoji_painter.objects import things
from examples.emoji_painter.scenes import arrange, caption, random_scene

GAP = 4
LINE = 12
LINES = 3
LETTER = 9


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]], columns: int = 8) -> Image.Image:
    """Return pictures of one size in rows, each over its text, which is cut to three lines."""
    width, height = pictures[0][1].size
    across, down = width + GAP, height + LINES * LINE + GAP
    sheet = Image.new("RGB", (columns * across, -(-len(pictures) // columns) * down), "white")
    draw, letters = ImageDraw.Draw(sheet), Lettering(LETTER)
    for index, (text, picture) in enumerate(pictures):
        x, y = index % columns * across, index // columns * down
        sheet.paste(picture, (x, y))
        for line, part in enumerate(letters.lines(text, width, LINES)):
            letters.write(draw, (x, y + height + line * LINE), part, "black")
    return sheet


def main(folder: Path) -> None:
    """Write a sheet of all objects and one of scenes with their English captions."""
    rng = Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    objects = [arrange((thing,), COLORS[number % len(COLORS)], rng) for number, thing in enumerate(things())]
    contact_sheet([(scene.things[0].en, scene.draw()) for scene in objects], 12).save(folder / "objects.png")
    scenes = [random_scene(rng) for _ in range(48)]
    contact_sheet([(caption(scene, "en", rng), scene.draw()) for scene in scenes]).save(folder / "scenes.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
