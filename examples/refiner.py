"""Draw with SDXL and let its refiner take the last fifth of the schedule."""

import torch

from diffsynth import ModelManager, SDXLImagePipeline, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda")
manager.load_model("models/stable_diffusion_xl/sd_xl_base_1.0.safetensors")
manager.load_model("models/stable_diffusion_xl/sd_xl_refiner_1.0.safetensors", kind="unet")

pipe = SDXLImagePipeline.from_model_manager(manager, conventions="diffusers", refiner=True)
image = pipe("a lighthouse in fog, woodcut", height=1024, width=1024, refiner_start=0.8, seed=7)
save_image(image, "lighthouse-xl.png")
