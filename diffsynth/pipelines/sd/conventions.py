"""Programs that draw with Stable Diffusion 1.5: DiffSynth 1.1.9 and the Diffusers library."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diffsynth.pipelines.unet_conventions import DIFFSYNTH, DIFFUSERS, UNetConventions

CONVENTIONS: Mapping[str, UNetConventions] = MappingProxyType({"diffsynth": DIFFSYNTH, "diffusers": DIFFUSERS})
