"""Draw with Stable Diffusion 1.5, then paint a part of the picture anew."""

import torch
from PIL import Image

from diffsynth import ModelManager, SDImagePipeline, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda")
manager.load_model("models/stable_diffusion/v1-5-pruned-emaonly.safetensors")
pipe = SDImagePipeline.from_model_manager(manager)

meadow = pipe("a meadow with a (badger:1.2), photograph", negative_prompt="blurred", height=512, width=512, seed=1)
mask = Image.new("L", meadow.size)
mask.paste(255, (0, 0, meadow.width, meadow.height // 2))
save_image(pipe("a stormy sky", input_image=meadow, mask_image=mask, seed=2), "stormy.png")
