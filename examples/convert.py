"""Write the published denoiser in the layout of Diffusers."""

from diffsynth import ModelManager

manager = ModelManager(torch_dtype=None, device="cpu")  # None keeps the dtype of the file
manager.load_model("models/HunyuanDiT/t2i/model/pytorch_model_ema.pt")
print(manager)
manager.save("hunyuan_dit", "transformer/diffusion_pytorch_model.safetensors", layout="diffusers")
