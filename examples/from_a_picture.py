"""Draw a picture, then draw it again in another manner, starting from the first."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

photo = pipe("a badger in a meadow, photograph", height=1024, width=1024, seed=1)
painting = pipe("a badger in a meadow, ink on paper", input_image=photo, denoising_strength=0.7, seed=1)
save_image(painting, "painting.png")
