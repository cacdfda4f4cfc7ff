"""Programs that draw with Stable Diffusion 1.5: DiffSynth 1.1.9 and the Diffusers library."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diffsynth.pipelines.unet_conventions import UNetConventions

CONVENTIONS: Mapping[str, UNetConventions] = MappingProxyType(
    {
        "diffsynth": UNetConventions(
            name="diffsynth",
            num_inference_steps=20,
            cfg_scale=7.5,
            size=512,
            size_multiple=64,
            rounds_size_up=True,
            guides_below_one=True,
            scheduler="ddim",
            samplers={"ddim": "ddim_diffsynth"},
            samples_posterior=False,
            truncates_pixels=True,
            norm_out_eps=1e-5,
            long_prompts="blocks",
            skips_negative=True,
        ),
        "diffusers": UNetConventions(
            name="diffusers",
            num_inference_steps=50,
            cfg_scale=7.5,
            size=512,
            scheduler="pndm",
            final_sigma={"ddim": "sigma_min"},
        ),
    }
)
