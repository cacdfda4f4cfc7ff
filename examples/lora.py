"""Draw one prompt with a LoRA at several strengths, side by side, then without it."""

import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
lora = manager.load_lora("models/HunyuanDiT-LoRA/jade")  # a file or a folder, in any spelling
print(lora)

images = []
for scale in (1.0, 0.5, 0.0):
    lora.scale = scale
    images.append(pipe("玉石雕刻的一只猫", height=1024, width=1024, num_inference_steps=25, seed=7))
lora.detach()
images.append(pipe("玉石雕刻的一只猫", height=1024, width=1024, num_inference_steps=25, seed=7))
assert images[-1].tobytes() == images[-2].tobytes()

sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
for number, image in enumerate(images):
    sheet.paste(image, (number * image.width, 0))
sheet.save("strengths.png")
