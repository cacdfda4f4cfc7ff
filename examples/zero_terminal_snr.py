"""Draw with a fine-tune that was trained down to no signal at all, so that pictures may be quite dark or bright.

A file that is marked so (v_pred and ztsnr) needs no word about it; here it is said by hand.
"""

import torch

from diffsynth import ModelManager, SDXLImagePipeline, save_image

manager = ModelManager(torch_dtype=torch.float16, device="cuda")
manager.load_model("models/stable_diffusion_xl/sd_xl_base_1.0.safetensors")  # the place of such a fine-tune
pipe = SDXLImagePipeline.from_model_manager(manager, prediction="velocity", zero_terminal_snr=True)
image = pipe("a lantern in a black night", guidance_rescale=0.7, height=1024, width=1024, seed=7)
save_image(image, "night.png")
