"""The IP-Adapter of a pipeline: which one, the image encoder it reads with, and what that says of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import AmbiguousModel, InvalidRequest
from diffsynth.manager import ModelManager
from diffsynth.models.clip_vision.model import ClipVision
from diffsynth.pipelines.ip_adapter_request import IPAdapterRequest
from diffsynth.pipelines.pictures import as_rgb
from diffsynth.pipelines.precision import finite
from diffsynth.pipelines.remarks import remark_idle
from diffsynth.pipelines.texts import REMEDY

BILINGUAL = "bilingual"  # the layout in which HunyuanDiT's CLIP comes

M = TypeVar("M", bound=nn.Module)
Misfit = Callable[[LoadedModel[Any]], str | None]

# The mean and spread of pixels from 0 to 1 that CLIP's networks were trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
SPREAD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class SeenPictures(Generic[M]):
    """Pictures as the image encoder sees them, for one denoiser.

    Args:
        adapter: makes a denoiser attend to them.
        embeds: (n, embed_size).
        scale: their weight.
    """

    adapter: M
    embeds: Tensor
    scale: float

    @property
    def without_and_with(self) -> Tensor:
        """Zeros, which stand for no picture, and the pictures: (2, n, embed_size), where the adapter is."""
        device = next(self.adapter.parameters()).device
        return torch.stack((torch.zeros_like(self.embeds), self.embeds)).to(device)


@dataclass(frozen=True)
class PicturePrompts(Generic[M]):
    """What a pipeline takes pictures as prompts with.

    Args:
        adapter: as the manager knows it; None if pictures cannot be taken.
        encoder: the image encoder; likewise.
        lacking: why they cannot be taken.
    """

    adapter: LoadedModel[M] | None = None
    encoder: LoadedModel[ClipVision] | None = None
    lacking: str = field(default="", compare=False)

    @classmethod
    def choose(
        cls,
        manager: ModelManager,
        kind: type[M],
        *,
        adapter: str | int | None,
        encoder: str | int | None,
        misfit: Misfit,
        bilingual: bool = False,
    ) -> PicturePrompts[M]:
        """Choose among the adapters and image encoders that are loaded; it is no error if there are none.

        Args:
            manager: has loaded them.
            kind: class of the adapter.
            adapter: which one, as in ``ModelManager.fetch_model``; None takes the one that fits.
            encoder: which image encoder, likewise.
            misfit: says why an adapter does not fit the denoiser; None if it does.
            bilingual: whether it reads with the image tower of HunyuanDiT's CLIP, else with one of the others.

        Raises:
            ModelNotLoaded: one that is named is not loaded.
            AmbiguousModel: several fit and none is named, or a name means several.
            InvalidRequest: one that is named does not fit.
        """
        first, why = _only(manager, kind, adapter, misfit, "an IP-Adapter for the denoiser (ip_adapter=)")
        if first is None:
            lacking = (
                "this pipeline has no IP-Adapter. Load one that fits the denoiser, and the image encoder it reads "
                f"with, with load_model(path) before the pipeline is made (--model on the command line).{why}"
            )
            if encoder is not None:
                raise InvalidRequest(f"image_encoder is given, but {lacking}")
            return cls(lacking=lacking)
        wanted = "an image encoder for the IP-Adapter (image_encoder=)"
        second, why = _only(manager, ClipVision, encoder, _unreadable(first, bilingual), wanted)
        if second is None:
            return cls(
                lacking=f"no image encoder is loaded that {first.label} reads with. Load the one it was published "
                "with, with load_model(path) before the pipeline is made (--model on the command line); from a file "
                f'that holds a text encoder too, with kind="clip_vision" (--as).{why}'
            )
        return cls(first, second)

    def exchanged(self, new: Mapping[LoadedModel[Any], LoadedModel[Any]]) -> PicturePrompts[M]:
        """Return the same with other networks in the place of these."""
        adapter, encoder = (None if entry is None else new[entry] for entry in (self.adapter, self.encoder))
        return replace(self, adapter=adapter, encoder=encoder)

    @property
    def loaded(self) -> tuple[LoadedModel[Any], ...]:
        """Both networks, if they are there."""
        return tuple(entry for entry in (self.adapter, self.encoder) if entry is not None)

    def check(self, request: IPAdapterRequest) -> None:
        """Raise InvalidRequest if a request has pictures that cannot be taken."""
        if request.ipadapter_images and not self.loaded:
            raise InvalidRequest(f"ipadapter_images are given, but {self.lacking}")

    def remark(self, request: IPAdapterRequest) -> None:
        """Tell when pictures, or their weight, have no effect."""
        if request.ipadapter_scale == 0:
            remark_idle(request, ("ipadapter_images",), "ipadapter_scale is 0")
        if not request.ipadapter_images:
            remark_idle(request, ("ipadapter_scale",), "there are no ipadapter_images")

    def in_use(self, models: Sequence[LoadedModel[Any]], request: IPAdapterRequest) -> tuple[LoadedModel[Any], ...]:
        """Return those of a pipeline's networks that a request needs: all, or without pictures all but these."""
        idle = () if request.shows_pictures else self.loaded
        return tuple(model for model in models if not any(model is each for each in idle))

    def see(self, request: IPAdapterRequest, *, squashed: bool = False) -> SeenPictures[M] | None:
        """Return what the image encoder says of the pictures of a request; None without any.

        Args:
            request: checked.
            squashed: whether pictures become squares as wholes, else by cutting off what is longer.

        Raises:
            NonFiniteResult: numbers overflowed, in float32 too.
        """
        if not request.shows_pictures or self.adapter is None or self.encoder is None:
            return None
        encoder, device = self.encoder.module, self.encoder.device
        side = encoder.config.image_size
        pixels = torch.cat([clip_pixels(each, side, squashed=squashed) for each in request.ipadapter_images])

        def compute() -> tuple[Tensor, str | None]:
            found = encoder(pixels.to(device))
            return found, None if found.isfinite().all() else "the image encoder's features"

        return SeenPictures(self.adapter.module, finite(compute, (encoder,), REMEDY), request.ipadapter_scale)


