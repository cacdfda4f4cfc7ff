"""The settings that Stable Diffusion and SDXL share. Imports neither torch nor Pillow, as the request it extends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.control_request import ControlRequest, check_choice
from diffsynth.pipelines.ip_adapter_request import IPAdapterRequest
from diffsynth.pipelines.request import check_picture, check_range, check_type, setting

if TYPE_CHECKING:
    from PIL.Image import Image

LongPrompts: TypeAlias = Literal["cut", "chunks", "blocks"]

# What a union network takes a picture for: the name → its number; several names mean one.
UNION_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "openpose": 0,
        "depth": 1,
        "softedge": 2,
        "scribble": 2,
        "canny": 3,
        "lineart": 3,
        "lineart_anime": 3,
        "mlsd": 3,
        "normal": 4,
        "segment": 5,
        "tile": 6,
        "repaint": 7,
        "inpaint": 7,
    }
)


@dataclass(frozen=True, kw_only=True)
class UNetRequest(ControlRequest, IPAdapterRequest):
    """Everything one image of a UNet depends on, besides what a family adds."""

    per_controlnet: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {**ControlRequest.per_controlnet, "controlnet_types": ""}
    )

    controlnet_types: tuple[str, ...] = setting((), "For a union network: what each picture is, such as depth.")
    guess_mode: bool = setting(False, "Let control networks alone say what the image is; works without a prompt.")
    mask_image: Image | None = setting(None, "With an input image: white where it is painted anew.")
    clip_skip: int = setting(1, "Layer of the CLIP text encoder to use, from the end: 1 is the last.")
    long_prompts: str | None = setting(None, "Prompts of more than 75 tokens: cut, chunks of 75, or blocks of 77.")
    tiled: bool = setting(False, "Encode and decode in overlapping tiles, for large images.")
    tile_size: int = setting(64, "Side of a tile, in units of 8 pixels.")
    tile_stride: int = setting(32, "Distance from one tile to the next, in the same units.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.controlnet_types:
            if name != "":
                check_choice("each of controlnet_types", name, tuple(UNION_TYPES))
        check_type("guess_mode", self.guess_mode, bool, "True or False")
        if self.guess_mode and not self.controlnet_images:
            raise InvalidRequest("guess_mode has no effect without controlnet_images; give the pictures too.")
        check_picture("mask_image", self.mask_image)
        if self.mask_image is not None and self.input_image is None:
            raise InvalidRequest("mask_image needs an input_image, parts of which are painted anew; none was given.")
        check_range("clip_skip", self.clip_skip, 1, 1000, whole=True)
        check_type("long_prompts", self.long_prompts, str, "text")
        if self.long_prompts is not None and self.long_prompts not in get_args(LongPrompts):
            known = ", ".join(get_args(LongPrompts))
            raise InvalidRequest(f"long_prompts is {printable(self.long_prompts)!r}; known are: {known}.")
        check_type("tiled", self.tiled, bool, "True or False")
        check_range("tile_size", self.tile_size, 2, 1024, whole=True)
        check_range("tile_stride", self.tile_stride, 1, self.tile_size, whole=True)
