"""Let the edges of a picture decide where an object stands, with the small models that come along."""

import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models

files = download_models(["HunyuanDiT-Emoji", "HunyuanDiT-Emoji-ControlNet"])
manager = ModelManager(torch.float32, device="cpu", file_path_list=files)
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

sheet = Image.new("RGB", (5 * 128, 3 * 128), "white")
first = pipe("an apple on a white background", cfg_scale=2.5, num_inference_steps=20, height=128, width=128, seed=3)
sheet.paste(first, (0, 0))
for column, place in enumerate([(0, 0), (28, 0), (0, 28), (28, 28)], start=1):
    moved = Image.new("RGB", (128, 128), first.getpixel((0, 0)))
    moved.paste(first.resize((100, 100)), place)
    prompts = ["an apple on a blue background", "一个苹果，粉色背景"]
    images = pipe(prompts, controlnet_image=moved, controlnet_processors="canny", cfg_scale=2.5, num_inference_steps=20,
                  height=128, width=128, seed=1, batch_size=2)  # fmt: skip
    for row, image in enumerate([moved, *images]):
        sheet.paste(image, (column * 128, row * 128))
sheet.save("control_place.png")
