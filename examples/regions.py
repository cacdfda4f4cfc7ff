"""Give the left and the right half of a picture prompts of their own."""

import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

left = Image.new("RGB", (1024, 1024), "black")
left.paste("white", (0, 0, 512, 1024))
right = Image.new("RGB", (1024, 1024), "black")
right.paste("white", (512, 0, 1024, 1024))
image = pipe(
    "two animals in a meadow",
    local_prompts=["a badger", "a fox"],
    masks=[left, right],
    mask_scales=[1.5, 1.5],
    height=1024,
    width=1024,
    seed=3,
)
save_image(image, "regions.png")
