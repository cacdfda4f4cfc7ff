"""Draw over the edges of a photo, with the whole strength of a control network and with less of it."""

import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, ModelManager, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda", file_path_list=["models/HunyuanDiT-v1.2/t2i"])
pipe = HunyuanDiTImagePipeline.from_model_manager(manager, controlnets=["pytorch_model_canny_distill"])

for scale, end in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5)):
    image = pipe(
        "黄昏海边的灯塔，木刻版画",
        controlnet_image=Image.open("photo.png"),
        controlnet_processors="canny",  # "none" for a picture that shows edges already
        controlnet_scales=scale,
        controlnet_ends=end,  # share of the steps in which it acts
        height=1024,
        width=1024,
        num_inference_steps=50,
        seed=7,
    )
    save_image(image, f"lighthouse-{scale}-until-{end}.png")
