"""Merge two checkpoints, the middle of the UNet in other shares, and carry a third one's style over to the result."""

from diffsynth import ModelManager, merge_models

folder = "models/stable_diffusion"
base, style, other = (f"{folder}/{name}.safetensors" for name in ("v1-5-pruned-emaonly", "woodcut", "ink"))

made = merge_models(other, style, "half.safetensors", weight=0.5, blocks={"unet.mid_block": 0.8, "clip": 0})
print("merged:", *made.merged)
merge_models(made.path, style, "styled.safetensors", weight=0.7, difference=base)  # half + 0.7 * (style - base)

manager = ModelManager(device="cpu")
manager.load_model("styled.safetensors")
print(manager)
