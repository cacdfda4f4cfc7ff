"""Draw with one model, give its memory back, and draw with the next; the autoencoder they share would stay."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, SDXLImagePipeline, download_models, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
first = HunyuanDiTImagePipeline.from_model_manager(manager)
save_image(first("a lighthouse in fog, woodcut", height=1024, width=1024, seed=7), "first.png")
first.release()

manager.load_model("models/stable_diffusion_xl/sd_xl_base_1.0.safetensors")
second = SDXLImagePipeline.from_model_manager(manager)
save_image(second("a lighthouse in fog, woodcut", height=1024, width=1024, seed=7), "second.png")
