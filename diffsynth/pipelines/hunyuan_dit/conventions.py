"""Three programs draw with HunyuanDiT's weights, and differ in ways that change every pixel.

``diffsynth`` is DiffSynth 1.1.9, ``original`` Tencent's own program, ``diffusers`` the library of that name.
A choice of conventions fixes all that the caller leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from diffsynth.errors import InvalidRequest, printable
from diffsynth.models.hunyuan_dit.rope import EndPoint

MetaSize = tuple[int, int, int, int, int, int]

# The negative prompt that Tencent's program uses when it is given none, or an empty one.
ORIGINAL_NEGATIVE = "错误的眼睛，糟糕的人脸，毁容，糟糕的艺术，变形，多余的肢体，模糊的颜色，模糊，重复，病态，残缺，"

# Sizes the model was trained on, (height, width), by aspect.
TRAINED_SIZES: Mapping[float, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        1.0: ((1024, 1024), (1280, 1280)),
        4 / 3: ((768, 1024), (864, 1152), (960, 1280)),
        3 / 4: ((1024, 768), (1152, 864), (1280, 960)),
        16 / 9: ((768, 1280),),
        9 / 16: ((1280, 768),),
    }
)


def _diffsynth_meta(height: int, width: int, tile: int | None) -> MetaSize:
    if tile is not None:
        width = height = 16 * tile
    return width, height, width, height, 0, 0


def _original_meta(height: int, width: int, tile: int | None) -> MetaSize:
    return 1024, 1024, width, height, 0, 0


def _diffusers_meta(height: int, width: int, tile: int | None) -> MetaSize:
    return 1024, 1024, height, width, 0, 0


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What a program does when it is not told otherwise, and how it does it.

    Args:
        name: of the program.
        num_inference_steps: steps.
        cfg_scale: guidance weight.
        negative_prompt: what is used when none is given.
        replaces_empty_negative: whether an empty negative prompt is replaced by it too.
        guides_below_one: whether a guidance weight below 1 is applied; 1 never is.
        strips_prompts: whether white space around prompts is removed.
        scheduler: name of the sampler.
        samplers: names that mean a sampler of this program's own.
        rope_end_point: where the positions of image tokens end.
        image_meta_size: (height, width, tile size or None) → the six numbers of the size condition (v1.0, v1.1).
        rounds_size_up: whether a size between multiples is rounded up, else down.
        resolution_binning: whether sizes are moved to the nearest the model was trained on.
        samples_posterior: whether an input image's latents are drawn from the encoder's distribution, else its mean.
        draws_hints_apart: where latents are drawn, whether those of a control picture are drawn apart from the image's
            noise, for the negative prompt and the prompt each; else once for both, after the first noise. Diffusers
            draws them from torch's global generator; here it is one that starts at the image's seed.
        truncates_pixels: whether 8-bit values are cut off, else rounded.
        norm_out_eps: epsilon of the decoder's last norm.
    """

    name: str
    num_inference_steps: int
    cfg_scale: float
    negative_prompt: str = ""
    replaces_empty_negative: bool = False
    guides_below_one: bool = False
    strips_prompts: bool = False
    scheduler: str
    samplers: Mapping[str, str] = field(default_factory=dict)
    rope_end_point: EndPoint = "stop"
    image_meta_size: Callable[[int, int, int | None], MetaSize]
    rounds_size_up: bool = False
    resolution_binning: bool = False
    samples_posterior: bool = True
    draws_hints_apart: bool = False
    truncates_pixels: bool = False
    norm_out_eps: float = 1e-6

    def guides(self, cfg_scale: float) -> bool:
        """Whether a guidance weight asks for the negative prompt at all."""
        return cfg_scale != 1 if self.guides_below_one else cfg_scale > 1

    def negative(self, prompt: str | None) -> str:
        """Return the negative prompt to use."""
        return self.negative_prompt if prompt is None or (not prompt and self.replaces_empty_negative) else prompt

    def size(self, height: int, width: int, multiple: int, *, binning: bool | None) -> tuple[int, int]:
        """Return the height and width that are drawn.

        Args:
            height: wanted, in pixels.
            width: wanted, in pixels.
            multiple: what both must be multiples of.
            binning: whether to move to a trained size; None leaves it to the program.
        """
        up = multiple - 1 if self.rounds_size_up else 0
        height, width = ((side + up) // multiple * multiple for side in (height, width))
        if self.resolution_binning if binning is None else binning:
            return nearest_trained_size(height, width)
        return height, width


def nearest_trained_size(height: int, width: int) -> tuple[int, int]:
    """Return the trained size nearest in aspect and, among those, in area."""
    every = [size for sizes in TRAINED_SIZES.values() for size in sizes]
    if (height, width) in every:
        return height, width
    aspect = min(TRAINED_SIZES, key=lambda candidate: abs(width / height - candidate))
    return min(TRAINED_SIZES[aspect], key=lambda size: abs(size[0] * size[1] - height * width))


CONVENTIONS: Mapping[Literal["diffsynth", "original", "diffusers"] | str, Conventions] = MappingProxyType(
    {
        "diffsynth": Conventions(
            name="diffsynth",
            num_inference_steps=20,
            cfg_scale=7.5,
            guides_below_one=True,
            scheduler="ddim",
            samplers={"ddim": "ddim_diffsynth"},
            image_meta_size=_diffsynth_meta,
            rounds_size_up=True,
            samples_posterior=False,
            truncates_pixels=True,
            norm_out_eps=1e-5,
        ),
        "original": Conventions(
            name="original",
            num_inference_steps=100,
            cfg_scale=6.0,
            negative_prompt=ORIGINAL_NEGATIVE,
            replaces_empty_negative=True,
            strips_prompts=True,
            scheduler="ddpm",
            image_meta_size=_original_meta,
        ),
        "diffusers": Conventions(
            name="diffusers",
            num_inference_steps=50,
            cfg_scale=5.0,
            scheduler="ddpm",
            samplers={"dpmms": "dpm++2m"},
            rope_end_point="diffusers",
            image_meta_size=_diffusers_meta,
            resolution_binning=True,
            draws_hints_apart=True,
        ),
    }
)


def conventions_named(name: str) -> Conventions:
    """Return conventions by name.

    Raises:
        InvalidRequest: there are none of this name.
    """
    if name not in CONVENTIONS:
        raise InvalidRequest(f"unknown conventions {printable(name)!r}; known are: {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]
