"""Programs that draw with SDXL: DiffSynth 1.1.9, the Diffusers library, and Stability's own (sgm).

``turbo`` is how Diffusers is used with SDXL turbo: one step, no guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from diffsynth.pipelines.unet_conventions import DIFFSYNTH, DIFFUSERS, UNetConventions

CONVENTIONS: Mapping[str, UNetConventions] = MappingProxyType(
    {
        "diffsynth": replace(DIFFSYNTH, size=1024),
        "diffusers": replace(DIFFUSERS, cfg_scale=5.0, size=1024, scheduler="euler", absent_negative="zeros_if_none"),
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
