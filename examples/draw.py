"""Draw one picture with HunyuanDiT."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda")
manager.load_models(download_models(["HunyuanDiT"]))

pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
image = pipe("a lighthouse in fog, woodcut", height=1024, width=1024, seed=7)
save_image(image, "lighthouse.png")
