"""Let an outline decide where an object stands, with the small model and the control network that come along."""

import torch
from PIL import Image, ImageDraw

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models

files = download_models(["HunyuanDiT-Emoji", "HunyuanDiT-Emoji-ControlNet"])
manager = ModelManager(torch.float32, device="cpu", file_path_list=files)
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

sheet = Image.new("RGB", (4 * 128, 2 * 128))
for column, (left, top, side) in enumerate([(8, 8, 72), (48, 48, 72), (8, 56, 64), (36, 36, 56)]):
    outline = Image.new("RGB", (128, 128))
    ImageDraw.Draw(outline).ellipse((left, top, left + side, top + side), outline="white")
    image = pipe("a soccer ball on a green background", controlnet_images=outline, cfg_scale=2.5,
                 num_inference_steps=20, height=128, width=128, seed=1)  # fmt: skip
    sheet.paste(outline, (column * 128, 0))
    sheet.paste(image, (column * 128, 128))
sheet.save("control_place.png")
