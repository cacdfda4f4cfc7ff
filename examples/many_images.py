"""Draw several prompts, two images of each, four at a time, with progress and a preview after every step."""

import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager, download_models, save_image
from diffsynth.pipelines.denoise import StepReport


def show(report: StepReport) -> None:
    """Write what the first image looks like by now."""
    report.preview()[0].save("preview.png")


manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=download_models(["HunyuanDiT"]))
pipe = HunyuanDiTImagePipeline.from_model_manager(manager)

prompts = ["一只熊猫，蓝色背景", "a fox in the snow"]
for image in pipe(prompts, num_images_per_prompt=2, batch_size=4, seed=100, height=1024, width=1024, callback=show):
    save_image(image, f"image-{image.info['seed']}.png")
