"""Control networks of UNets in a pipeline: which ones fit, what each is shown, and what they add in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import InvalidRequest
from diffsynth.models.unet.condition import Controls, Plan, Rows
from diffsynth.models.unet.control import ControlNet, Hint
from diffsynth.pipelines.control import Control, ControlNets
from diffsynth.pipelines.unet_request import UNION_TYPES, UNetRequest

R = TypeVar("R", bound=UNetRequest)

Acting = tuple[int, ...]  # which of a network's pictures count in a step


class UNetControlNets(ControlNets[ControlNet]):
    """The control networks that a UNet may be steered by; a union network may be shown several pictures at once."""

    @staticmethod
    @override
    def takes_several(entry: LoadedModel[Any]) -> bool:
        return bool(entry.config.types)

    def fill_in(self, request: R) -> R:
        """Do what ``complete`` does, and look at the types of the pictures.

        Raises:
            InvalidRequest: as there; or a type is missing, unknown to its network or given to one without types.
        """
        finished = self.complete(request)
        if finished.controlnet_images:
            for entry, name in zip(self.for_request(finished), finished.controlnet_types, strict=True):
                _check_type(entry, name)
        return finished

    def guides(self, request: UNetRequest, steps: int) -> list[Guide]:
        """Return what each control network does for a complete request in a run of so many steps.

        Pictures that do nothing are left out, and networks that have no others.
        """
        shown: dict[ControlNet, list[tuple[Control[ControlNet], int]]] = {}
        for control, name in zip(self.controls(request), request.controlnet_types, strict=True):
            if any(control.acts(step, steps) for step in range(steps)):
                shown.setdefault(control.network, []).append((control, UNION_TYPES.get(name, 0)))
        return [Guide.prepare(network, pairs, request, steps) for network, pairs in shown.items()]


@dataclass(frozen=True, eq=False)
class Guide:
    """A control network and the pictures that it is shown for one image.

    Args:
        network: the control network.
        types: what a union network takes each picture for.
        acting: for every step, which of the pictures count.
        hints: what these become before the loop, by the same.
        scale: what the outputs are multiplied by; 1 where each of several pictures has a scale of its own.
        guesses: whether it sees the prompts' rows only, its first outputs weakened ("guess mode").
    """

    network: ControlNet
    types: tuple[int, ...]
    acting: tuple[Acting, ...]
    hints: Mapping[Acting, Tensor]
    scale: float
    guesses: bool

    @classmethod
    def prepare(
        cls, network: ControlNet, shown: Sequence[tuple[Control[ControlNet], int]], request: UNetRequest, steps: int
    ) -> Guide:
        """Encode pictures once for a whole loop.

        Args:
            network: the control network.
            shown: the pictures and their types.
            request: complete.
            steps: of the loop.
        """
        assert request.height is not None
        assert request.width is not None
        device = next(network.parameters()).device
        one = len(shown) == 1
        hints = [
            Hint(_pixels(control, request.height, request.width).to(device), type, 1.0 if one else control.scale)
            for control, type in shown
        ]
        acting = tuple(
            tuple(number for number, (control, _) in enumerate(shown) if control.acts(step, steps))
            for step in range(steps)
        )
        return cls(
            network=network,
            types=tuple(hint.type for hint in hints),
            acting=acting,
            hints={each: network.encode_hints([hints[number] for number in each]) for each in set(acting) if each},
            scale=shown[0][0].scale if one else 1.0,
            guesses=request.guess_mode,
        )

    def __call__(self, latents: Tensor, step: int, plan: Plan) -> Controls | None:
        """Return what is added to the outputs of the denoiser in a step; None if it does nothing in it."""
        hints = self.hints.get(self.acting[step])
        if hints is None:
            return None
        controls = self.network.denoise(latents, step, plan, hints=hints)
        return (controls.rising() if self.guesses else controls) * self.scale


@dataclass(frozen=True, eq=False)
class PlannedGuide:
    """A guide for some rows that the denoiser is run on together.

    Args:
        guide: the control network and its pictures.
        plan: of the rows that it sees.
        rows: which these are; None for all.
    """

    guide: Guide
    plan: Plan
    rows: Rows | None

    def __call__(self, latents: Tensor, step: int) -> Controls | None:
        """Return what is added for all rows, nothing to those that it does not see."""
        if self.rows is None:
            return self.guide(latents, step, self.plan)
        controls = self.guide(latents[self.rows], step, self.plan)
        return None if controls is None else controls.spread(self.rows, len(latents))


def steer(guides: Sequence[PlannedGuide], latents: Tensor, step: int) -> Controls | None:
    """Return the sum of what control networks add; None if none does anything in this step."""
    total: Controls | None = None
    for guide in guides:
        controls = guide(latents, step)
        if controls is not None:
            total = controls if total is None else total + controls
    return total


def misfit(denoiser: LoadedModel[Any], vae: LoadedModel[Any]) -> Callable[[LoadedModel[Any]], str | None]:
    """Return what says why a control network does not fit a denoiser and its autoencoder; None if it does."""

    def reason(entry: LoadedModel[Any]) -> str | None:
        net, unet = entry.config, denoiser.config
        sizes = {
            "latent channels": (net.in_channels, unet.out_channels),
            "output widths": (net.skip_channels, unet.skip_channels),
            "text features": (net.text_size or net.context_size, net.context_size and _text_size(unet)),
            "pooled features and numbers": (net.label_size, unet.label_size),
            "pixels per latent": (net.downscale, vae.config.downscale),
        }
        wrong = [f"{name} {mine}, not {theirs}" for name, (mine, theirs) in sizes.items() if mine != theirs]
        if not wrong:
            return None
        versions = [f" ({each.family.version(each.config)})" for each in (entry, denoiser)]
        mine, theirs = (version if version != " ()" else "" for version in versions)
        return (
            f"{entry.label}{mine} does not fit {denoiser.label}{theirs}: it has {'; '.join(wrong)}. "
            "A control network steers denoisers of the release that it was trained for."
        )

    return reason


def _text_size(config: Any) -> int:
    return int(config.text_size or config.context_size)


def _check_type(entry: LoadedModel[Any], name: str) -> None:
    """Raise InvalidRequest unless a type is given exactly where a network needs one that it knows."""
    types = entry.config.types
    if not types:
        if name:
            raise InvalidRequest(
                f"controlnet_types says {name!r}, but {entry.label} knows one type of pictures only; types are for "
                "union networks, and an empty text stands for the others."
            )
        return
    known = ", ".join(each for each, number in UNION_TYPES.items() if number < types)
    if not name:
        raise InvalidRequest(f"{entry.label} is a union network: say what the pictures are with controlnet_types: "
                             f"{known}.")  # fmt: skip
    if UNION_TYPES[name] >= types:
        raise InvalidRequest(f"controlnet_types says {name!r}, but {entry.label} knows {types} types: {known}.")


def _pixels(control: Control[ControlNet], height: int, width: int) -> Tensor:
    """Return a picture as (1, 3, height, width) float32 in [0, 1]."""
    values = np.array(control.hint(height, width), dtype=np.float32)
    return (torch.from_numpy(values) / 255).permute(2, 0, 1)[None]
