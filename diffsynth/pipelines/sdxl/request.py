"""The settings of an SDXL image."""

from __future__ import annotations

from dataclasses import dataclass

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.request import check_range, setting
from diffsynth.pipelines.unet_request import UNetRequest

REFINER_NUMBERS = 5


@dataclass(frozen=True, kw_only=True)
class SDXLRequest(UNetRequest):
    """Everything one SDXL image depends on."""

    clip_skip: int = setting(1, "Layer of the first text encoder, from the end: 1 is the last but one, as trained.")
    clip_skip_2: int = setting(2, "Layer of the second text encoder, from the end: 2 is as trained.")
    original_size: tuple[int, ...] = setting((), "Height and width the picture is said to have had; its own if unset.")
    crop: tuple[int, ...] = setting((0, 0), "Top and left of the cut that the picture is said to be.")
    target_size: tuple[int, ...] = setting((), "Height and width the picture is said to be wanted in.")
    negative_original_size: tuple[int, ...] = setting((), "Of the negative prompt; that of the prompt if unset.")
    negative_crop: tuple[int, ...] = setting((), "Of the negative prompt; that of the prompt if unset.")
    negative_target_size: tuple[int, ...] = setting((), "Of the negative prompt; that of the prompt if unset.")
    aesthetic_score: float = setting(6.0, "The refiner's mark of the picture, 1 to 10.")
    negative_aesthetic_score: float = setting(2.5, "The refiner's mark of what the negative prompt describes.")
    refiner_start: float = setting(0.8, "With a refiner: share of the schedule that the base network takes, 0 to 1.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("clip_skip_2", self.clip_skip_2, 1, 1000, whole=True)
        for name in ("original_size", "crop", "target_size"):
            self._check_pair(name, may_be_unset=name != "crop")
            self._check_pair(f"negative_{name}", may_be_unset=True)
        check_range("aesthetic_score", self.aesthetic_score, 0, 100)
        check_range("negative_aesthetic_score", self.negative_aesthetic_score, 0, 100)
        check_range("refiner_start", self.refiner_start, 0, 1)

    def _check_pair(self, name: str, *, may_be_unset: bool) -> None:
        value = getattr(self, name)
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise InvalidRequest(f"{name} must be two whole numbers, not {type(value).__name__}.")
        object.__setattr__(self, name, tuple(value))
        numbers = getattr(self, name)
        if len(numbers) != 2 and not (may_be_unset and not numbers):
            raise InvalidRequest(f"{name} must be two whole numbers, not {len(numbers)}.")
        for number in numbers:
            check_range(f"each of {name}", number, 0, 100_000, whole=True)

    def numbers(self, count: int, *, negative: bool) -> tuple[float, ...]:
        """Return the numbers a network is told: 6 for the base, 5 for the refiner.

        Args:
            count: how many the network takes.
            negative: those of the negative prompt.
        """
        assert self.height is not None
        assert self.width is not None
        own = (self.height, self.width)
        original, crop, target = self.original_size or own, self.crop, self.target_size or own
        score = self.aesthetic_score
        if negative:
            original = self.negative_original_size or original
            crop = self.negative_crop or crop
            target = self.negative_target_size or target
            score = self.negative_aesthetic_score
        return (*original, *crop, score) if count == REFINER_NUMBERS else (*original, *crop, *target)
