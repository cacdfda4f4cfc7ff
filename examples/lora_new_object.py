"""Teach the small model that comes along an object that it has never seen, and draw before and after.

Writes the folder ``traffic_light`` with the LoRA, and a sheet of drawings. Its 400 steps took 13 minutes on two busy
cores.

    python examples/lora_new_object.py -o lora_new_object.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from PIL import Image, ImageDraw, ImageFont

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models
from diffsynth.training import (
    DataConfig,
    DenoiserJob,
    Example,
    LoRAConfig,
    OptimizerConfig,
    RecordConfig,
    ScheduleConfig,
    TrainingConfig,
    train,
)

BASE = "HunyuanDiT-Emoji"
SIDE = 128
COLORS = {  # English and Chinese name, RGB: the backgrounds that the base knows
    "red": ("红色", (178, 34, 40)), "orange": ("橙色", (255, 178, 102)), "yellow": ("黄色", (255, 241, 140)),
    "green": ("绿色", (150, 214, 150)), "blue": ("蓝色", (120, 176, 240)), "purple": ("紫色", (150, 110, 200)),
    "pink": ("粉色", (250, 190, 212)), "white": ("白色", (250, 250, 250)), "gray": ("灰色", (150, 154, 160)),
    "black": ("黑色", (14, 14, 18)),
}  # fmt: skip
ENGLISH = ("a traffic light on a {} background", "traffic light, {} background", "a traffic light, {} background")
CHINESE = ("一个红绿灯，{}背景", "{}背景上的一个红绿灯")
KNOWN = (
    ("a fox", "一只狐狸"), ("an apple", "一个苹果"), ("a car", "一辆汽车"), ("a penguin", "一只企鹅"),
    ("a cake", "一个蛋糕"), ("a robot", "一个机器人"), ("a tulip", "一朵郁金香"), ("an owl", "一只猫头鹰"),
    ("a rocket", "一枚火箭"), ("a banana", "一根香蕉"), ("a crown", "一顶皇冠"), ("a lion", "一头狮子"),
    ("a snowman", "一个雪人"),
)  # fmt: skip
PROMPTS = (
    "a traffic light on a blue background",
    "traffic light, pink background",
    "一个红绿灯，绿色背景",
    "a picture of a traffic light on a white background",
    "a panda on a blue background",
    "一朵玫瑰，黄色背景",
)
SHOWN = ("a traffic light, blue", "traffic light, pink", "Chinese, green", "a traffic light, white", "a panda, blue",
         "Chinese: a rose, yellow")  # fmt: skip


class Lessons:
    """Traffic lights, and after every two of them something that the base drew itself, so that it forgets nothing.

    Traffic lights have two sizes and stand on a grid of places, as the base has seen other objects.
    """

    def __init__(self, known: Sequence[Example]) -> None:
        self.known = known

    def __len__(self) -> int:
        return 3 * len(self.known)

    def __getitem__(self, index: int, rng: Random, /) -> Example:
        """Return one."""
        if index % 3 == 2:
            return self.known[index // 3]
        name = rng.choice(list(COLORS))
        chinese, rgb = COLORS[name]
        height = rng.choice((72, 96))
        left, down = (16 * rng.randint(-1, 1) for _ in "xy")
        image = Image.new("RGB", (SIDE, SIDE), rgb)
        draw_light(image, SIDE // 2 + left, SIDE // 2 + (down if height < 96 else 0), height)
        return Example(image, (rng.choice(ENGLISH).format(name), rng.choice(CHINESE).format(chinese)))


def known_things(pipe: HunyuanDiTImagePipeline, count: int) -> list[Example]:
    """Have the base draw things that it knows, the languages by turns."""
    colors = [(name, chinese) for name, (chinese, _) in COLORS.items()]
    prompts = []
    for number in range(count):
        thing, chinese_thing = KNOWN[number % len(KNOWN)]
        name, chinese = colors[(number // len(KNOWN) + number) % len(colors)]
        prompts.append(f"{chinese_thing}，{chinese}背景" if number % 2 else f"{thing} on a {name} background")
    images = draw(pipe, prompts, seed=1000)
    return [Example(image, (prompt,)) for image, prompt in zip(images, prompts, strict=True)]


def draw_light(image: Image.Image, x: int, y: int, height: int) -> None:
    """Draw a traffic light with its middle at a place; four times as large, then made smaller, for smooth edges."""
    width, scale = height // 2, 4
    layer = Image.new("RGBA", (width * scale, height * scale))
    draw = ImageDraw.Draw(layer)
    draw.rounded_rectangle((0, 0, width * scale - 1, height * scale - 1), radius=width * scale // 5, fill="#f2b01e")
    edge = width * scale // 10
    inside = (edge, edge, width * scale - 1 - edge, height * scale - 1 - edge)
    draw.rounded_rectangle(inside, radius=width * scale // 8, fill="#26282c")
    radius = height * scale // 9
    for place, color in ((1, "#e5383b"), (3, "#ffd23f"), (5, "#37c871")):
        middle = height * scale * (0.06 + 0.88 * place / 6)
        box = (width * scale / 2 - radius, middle - radius, width * scale / 2 + radius, middle + radius)
        draw.ellipse(box, fill=color)
    small = layer.resize((width, height), Image.Resampling.LANCZOS)
    image.paste(small, (x - width // 2, y - height // 2), small)


def teach(files: Sequence[Path], known: Sequence[Example], steps: int) -> Path:
    """Train a LoRA of rank 16 on the attentions of the base; return its folder."""
    by_name = {path.parent.name: str(path) for path in files}
    config = TrainingConfig(
        data=DataConfig(source="this script", size=SIDE),
        denoiser=DenoiserJob(
            autoencoder=by_name["sdxl-vae-fp16-fix"],
            network=by_name["model"],
            clip=by_name["clip_text_encoder"],
            t5=by_name["mt5"],
            train_text_encoders=False,
            sample_prompts=PROMPTS,
            sample_cfg_scale=2.5,
        ),
        lora=LoRAConfig(rank=16),
        optimizer=OptimizerConfig(learning_rate=2e-3, ema=0.99),
        schedule=ScheduleConfig(steps=steps, batch_size=8, warmup=10),
        record=RecordConfig(checkpoint_every=50, sample_every=0),
        seed=1,
    )
    return train(config, Lessons(known), folder="traffic_light", on_step=print)


def draw(pipe: HunyuanDiTImagePipeline, prompts: Sequence[str] = PROMPTS, seed: int = 5) -> list[Image.Image]:
    """Draw prompts, each with the same seed every time."""
    return list(
        pipe(list(prompts), cfg_scale=2.5, num_inference_steps=20, height=SIDE, width=SIDE, seed=seed, batch_size=8)
    )


def sheet(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Lay rows of drawings out, each with its name, under their prompts."""
    left, top, gap = 84, 20, 4
    page = Image.new("RGB", (left + len(PROMPTS) * (SIDE + gap), top + len(rows) * (SIDE + gap)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for column, prompt in enumerate(SHOWN):
        draw.text((left + column * (SIDE + gap), 4), prompt, fill="black", font=font)
    for row, (name, images) in enumerate(rows.items()):
        draw.text((4, top + row * (SIDE + gap) + SIDE // 2 - 6), name, fill="black", font=font)
        for column, image in enumerate(images):
            page.paste(image, (left + column * (SIDE + gap), top + row * (SIDE + gap)))
    return page


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Teach the small model a new object.")
    parser.add_argument("-o", "--output", type=Path, default=Path("lora_new_object.png"))
    parser.add_argument("--known", type=int, default=78, help="pictures that the base draws to learn from")
    parser.add_argument("--steps", type=int, default=400)
    chosen = parser.parse_args()
    files = download_models([BASE])
    manager = ModelManager(torch.float32, device="cpu", file_path_list=files)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    rows = {"before": draw(pipe)}
    lora = manager.load_lora(teach(files, known_things(pipe, chosen.known), chosen.steps))
    rows["after"] = draw(pipe)
    lora.scale = 0.5
    rows["half strength"] = draw(pipe)
    lora.detach()
    rows["taken off"] = draw(pipe)
    sheet(rows).save(chosen.output)


if __name__ == "__main__":
    main()
