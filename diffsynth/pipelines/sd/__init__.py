"""Stable Diffusion 1.5: prompts to images."""
