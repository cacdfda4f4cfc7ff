"""A pipeline without networks that draws noise of its seed in no time, and says what it drew."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self, override

from diffsynth.core.loaded import LoadedModel
from diffsynth.pipelines.base import ImagePipeline, OutputType
from diffsynth.pipelines.codec import ImageCodec
from diffsynth.pipelines.latents import Noise, pixels_to_images
from diffsynth.pipelines.monitor import Monitor
from diffsynth.pipelines.recipe import Source
from diffsynth.pipelines.request import ImageRequest
from diffsynth.pipelines.texts import Texts, rows_of
from diffsynth.schedulers.base import Scheduler
from diffsynth.schedulers.catalog import make_scheduler


class FakePipeline(ImagePipeline[ImageRequest]):
    """Draws noise; an image depends on prompt, negative prompt, seed and guidance, as real ones do.

    Args:
        seconds: that a batch takes.
        on_draw: told of every batch.
    """

    request_type: ClassVar[type[ImageRequest]] = ImageRequest

    def __init__(
        self, seconds: float = 0.0, on_draw: Callable[[Sequence[ImageRequest]], None] = lambda requests: None
    ) -> None:
        self.seconds = seconds
        self.on_draw = on_draw
        super().__post_init__()

    @property
    @override
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    @override
    def codec(self) -> ImageCodec:
        raise AssertionError("there is no autoencoder")

    @property
    @override
    def models(self) -> tuple[LoadedModel[Any], ...]:
        return ()

    @override
    def with_models(self, models: Sequence[LoadedModel[Any]]) -> Self:
        return self

    @property
    @override
    def vocabularies(self) -> tuple[Source, ...]:
        return ()

    @property
    @override
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return ()

    @override
    def describe(self) -> dict[str, Any]:
        return {}

    @override
    def fill_in(self, request: ImageRequest) -> ImageRequest:
        return replace(
            request,
            height=request.height or 16,
            width=request.width or 16,
            cfg_scale=request.cfg_scale or 1.0,
            num_inference_steps=request.num_inference_steps or 1,
        )

    @override
    def round_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    @override
    def scheduler_for(self, request: ImageRequest) -> Scheduler:
        return make_scheduler("ddim", beta_start=0.001, beta_end=0.01, prediction="epsilon")

    @override
    def remark(self, request: ImageRequest, complete: ImageRequest) -> None:
        """Nothing to tell."""

    @override
    def texts_of(self, request: ImageRequest) -> Sequence[Hashable]:
        return [request.prompt, request.negative_prompt or ""]

    @override
    def encode(self, text: str) -> Tensor:
        digest = hashlib.sha256(text.encode()).digest()
        return torch.tensor([byte / 255 for byte in digest[:3]])

    @override
    def draw_stage(self, requests: Sequence[ImageRequest], texts: Texts, monitor: Monitor) -> Tensor:
        self.on_draw(requests)
        time.sleep(self.seconds)
        first = requests[0]
        assert first.height is not None
        assert first.width is not None
        seeds = [each.seed or 0 for each in requests]
        noise = Noise(seeds, (3, first.height, first.width), self.device).draw() * 0.1
        colors = torch.stack([texts[text] for text in rows_of(self.texts_of(each) for each in requests)])
        conditional, negative = colors.view(2, len(requests), 3, 1, 1)
        latents = noise + conditional - negative * 0.5 * (first.cfg_scale or 0)
        report = monitor.on_step([0.0], lambda latents: [])
        report(0, latents)
        found: Tensor = latents
        return found

    @override
    def _hand_out(self, latents: Tensor, request: ImageRequest, output_type: OutputType) -> list[Image.Image]:
        return pixels_to_images(latents, truncate=False)
