"""The settings of a HunyuanDiT image. Imports neither torch nor Pillow, as the request it extends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.control_request import ControlRequest
from diffsynth.pipelines.ip_adapter_request import IPAdapterRequest
from diffsynth.pipelines.request import check_picture, check_range, check_type, entries, setting

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class HunyuanDiTRequest(ControlRequest, IPAdapterRequest):
    """Everything one HunyuanDiT image depends on."""

    local_prompts: tuple[str, ...] = setting((), "Prompts for parts of the image.")
    masks: tuple[Image, ...] = setting((), "One picture per local prompt, white where it applies.")
    mask_scales: tuple[float, ...] = setting((), "Weight of each local prompt; 1 each if not given.")
    clip_skip: int = setting(1, "Layer of the CLIP text encoder to use, from the end: 1 is the last.")
    clip_skip_2: int = setting(1, "Layer of the mT5 text encoder to use, from the end: 1 is the last.")
    tiled: bool = setting(False, "Denoise, encode and decode in overlapping tiles, for large images.")
    tile_size: int = setting(64, "Side of a tile: in units of 16 pixels for denoising, of 8 for the autoencoder.")
    tile_stride: int = setting(32, "Distance from one tile to the next, in the same units.")
    perturbed_attention_scale: float = setting(0.0, "Weight of perturbed-attention guidance; 0 is off, 3 is usual.")
    resolution_binning: bool | None = setting(None, "Move to the nearest size the model was trained on.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("local_prompts", "masks", "mask_scales"):
            object.__setattr__(self, name, entries(name, getattr(self, name)))
        if len(self.masks) != len(self.local_prompts):
            raise InvalidRequest(
                f"{len(self.local_prompts)} local_prompts need as many masks; {len(self.masks)} were given."
            )
        if self.mask_scales and len(self.mask_scales) != len(self.local_prompts):
            raise InvalidRequest(
                f"mask_scales has {len(self.mask_scales)} numbers for {len(self.local_prompts)} local_prompts."
            )
        for scale in self.mask_scales:
            check_range("each of mask_scales", scale, 0, 100)
        for text in self.local_prompts:
            check_type("each of local_prompts", text, str, "text")
        for mask in self.masks:
            check_picture("each of masks", mask)
        check_range("clip_skip", self.clip_skip, 1, 1000, whole=True)
        check_range("clip_skip_2", self.clip_skip_2, 1, 1000, whole=True)
        check_type("tiled", self.tiled, bool, "True or False")
        check_range("tile_size", self.tile_size, 2, 1024, whole=True)
        check_range("tile_stride", self.tile_stride, 1, self.tile_size, whole=True)
        check_range("perturbed_attention_scale", self.perturbed_attention_scale, 0, 100)
        check_type("resolution_binning", self.resolution_binning, bool, "True, False or None")
