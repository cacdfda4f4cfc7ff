"""Draw a sheet of Chinese and English prompts with the small model that comes along.

python examples/contact_sheet.py -o image.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from diffsynth import DiffSynthError, HunyuanDiTImagePipeline, ModelManager, download_models
from diffsynth.pipelines.lettering import Lettering

# Each with its English wording, for a system without a Chinese font.
PROMPTS = {
    "一只熊猫，蓝色背景": "a panda, blue background",
    "a fox on a green background": "",
    "一只獾轻轻嗅着一朵黄色玫瑰": "a badger gently sniffing a yellow rose",
    "a rocket, black background": "",
    "粉色背景上的一个甜甜圈": "a doughnut on a pink background",
    "a penguin on the left, a snowman on the right, blue background": "",
    "左边一只老虎，右边一顶皇冠，紫色背景": "a tiger on the left, a crown on the right, purple background",
    "a picture of a sailboat on an orange background": "",
    "一头狮子在红色背景上": "a lion on a red background",
    "a frog looking at a mushroom, white background": "",
    "一只猫头鹰和一轮月亮，灰色背景": "an owl and a moon, gray background",
    "watermelon on yellow": "",
}
COLUMNS, SIDE, SHOWN = 4, 128, 256  # pictures in a row; pixels of a picture as drawn, and on the sheet
LETTER, LINE, GAP = 16, 21, 12


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures out in rows, each over its prompt."""
    letters = Lettering(LETTER)
    chinese = all(map(letters.can_show, PROMPTS))
    across, down = SHOWN + GAP, SHOWN + 3 * LINE
    page = Image.new("RGB", (COLUMNS * across + GAP, -(-len(images) // COLUMNS) * down + LINE), "white")
    draw = ImageDraw.Draw(page)
    for number, (image, (prompt, english)) in enumerate(zip(images, PROMPTS.items(), strict=True)):
        x, y = GAP + number % COLUMNS * across, GAP + number // COLUMNS * down
        page.paste(image.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS), (x, y))
        text = prompt if chinese or not english else f"[{english}]"
        for row, line in enumerate(letters.lines(text, SHOWN)):
            letters.write(draw, (x, y + SHOWN + 4 + row * LINE), line, "black")
    if not chinese:
        letters.write(draw, (GAP, page.height - LINE), "[in brackets: asked in Chinese]", "gray")
    return page


def draw() -> list[Image.Image]:
    """Draw every prompt; picture k has seed k."""
    manager = ModelManager(torch.float32, file_path_list=download_models(["HunyuanDiT-Emoji"]))
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    return list(
        pipe(
            list(PROMPTS),
            scheduler="unipc",
            num_inference_steps=20,
            cfg_scale=2.5,
            height=SIDE,
            width=SIDE,
            seed=0,
            batch_size=len(PROMPTS),
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a sheet of Chinese and English prompts.")
    parser.add_argument("-o", "--output", type=Path, default=Path("contact_sheet.png"))
    chosen = parser.parse_args()
    try:
        sheet(draw()).save(chosen.output)
    except DiffSynthError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    print(chosen.output)
