"""Control networks of a pipeline: which ones, what each is shown, how strong it is and when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image
from torch import nn
from typing_extensions import Self

from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import InvalidRequest
from diffsynth.manager import ModelManager
from diffsynth.pipelines.canny import canny
from diffsynth.pipelines.control_request import ControlRequest, for_each
from diffsynth.pipelines.latents import rgb_of_size

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R", bound=ControlRequest)


@dataclass(frozen=True)
class Control(Generic[M]):
    """What one control network does in one image.

    Args:
        network: the control network.
        image: what it is shown, of any size.
        scale: its strength.
        start: share of the steps after which it begins, 0 to 1.
        end: share of the steps after which it ends.
        processor: what is made of the picture first: "none" or "canny".
    """

    network: M
    image: Image.Image
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    processor: str = "none"

    def acts(self, step: int, steps: int) -> bool:
        """Whether it changes anything in a step, of so many: the whole step lies in its window, as in Diffusers."""
        return self.scale != 0 and step / steps >= self.start and (step + 1) / steps <= self.end

    def acts_within(self, steps: int) -> bool:
        """Whether it changes anything in any of so many steps."""
        return any(self.acts(step, steps) for step in range(steps))

    def hint(self, height: int, width: int) -> Image.Image:
        """Return what it is shown, in RGB and the size of the image that is drawn.

        Edges are looked for in that size, so that they are one pixel wide.
        """
        picture = rgb_of_size(self.image, height, width)
        if self.processor == "none":
            return picture
        edges = np.where(canny(np.asarray(picture)), np.uint8(255), np.uint8(0))
        return Image.fromarray(edges).convert("RGB")


@dataclass(frozen=True)
class ControlNets(Generic[M]):
    """The control networks that a pipeline may draw with, in order.

    Args:
        loaded: as the manager knows them.
        left_out: why others, which are loaded, are not among them.
    """

    loaded: tuple[LoadedModel[M], ...] = ()
    left_out: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def choose(
        cls,
        manager: ModelManager,
        kind: type[M],
        names: Sequence[str | int] | None,
        misfit: Callable[[LoadedModel[M]], str | None],
    ) -> Self:
        """Choose among the control networks that are loaded.

        Args:
            manager: has loaded them.
            kind: their class.
            names: which ones, as in ``ModelManager.fetch_model``; None takes all that fit.
            misfit: says why one does not fit the denoiser; None if it does.

        Raises:
            ModelNotLoaded: one that is named is not loaded.
            AmbiguousModel: a name means several.
            InvalidRequest: one that is named does not fit, or is named twice and cannot be shown several pictures.
        """
        if names is None:
            entries = [entry for entry in manager if isinstance(entry.module, kind)]
            reasons = [misfit(entry) for entry in entries]
            left_out = tuple(reason for reason in reasons if reason)
            for text in left_out:
                logger.info("left out: %s", text)
            return cls(tuple(entry for entry, reason in zip(entries, reasons, strict=True) if not reason), left_out)
        if isinstance(names, (str, int)):
            names = [names]
        chosen = [manager.find(kind, name) for name in names]
        for number, entry in enumerate(chosen):
            if any(entry is each for each in chosen[:number]) and not cls.takes_several(entry):
                raise InvalidRequest(f"controlnets names {entry.label} twice; each is used once.")
            if reason := misfit(entry):
                raise InvalidRequest(reason)
        return cls(tuple(chosen))

    def exchanged(self, new: Mapping[LoadedModel[Any], LoadedModel[Any]]) -> Self:
        """Return the same with other networks in the place of these."""
        return replace(self, loaded=tuple(new[entry] for entry in self.loaded))

    @staticmethod
    def takes_several(entry: LoadedModel[Any]) -> bool:
        """Whether a network can be shown several pictures at once; then each place in the list is one of them."""
        return False

    def for_request(self, request: ControlRequest) -> tuple[LoadedModel[M], ...]:
        """Return the network of each entry of a request's settings; one that takes several may have all of them."""
        several = len(self.loaded) == 1 and self.takes_several(self.loaded[0])
        return self.loaded * request.controlnet_count if several else self.loaded

    def complete(self, request: R) -> R:
        """Return a request with an entry for each control network in every setting of theirs.

        Raises:
            InvalidRequest: there are pictures for more or fewer control networks than there are.
        """
        if not request.controlnet_images:
            return request
        count = len(self.for_request(request))
        if not count:
            reasons = "".join(f"\n  {reason}" for reason in self.left_out)
            raise InvalidRequest(
                "controlnet_images are given, but this pipeline has no control network. Load one that fits the "
                "denoiser with load_model(path) before the pipeline is made (--model on the command line)." + reasons
            )
        if request.controlnet_count not in (1, count):
            uneven = next(name for name in request.per_controlnet if len(getattr(request, name)) > 1)
            labels = "".join(f"\n  {entry.label}" for entry in self.loaded)
            used = "one control network is" if count == 1 else f"{count} control networks are"
            raise InvalidRequest(
                f"{uneven} has {request.controlnet_count} entries, but {used} in use; give one "
                f"for each, or one for all, or choose networks with controlnets=[...] (--controlnet):{labels}"
            )
        usual = {**request.per_controlnet, "controlnet_images": request.controlnet_images[0]}
        full: dict[str, Any] = {name: for_each(getattr(request, name), value, count) for name, value in usual.items()}
        return replace(request, **full)

    def controls(self, request: ControlRequest) -> list[Control[M]]:
        """Return what each control network does for a complete request; nothing without pictures."""
        if not request.controlnet_images:
            return []
        settings = (
            request.controlnet_images,
            request.controlnet_scales,
            request.controlnet_starts,
            request.controlnet_ends,
            request.controlnet_processors,
        )
        return [Control(entry.module, *each) for entry, *each in zip(self.for_request(request), *settings, strict=True)]

    def remark(self, request: ControlRequest, complete: R, steps: int) -> None:
        """Tell when a picture is resized, or a control network changes nothing.

        Args:
            request: as it was given.
            complete: with an entry for each control network.
            steps: how many are run.
        """
        drawn = complete.width, complete.height
        for size in dict.fromkeys(image.size for image in request.controlnet_images):
            if size != drawn:
                sizes = (*size[::-1], *drawn[::-1])
                logger.warning("a control image of %d x %d (height x width) is resized to %d x %d", *sizes)
        for entry, control in zip(self.for_request(complete), self.controls(complete), strict=False):
            if control.scale == 0:
                logger.warning("%s has no effect: its scale is 0", entry.label)
            elif not control.acts_within(steps):
                window = f"from {control.start} to {control.end} of them"
                logger.warning("%s has no effect: none of the %d steps lies wholly %s", entry.label, steps, window)

    def in_use(self, models: Sequence[LoadedModel[Any]], request: ControlRequest) -> tuple[LoadedModel[Any], ...]:
        """Return those of a pipeline's networks that a request needs: all, or without pictures all but these."""
        idle = () if request.controlnet_images else self.loaded
        return tuple(model for model in models if not any(model is each for each in idle))