def clip_pixels(image: Image.Image, side: int, *, squashed: bool) -> Tensor:
    """Return a picture as CLIP's image encoders take it, (1, 3, side, side).

    Args:
        image: of any size; transparency is laid on white.
        side: in pixels.
        squashed: whether it becomes a square as a whole, else its middle does.
    """
    picture = as_rgb(image)
    short = min(picture.size)
    width, height = (side if squashed else int(side * length / short) for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    values = np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    normed = (torch.from_numpy(values) - torch.tensor(MEAN)) / torch.tensor(SPREAD)
    return normed.permute(2, 0, 1)[None]


def _unreadable(adapter: LoadedModel[Any], bilingual: bool) -> Misfit:
    """Return what says why an adapter cannot read with an image encoder."""

    def reason(encoder: LoadedModel[Any]) -> str | None:
        size, found = adapter.config.embed_size, encoder.config.projection_size
        if bilingual != (encoder.found.layout.name == BILINGUAL):
            return f"{encoder.label} is {'not ' if bilingual else ''}the image tower of HunyuanDiT's CLIP."
        if found != size:
            return f"{encoder.label} gives {found} features of a picture; {adapter.label} reads {size}."
        return None

    return reason


def _only(
    manager: ModelManager, kind: type[M], name: str | int | None, misfit: Misfit, wanted: str
) -> tuple[LoadedModel[M] | None, str]:
    """Return the network that is named, else the only one that fits, if any, and why others do not."""
    if name is not None:
        named = manager.find(kind, name)
        if reason := misfit(named):
            raise InvalidRequest(reason)
        return named, ""
    entries = [entry for entry in manager if isinstance(entry.module, kind)]
    reasons = [misfit(entry) for entry in entries]
    fitting = [entry for entry, reason in zip(entries, reasons, strict=True) if not reason]
    if len(fitting) > 1:
        raise AmbiguousModel(wanted, [entry.label for entry in fitting])
    return (fitting[0] if fitting else None), "".join(f"\n  {reason}" for reason in reasons if reason)
