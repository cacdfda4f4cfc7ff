"""Programs that draw with SDXL: DiffSynth 1.1.9, the Diffusers library, and Stability's own (sgm).

``turbo`` is how Diffusers is used with SDXL turbo: one step, no guidance.
"""

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
            size=1024,
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
            cfg_scale=5.0,
            size=1024,
            scheduler="euler",
            final_sigma={"ddim": "sigma_min"},
            absent_negative="zeros_if_none",
        ),
        "sgm": UNetConventions(
            name="sgm",
            num_inference_steps=50,
            cfg_scale=6.0,
            size=1024,
            size_multiple=64,
            scheduler="dpm++2m",
            absent_negative="zeros_if_empty",
        ),
        "turbo": UNetConventions(
            name="turbo",
            num_inference_steps=1,
            cfg_scale=0.0,
            size=512,
            scheduler="euler_a",
            spacing="trailing",
            absent_negative="zeros_if_none",
        ),
    }
)
