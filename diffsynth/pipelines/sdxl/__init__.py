"""SDXL, base, turbo and refiner: prompts to images."""
