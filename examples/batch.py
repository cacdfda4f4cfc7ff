"""Draw a job of many images, and go on with it when this program is started again, whatever happened in between."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models
from diffsynth.batch import run_batch

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

job = [
    {"prompt": "一只熊猫，蓝色背景", "num_images_per_prompt": 4},
    {"prompt": "a {red|white} fox in the snow", "cfg_scale": 6, "sweep": {"seed": "0..3"}},
]
progress = run_batch(pipe, job, "drawn", defaults={"height": 1024, "width": 1024, "num_inference_steps": 20})
print(f"{progress.drawn} drawn, {progress.finished} were there, {len(progress.failures)} failed")
