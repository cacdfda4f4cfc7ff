"""Let HunyuanDiT compose and SDXL finish: with the picture, or in latent space, where both share one autoencoder."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, SDXLImagePipeline, download_models, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
for kind in ("unet", "clip"):
    manager.load_model("models/stable_diffusion_xl/sd_xl_base_1.0.safetensors", kind=kind)

first = HunyuanDiTImagePipeline.from_model_manager(manager)
second = SDXLImagePipeline.from_model_manager(manager)
assert first.vae is second.vae

picture = first("水墨画，雾中的灯塔", height=1024, width=1024, seed=7)
save_image(second("a lighthouse in fog, ink", input_image=picture, denoising_strength=0.4, seed=7), "mixed.png")

latents = first("水墨画，雾中的灯塔", height=1024, width=1024, seed=7, output_type="latent")  # not decoded, not encoded
save_image(second("a lighthouse in fog, ink", input_image=latents, denoising_strength=0.4, seed=7), "finished.png")
