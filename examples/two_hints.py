"""Steer SDXL by two pictures at once with one union network; the second time one of them lets go halfway."""

import torch
from PIL import Image

from diffsynth import ModelManager, SDXLImagePipeline, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda")
manager.load_model("models/stable_diffusion_xl/sd_xl_base_1.0.safetensors")
manager.load_model("models/ControlNet/controlnet_union/diffusion_pytorch_model_promax.safetensors")
pipe = SDXLImagePipeline.from_model_manager(manager)

for end in (1.0, 0.5):
    image = pipe(
        "a dancer in a red coat, watercolour",
        controlnet_images=[Image.open("pose.png"), Image.open("depth.png")],
        controlnet_types=["openpose", "depth"],
        controlnet_scales=[1.0, 0.6],
        controlnet_ends=[1.0, end],
        height=1024,
        width=1024,
        seed=7,
    )
    save_image(image, f"dancer-{end}.png")
