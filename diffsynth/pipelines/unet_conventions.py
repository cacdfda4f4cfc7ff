"""What programs that draw with Stable Diffusion and SDXL do when they are not told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.unet_request import LongPrompts

Absent = Literal["encoded", "zeros_if_none", "zeros_if_empty"]


@dataclass(frozen=True, kw_only=True)
class UNetConventions:
    """The defaults of one program, and how it does what the caller cannot choose.

    Args:
        name: of the program.
        num_inference_steps: steps.
        cfg_scale: guidance weight.
        size: height and width of an image in pixels.
        size_multiple: what both become multiples of.
        rounds_size_up: whether a size between multiples is rounded up, else down.
        guides_below_one: whether a guidance weight below 1 is applied; 1 never is.
        scheduler: name of the sampler.
        spacing: its spacing; None for the sampler's own.
        samplers: names that mean a sampler of this program's own.
        final_sigma: sampler → where its last step leads, if not where it usually does.
        samples_posterior: whether an input image's latents are drawn from the encoder's distribution, else its mean.
        truncates_pixels: whether 8-bit values are cut off, else rounded.
        norm_out_eps: epsilon of the decoder's last norm.
        long_prompts: what becomes of prompts that are longer than the text encoders read.
        skips_negative: whether the clip skip holds for the negative prompt too.
        scale_without_picture: weight of an IP-Adapter where it sees no picture; None for that of the pictures.
        absent_negative: what a negative prompt becomes that is None or empty.
    """

    name: str
    num_inference_steps: int
    cfg_scale: float
    size: int
    size_multiple: int = 8
    rounds_size_up: bool = False
    guides_below_one: bool = False
    scheduler: str
    spacing: str | None = None
    samplers: Mapping[str, str] = field(default_factory=dict)
    final_sigma: Mapping[str, str] = field(default_factory=dict)
    samples_posterior: bool = True
    truncates_pixels: bool = False
    norm_out_eps: float = 1e-6
    long_prompts: LongPrompts = "cut"
    skips_negative: bool = False
    scale_without_picture: float | None = None
    absent_negative: Absent = "encoded"

    def guides(self, cfg_scale: float) -> bool:
        """Whether a guidance weight asks for the negative prompt at all."""
        return cfg_scale != 1 if self.guides_below_one else cfg_scale > 1

    def negative(self, prompt: str | None) -> str | None:
        """Return the negative prompt to encode, or None for features that are all zero."""
        if self.absent_negative == "zeros_if_empty":
            return prompt or None
        return prompt if self.absent_negative == "zeros_if_none" else prompt or ""

    def round_size(self, height: int, width: int, downscale: int) -> tuple[int, int]:
        """Return the height and width that are drawn.

        Args:
            height: wanted, in pixels.
            width: wanted, in pixels.
            downscale: image pixels per latent pixel; both become multiples of it in any case.
        """
        multiple = max(self.size_multiple, downscale)
        up = multiple - 1 if self.rounds_size_up else 0
        rounded = [max((side + up) // multiple, 1) * multiple for side in (height, width)]
        return rounded[0], rounded[1]


# The programs that draw with both families: DiffSynth 1.1.9 and the Diffusers library, here with Stable Diffusion 1.5.
DIFFSYNTH = UNetConventions(
    name="diffsynth",
    num_inference_steps=20,
    cfg_scale=7.5,
    size=512,
    size_multiple=64,
    rounds_size_up=True,
    guides_below_one=True,
    scheduler="ddim",
    samplers={"ddim": "ddim_diffsynth"},
    samples_posterior=False,
    truncates_pixels=True,
    norm_out_eps=1e-5,
    long_prompts="blocks",
    skips_negative=True,
    scale_without_picture=1.0,
)
DIFFUSERS = UNetConventions(
    name="diffusers",
    num_inference_steps=50,
    cfg_scale=7.5,
    size=512,
    scheduler="pndm",
    final_sigma={"ddim": "sigma_min"},
)


def choose(conventions: Mapping[str, UNetConventions], name: str) -> UNetConventions:
    """Return conventions by name.

    Raises:
        InvalidRequest: there are none of this name.
    """
    if name not in conventions:
        raise InvalidRequest(f"unknown conventions {printable(name)!r}; known are: {', '.join(conventions)}.")
    return conventions[name]
