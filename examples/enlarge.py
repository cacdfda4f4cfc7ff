"""Draw small, where composition is best, then larger: one call draws both stages, which the recipe records."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

prompt = "a lighthouse in fog, woodcut"
pixel = pipe(prompt, height=512, width=512, hires_scale=2, hires_strength=0.5, seed=7)
save_image(pixel, "larger.png")

latent = pipe(prompt, height=512, width=512, hires_scale=2, hires_upscale="latent", hires_strength=0.7, seed=7)
save_image(latent, "larger-latent.png")
