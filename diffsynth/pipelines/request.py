"""Everything one image depends on.

The Python call, the command line and the recipe inside a PNG all make the same object, so a setting is added once.
This module imports neither torch nor Pillow, so that ``diffsynth generate --help`` stays quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from diffsynth.errors import InvalidRequest, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffsynth.pipelines.latent_image import LatentImage

ALIASES = {
    "guidance_scale": "cfg_scale",
    "strength": "denoising_strength",
    "image": "input_image",
    "generator": "seed",
    "steps": "num_inference_steps",  # as on the command line
    "ip_adapter_image": "ipadapter_images",
    "controlnet_image": "controlnet_images",
}
HIRES = ("hires_scale", "hires_height", "hires_width", "hires_strength", "hires_steps", "hires_upscale")
HIRES_SIZES = HIRES[:3]
UPSCALES = ("pixel", "latent")
UNKNOWN_WHITE = ("I", "F")  # modes of pictures with 32 bits, of which nothing tells what is white


def setting(default: Any, description: str) -> Any:
    """Declare a field with the sentence that forms and the command line show for it."""
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """The settings that every family of pipelines has; None leaves a setting to the pipeline's conventions."""

    prompt: str
    negative_prompt: str | None = setting(None, "What the image should not show.")
    cfg_scale: float | None = setting(None, "Weight of the prompt against the negative prompt; 1 turns guidance off.")
    guidance_rescale: float = setting(0.0, "0 to 1: pull guided predictions back to the spread of unguided ones.")
    height: int | None = setting(None, "Image height in pixels.")
    width: int | None = setting(None, "Image width in pixels.")
    num_inference_steps: int | None = setting(None, "Number of denoising steps.")
    scheduler: str | None = setting(None, "Name of the sampler, such as ddim, ddpm or dpm++2m.")
    spacing: str | None = setting(None, "How timesteps are spread: trailing, leading, linspace, karras, log_uniform.")
    seed: int | None = setting(None, "Start of the random numbers; without it one is chosen, and told.")
    input_image: Image | LatentImage | None = setting(None, "Image to start from instead of noise.")
    denoising_strength: float = setting(1.0, "Share of the schedule that is run on an input image, above 0 to 1.")
    hires_scale: float | None = setting(None, "Enlarge the image by this factor and draw over it; 1 is off.")
    hires_height: int | None = setting(None, "Height to enlarge to, in place of a factor; alone it keeps the shape.")
    hires_width: int | None = setting(None, "Width to enlarge to, likewise.")
    hires_strength: float | None = setting(None, "Share of the schedule that is run on it then, above 0; usually 0.5.")
    hires_steps: int | None = setting(None, "Steps of that schedule; as many as of the first if unset.")
    hires_upscale: str | None = setting(None, "What is enlarged: pixel (usual), or latent, which changes more.")

    @classmethod
    def settings(cls) -> dict[str, dataclasses.Field[Any]]:
        """Return the fields by name."""
        return {each.name: each for each in dataclasses.fields(cls)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Make a request from names and values; other libraries' names for the same settings are understood.

        Raises:
            InvalidRequest: a name is unknown or given twice, or a value is out of range.
        """
        return cls(**resolve_names(settings, tuple(cls.settings())))

    def wanted_size(self, usual: int) -> tuple[int, int]:
        """Return the height and width asked for: by default those of the input image, else ``usual``."""
        image = self.input_image
        return self.height or (image.height if image else usual), self.width or (image.width if image else usual)

    @property
    def enlarges(self) -> bool:
        """Whether there is a second stage, which draws over the enlarged image."""
        return self.hires_scale not in (None, 1) or bool(self.hires_height or self.hires_width)

    def __post_init__(self) -> None:
        for name, each in self.settings().items():
            if getattr(self, name) is None and each.default is not None:
                raise InvalidRequest(f"{name} cannot be None; leave it out for what is usual.")
        for name in ("prompt", "negative_prompt", "scheduler", "spacing", "hires_upscale"):
            check_type(name, getattr(self, name), str, "text")
        check_range("cfg_scale", self.cfg_scale, 0, 100)
        check_range("guidance_rescale", self.guidance_rescale, 0, 1)
        check_range("height", self.height, 16, 16384, whole=True)
        check_range("width", self.width, 16, 16384, whole=True)
        check_range("num_inference_steps", self.num_inference_steps, 1, 1000, whole=True)
        check_range("seed", self.seed, 0, 2**63 - 1, whole=True)
        check_range("denoising_strength", self.denoising_strength, 0, 1)
        check_picture("input_image", self.input_image, latents=True)
        self._check_hires()
        if self.denoising_strength == 0:
            raise InvalidRequest("denoising_strength must be above 0; 0 would return the input image as it is.")
        if self.input_image is None and self.denoising_strength < 1:
            raise InvalidRequest(
                f"denoising_strength {self.denoising_strength} needs an input_image to start from; none was given."
            )

    def _check_hires(self) -> None:
        check_range("hires_scale", self.hires_scale, 1, 16)
        check_range("hires_height", self.hires_height, 16, 16384, whole=True)
        check_range("hires_width", self.hires_width, 16, 16384, whole=True)
        check_range("hires_strength", self.hires_strength, 0, 1)
        check_range("hires_steps", self.hires_steps, 1, 1000, whole=True)
        if self.hires_strength == 0:
            raise InvalidRequest("hires_strength must be above 0; 0 would leave the enlarged image as it is.")
        if self.hires_upscale not in (None, *UPSCALES):
            raise InvalidRequest(
                f"hires_upscale is {printable(self.hires_upscale)!r}; known are: {', '.join(UPSCALES)}."
            )
        sized = [name for name in HIRES_SIZES if getattr(self, name) is not None]
        if self.hires_scale is not None and len(sized) > 1:
            raise InvalidRequest(f"hires_scale and {sized[1]} are both given; give the factor or the size.")
        given = [name for name in HIRES if getattr(self, name) is not None]
        if given and not sized:
            raise InvalidRequest(f"{given[0]} has no effect without hires_scale, or hires_height and hires_width.")


def resolve_names(settings: Mapping[str, Any], known: Sequence[str], hints: Sequence[str] = ()) -> dict[str, Any]:
    """Replace other libraries' names by ours and refuse names that nobody knows.

    Args:
        settings: names and values.
        known: the names there are.
        hints: names that a misspelt one may have meant besides.

    Raises:
        InvalidRequest: a name is unknown, or a setting is given under two names.
    """
    resolved: dict[str, Any] = {}
    for name, value in settings.items():
        ours = ALIASES.get(name, name)
        if ours not in known:
            others = (alias for alias, meant in ALIASES.items() if meant in known)
            near = get_close_matches(name, [*known, *others, *hints], n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else f" Known are: {', '.join(known)}."
            raise InvalidRequest(f"there is no setting called {printable(name)!r}.{hint}")
        if ours in resolved:
            raise InvalidRequest(f"{ours} is given twice, also under another name ({name}). Give it once.")
        resolved[ours] = plain(value)
    return resolved


def plain(value: Any) -> Any:
    """Return a number of another library, such as numpy, as Python's own, and anything else as it is."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """Return a list as a tuple, and a single picture, number or name as a list of one; see ``entries``."""
    value = plain(value)
    single = isinstance(value, (str, bool, int, float)) or hasattr(value, "convert")
    return entries(name, (value,) if single else value)


def entries(name: str, value: Any) -> tuple[Any, ...]:
    """Return the entries of a list, numbers of other libraries as Python's own.

    Raises:
        InvalidRequest: it is no list, or one of its entries is None.
    """
    try:
        found = None if isinstance(value, str) else tuple(plain(each) for each in value)
    except TypeError:
        found = None
    if found is None:
        raise InvalidRequest(f"{name} must be a list, not {type(value).__name__}.")
    if any(each is None for each in found):
        raise InvalidRequest(f"{name} has an entry that is None; give one for each, or leave the setting out.")
    return found


def check_range(name: str, value: float | None, low: float, high: float, *, whole: bool = False) -> None:
    """Raise InvalidRequest unless a value is None or a number from ``low`` to ``high``, a whole one if need be."""
    kinds = int if whole else (int, float)
    if value is None or (isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high):
        return
    number = "whole number" if whole else "number"
    raise InvalidRequest(f"{name} must be a {number} from {low} to {high}, not {printable(value)!r}.")


def check_type(name: str, value: object, kind: type, words: str) -> None:
    """Raise InvalidRequest unless a value is None or of a kind, which ``words`` names for the message."""
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"{name} must be {words}, not {type(value).__name__}.")


def check_picture(name: str, value: object, *, latents: bool = False) -> None:
    """Raise InvalidRequest unless a value is None or a PIL image, or if need be latents."""
    if value is not None and not hasattr(value, "convert") and not (latents and hasattr(value, "latent_scale")):
        raise InvalidRequest(f"{name} must be a picture (PIL image), not {type(value).__name__}.")
    if (mode := getattr(value, "mode", "")) in UNKNOWN_WHITE:
        raise InvalidRequest(
            f"{name} has values of 32 bits (mode {mode}), and nothing tells which of them is white; save it with 8."
        )
    if 0 in getattr(value, "size", ()):
        raise InvalidRequest(f"{name} has no pixels.")
