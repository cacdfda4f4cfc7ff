"""Encode all texts first and give the text encoders' memory back, more than half of the model's; then draw."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
prompts = ("a lighthouse in fog, woodcut", "一只熊猫，蓝色背景")
requests = pipe.prepare([pipe.request_type(prompt=prompt, height=1024, width=1024, seed=7) for prompt in prompts])
texts = pipe.encode_texts(requests)
pipe.release_text_encoders()
for number, request in enumerate(requests):
    (image,) = pipe.decode([request], pipe.draw_latents([request], texts))
    save_image(image, f"texts-first-{number}.png")
