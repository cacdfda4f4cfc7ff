"""Draw a sheet of Chinese and English prompts with the small model that comes along.

python examples/contact_sheet.py -o image.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from diffsynth import DiffSynthError, HunyuanDiTImagePipeline, ModelManager, download_models

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
FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
         "Hiragino Sans GB.ttc", "STHeiti Medium.ttc", "msyh.ttc", "simsun.ttc")  # fmt: skip

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def chinese_font() -> Font | None:
    """Return a font with Chinese characters, if the system has one."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, LETTER)
        except OSError:
            continue
    return None


def lines(text: str, font: Font, width: int) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, between words or Chinese characters."""
    parts, glue = (text.split(" "), " ") if text.isascii() else (list(text), "")
    rows = [parts[0]]
    for part in parts[1:]:
        longer = rows[-1] + glue + part
        rows = [*rows[:-1], longer] if font.getlength(longer) <= width else [*rows, part]
    return rows


def sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures out in rows, each over its prompt."""
    chinese, plain = chinese_font(), ImageFont.load_default(LETTER)
    across, down = SHOWN + GAP, SHOWN + 3 * LINE
    page = Image.new("RGB", (COLUMNS * across + GAP, -(-len(images) // COLUMNS) * down + LINE), "white")
    draw = ImageDraw.Draw(page)
    for number, (image, (prompt, english)) in enumerate(zip(images, PROMPTS.items(), strict=True)):
        x, y = GAP + number % COLUMNS * across, GAP + number // COLUMNS * down
        page.paste(image.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS), (x, y))
        font = chinese or plain
        text = prompt if chinese or not english else f"[{english}]"
        for row, line in enumerate(lines(text, font, SHOWN)):
            draw.text((x, y + SHOWN + 4 + row * LINE), line, fill="black", font=font)
    if not chinese:
        draw.text((GAP, page.height - LINE), "[in brackets: asked in Chinese]", fill="gray", font=plain)
    return page


def draw() -> list[Image.Image]:
    """Draw every prompt; picture k has seed k."""
    manager = ModelManager(torch.float32, file_path_list=download_models(["HunyuanDiT-Emoji"]))
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    settings = {"scheduler": "unipc", "num_inference_steps": 20, "cfg_scale": 2.5, "height": SIDE, "width": SIDE}
    return list(pipe(list(PROMPTS), seed=0, batch_size=len(PROMPTS), **settings))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw a sheet of Chinese and English prompts.")
    parser.add_argument("-o", "--output", type=Path, default=Path("contact_sheet.png"))
    chosen = parser.parse_args()
    try:
        sheet(draw()).save(chosen.output)
    except DiffSynthError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    print(chosen.output)
