"""Write a LoRA as other programs read it, and check that it means the same."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, convert_lora, download_models

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

source = "models/HunyuanDiT-LoRA/jade"  # a folder of peft
made = convert_lora(source, "jade-diffsynth.safetensors", to="diffsynth", model="models/HunyuanDiT/t2i")
print(made)

for path in (source, made.path):
    lora = manager.load_lora(path)
    pipe("玉石雕刻的一只猫", height=1024, width=1024, num_inference_steps=25, seed=7).save("jade.png")
    lora.detach()
