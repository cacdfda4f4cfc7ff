"""The settings of a Stable Diffusion image."""

from __future__ import annotations

from dataclasses import dataclass

from diffsynth.pipelines.unet_request import UNetRequest


@dataclass(frozen=True, kw_only=True)
class SDRequest(UNetRequest):
    """Everything one Stable Diffusion image depends on."""
