"""Let a picture be a part of the prompt, at several weights, with SDXL."""

import torch
from PIL import Image

from diffsynth import ModelManager, SDXLImagePipeline, save_image

folder = "models/IpAdapter/stable_diffusion_xl"
manager = ModelManager(torch_dtype=torch.float16, device="cuda")
manager.load_model("models/stable_diffusion_xl/sd_xl_base_1.0.safetensors")
manager.load_models([f"{folder}/ip-adapter_sdxl.bin", f"{folder}/image_encoder/model.safetensors"])

pipe = SDXLImagePipeline.from_model_manager(manager)
picture = Image.open("pictures/red.png")
for scale in (0.0, 0.5, 1.0):
    image = pipe("a fox", height=1024, width=1024, ipadapter_images=[picture], ipadapter_scale=scale, seed=7)
    save_image(image, f"fox-{scale}.png")
