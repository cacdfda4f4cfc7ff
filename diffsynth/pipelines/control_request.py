"""The settings of control networks. Imports neither torch nor Pillow, as the request it extends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar, get_args

from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.request import ImageRequest, as_tuple, check_picture, check_range, setting

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

Processor: TypeAlias = Literal["none", "canny"]
MOST_SCALE = 100


@dataclass(frozen=True, kw_only=True)
class ControlRequest(ImageRequest):
    """Everything one image depends on where control networks may steer it (ControlNet, arXiv 2302.05543).

    Each of these settings has one entry per control network in use, or one for all of them.
    """

    # The settings, and what is usual; a family that has more of the kind extends it.
    per_controlnet: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "controlnet_images": None,
            "controlnet_scales": 1.0,
            "controlnet_starts": 0.0,
            "controlnet_ends": 1.0,
            "controlnet_processors": "none",
        }
    )

    controlnet_images: tuple[Image, ...] = setting((), "Pictures that control networks steer by, one each or for all.")
    controlnet_scales: tuple[float, ...] = setting((), "Strength of each control network; 1 each if not given.")
    controlnet_starts: tuple[float, ...] = setting((), "Share of the steps, 0 to 1, after which each begins.")
    controlnet_ends: tuple[float, ...] = setting((), "Share of the steps, 0 to 1, after which each ends.")
    controlnet_processors: tuple[str, ...] = setting((), "What is made of the pictures first: none, or canny edges.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.per_controlnet:
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        for image in self.controlnet_images:
            check_picture("each of controlnet_images", image)
        for name, most in (("controlnet_scales", MOST_SCALE), ("controlnet_starts", 1), ("controlnet_ends", 1)):
            for value in getattr(self, name):
                check_range(f"each of {name}", value, 0, most)
        for name in self.controlnet_processors:
            check_choice("each of controlnet_processors", name, get_args(Processor))
        self._check_counts()
        self._check_windows()

    @property
    def controlnet_count(self) -> int:
        """The number of control networks that the settings speak of; 1 may stand for any number."""
        return max(len(getattr(self, name)) for name in self.per_controlnet)

    def _check_counts(self) -> None:
        given = {name: len(getattr(self, name)) for name in self.per_controlnet if getattr(self, name)}
        if given and not self.controlnet_images:
            raise InvalidRequest(f"{next(iter(given))} has no effect without controlnet_images; give the pictures too.")
        several = {name: count for name, count in given.items() if count > 1}
        if len(set(several.values())) > 1:
            counts = ", ".join(f"{name} has {count}" for name, count in several.items())
            raise InvalidRequest(f"{counts}: each has one entry per control network, or one for all of them.")

    def _check_windows(self) -> None:
        count = self.controlnet_count
        starts = for_each(self.controlnet_starts, 0.0, count)
        ends = for_each(self.controlnet_ends, 1.0, count)
        for start, end in zip(starts, ends, strict=True):
            if start >= end:
                raise InvalidRequest(
                    f"controlnet_starts {start} is not before controlnet_ends {end}: "
                    "a control network is active from the one to the other."
                )


def for_each(values: tuple[T, ...], usual: T, count: int) -> tuple[T, ...]:
    """Return a value for each of ``count`` control networks: the values, or the one for all, or what is usual."""
    return values if len(values) == count and count > 1 else (values or (usual,))[:1] * count


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise InvalidRequest unless a value is one of the known names."""
    if value not in known:
        raise InvalidRequest(f"{name} is one of {', '.join(known)}, not {printable(repr(value))}.")
