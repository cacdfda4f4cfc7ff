"""The settings of pictures as prompts. Imports neither torch nor Pillow, as the request it extends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffsynth.pipelines.request import ImageRequest, as_tuple, check_picture, check_range, setting

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_SCALE = 100


@dataclass(frozen=True, kw_only=True)
class IPAdapterRequest(ImageRequest):
    """Everything one image depends on where pictures may be prompts (IP-Adapter, arXiv 2308.06721)."""

    ipadapter_images: tuple[Image, ...] = setting((), "Pictures that are prompts beside the text.")
    ipadapter_scale: float = setting(1.0, "Weight of these pictures beside the text; 0 is off.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ipadapter_images", as_tuple("ipadapter_images", self.ipadapter_images))
        for image in self.ipadapter_images:
            check_picture("each of ipadapter_images", image)
        check_range("ipadapter_scale", self.ipadapter_scale, 0, MOST_SCALE)

    @property
    def shows_pictures(self) -> bool:
        """Whether pictures change the image: some are given, and their weight is not 0."""
        return bool(self.ipadapter_images) and self.ipadapter_scale != 0
