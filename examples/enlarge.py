"""Draw small, where composition is best, then draw over the enlarged picture; any pipeline can do either."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

prompt = "a lighthouse in fog, woodcut"
small = pipe(prompt, height=512, width=512, seed=7)
large = pipe(prompt, input_image=small, height=1024, width=1024, denoising_strength=0.5, seed=7)
save_image(large, "enlarged.png")
