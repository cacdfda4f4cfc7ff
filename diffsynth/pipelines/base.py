"""The public call of every pipeline: settings in, images out."""

from __future__ import annotations

import functools
import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self

from diffsynth.core.loaded import LoadedModel
from diffsynth.core.placement import free_memory
from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines import hires
from diffsynth.pipelines.calls import make_requests
from diffsynth.pipelines.codec import THROUGH_PIXELS, ImageCodec, Tiles
from diffsynth.pipelines.denoise import StepReport
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.latents import seed_from
from diffsynth.pipelines.monitor import Monitor, terminal_bar
from diffsynth.pipelines.recipe import Recipe, Source, attach, drawn_with
from diffsynth.pipelines.request import ImageRequest, check_range, resolve_names
from diffsynth.pipelines.texts import NO_TEXTS, Texts, encode_distinct
from diffsynth.schedulers.base import Scheduler

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=ImageRequest)
OutputType: TypeAlias = Literal["pil", "latent"]


class ImagePipeline(ABC, Generic[R]):
    """Networks, a prompt and a scheduler make an image. A pipeline that exists can draw."""

    request_type: ClassVar[type[ImageRequest]]
    released = False  # whether it has given its networks back
    reads_texts = True  # whether it has its text encoders

    def __post_init__(self) -> None:
        """Let the networks know who draws with them."""
        for model in self.models:
            model.users.add(self)

    def __init_subclass__(cls) -> None:
        """Show the settings of the pipeline's request in the signature of its call, for help and completion."""
        super().__init_subclass__()
        if "request_type" in cls.__dict__:
            setattr(cls, "__call__", _showing_settings(cls.request_type))  # noqa: B010

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        batch_size: int = 1,
        progress_bar_cmd: Callable[[Iterable[float]], Iterable[float]] | None = None,
        progress_bar_st: Any = None,
        callback: Callable[[StepReport], None] | None = None,
        output_type: OutputType = "pil",
        **settings: Any,
    ) -> Any:
        """Draw one image, or several.

        Args:
            prompt: what to draw; a list of prompts gives a list of images.
            num_images_per_prompt: images of each prompt.
            batch_size: images that are drawn together. More is faster where there is memory; pixels may then differ
                by 1 of 255 from those of an image drawn alone.
            progress_bar_cmd: wraps the timesteps of the loop; by default a bar where there is a terminal.
            progress_bar_st: an object with ``progress(fraction)``, such as a Streamlit bar.
            callback: called with a ``StepReport`` after each step; raise ``Cancelled`` in it to stop.
            output_type: "pil" for images, "latent" for a ``LatentImage`` each, which another call takes as
                ``input_image`` without decoding and encoding it.
            **settings: the fields of the pipeline's request. ``seed`` and ``negative_prompt`` may be lists with
                one entry per image or per prompt; image k of a call with one seed has that seed plus k. Without a
                seed torch's global generator chooses. ``image.info["seed"]`` tells the seed of each image.
                Also understood: guidance_scale, strength, image, generator.

        Returns:
            An image; a list of them for a list of prompts or several images per prompt.

        Raises:
            InvalidRequest: a setting is unknown, out of range, or contradicts another.
            CheckpointError: a weight file was changed since it was loaded.
            NonFiniteResult: numbers overflowed, in float32 too.
        """
        self._check_not_released()
        check_range("num_images_per_prompt", num_images_per_prompt, 1, 10_000, whole=True)
        check_range("batch_size", batch_size, 1, 10_000, whole=True)
        known = tuple(name for name in self.request_type.settings() if name != "prompt")
        named = resolve_names(settings, known, CALL_ARGUMENTS)
        requests = make_requests(self.request_type, prompt, num_images_per_prompt, named)
        monitor = Monitor(progress_bar_cmd or terminal_bar, progress_bar_st, callback)
        finished = self.complete(requests[0])
        self.remark_all(requests[0], finished)
        images: list[Any] = []
        for start in range(0, len(requests), batch_size):
            images += self.draw(requests[start : start + batch_size], monitor, output_type)
        return images[0] if isinstance(prompt, str) and num_images_per_prompt == 1 else images

    def draw(self, requests: Sequence[R], monitor: Monitor | None = None, output_type: OutputType = "pil") -> list[Any]:
        """Draw requests that differ in prompts and seeds only, together.

        It goes the road of ``prepare``, ``encode_texts``, ``draw_latents`` and ``decode``, which others can go in
        their own order, such as with the texts of many images first.

        Args:
            requests: what to draw; seeds that are None are chosen now.
            monitor: who is told about progress.
            output_type: "pil" or "latent".

        Returns:
            One image per request, each with its seed and recipe in ``image.info``.
        """
        if output_type not in get_args(OutputType):
            known = ", ".join(get_args(OutputType))
            raise InvalidRequest(f"output_type is {printable(output_type)!r}; known are: {known}.")
        chosen = self.prepare(requests)
        latents = self.draw_latents(chosen, self.encode_texts(chosen), monitor)
        return self.decode(chosen, latents, output_type)

    def prepare(self, requests: Sequence[R]) -> list[R]:
        """Complete requests that are to be drawn together; seeds that are None are chosen.

        Raises:
            InvalidRequest: they differ in more than prompts and seeds, or their settings do not go together.
            CheckpointError: a weight file was changed since it was loaded.
        """
        self._check_not_released()
        chosen = [self.complete(replace(each, seed=seed_from(each.seed))) for each in requests]
        if any(_shared(each) != _shared(chosen[0]) for each in chosen):
            raise InvalidRequest("requests that are drawn together may differ in prompts and seed only.")
        hires.check(chosen[0], self.scheduler_for(chosen[0]))
        for model in self.models_for(chosen[0]):
            model.check_unchanged()
        return chosen

    @torch.no_grad()
    def encode_texts(self, requests: Iterable[R], known: Texts = NO_TEXTS) -> Texts:
        """Encode every distinct text of complete requests once; they may differ in anything.

        A text is encoded alone, so its features, and the images drawn with them, do not depend on the other texts.

        Args:
            requests: as ``prepare`` returns them.
            known: texts that are encoded already, which are left out.

        Raises:
            InvalidRequest: a text encoder has no such layer, or all were given back.
            NonFiniteResult: numbers overflowed, in float32 too.
        """
        self._check_not_released()
        texts = [text for request in requests for text in self.texts_of(request) if text not in known]
        if texts:
            self.check_reads_texts()
        return encode_distinct(texts, self.encode, self.text_encoders)

    @torch.no_grad()
    def draw_latents(self, requests: Sequence[R], texts: Texts, monitor: Monitor | None = None) -> Tensor:
        """Return clean latents (B, C, h, w) scaled to unit variance, those of the second stage if there is one.

        Args:
            requests: as ``prepare`` returns them.
            texts: of these requests, and perhaps of others; on any device.
            monitor: who is told about progress.
        """
        monitor = monitor or Monitor(terminal_bar)
        if not requests[0].enlarges:
            return self.draw_stage(requests, texts, monitor)
        drafts = self._hand_out(
            self.draw_stage(requests, texts, replace(monitor, stages=2)),
            requests[0],
            "latent" if requests[0].hires_upscale == "latent" else "pil",
        )
        over = [hires.draw_over(request, draft) for request, draft in zip(requests, drafts, strict=True)]
        return self.draw_stage(over, texts, replace(monitor, stage=2, stages=2))

    @torch.no_grad()
    def decode(self, requests: Sequence[R], latents: Tensor, output_type: OutputType = "pil") -> list[Any]:
        """Return what ``draw_latents`` gave as images, each with its seed and recipe in ``image.info``.

        Raises:
            CheckpointError: a weight file was changed since it was loaded.
            NonFiniteResult: numbers overflowed, in float32 too.
        """
        images = self._hand_out(latents, requests[0], output_type)
        taking_part = self.models_for(requests[0])
        for model in taking_part:  # a file that was written to meanwhile has spoilt the images
            model.check_unchanged()
        models = tuple(Source.of_model(model) for model in taking_part)
        adapters = Source.of_adapters(taking_part)
        for image, request in zip(images, requests, strict=True):
            attach(image, Recipe(type(self).__name__, self.describe(), request, models, self.vocabularies, adapters))
        return images

    def complete(self, request: R) -> R:
        """Fill in what the request leaves to the pipeline's conventions.

        Raises:
            InvalidRequest: its settings do not go together.
        """
        finished = hires.complete(self.fill_in(request), self.round_size)
        if isinstance(finished.input_image, LatentImage):
            self.codec.accept(finished.input_image, finished.height, finished.width)
        return finished

    def release(self) -> None:
        """Give the networks back, so that their memory is freed; this pipeline cannot draw any more.

        The manager forgets those that no other pipeline draws with; those that another one shares stay, and so does
        what the caller himself holds, such as by ``fetch_model``.
        """
        device = self.models[0].device if self.models else torch.device("cpu")
        self._give_back()
        free_memory(device)

    def release_text_encoders(self) -> None:
        """Give the text encoders back, so that their memory is freed; draw with texts that were encoded before.

        They are dropped, not moved to the memory of the CPU: their files stay where they were, and another pipeline is
        soon made. As with ``release``, those that another pipeline shares stay, and so does what the caller holds.
        Recipes go on to name them.

        Raises:
            CheckpointError: a file of theirs was changed since it was loaded, which has spoilt the texts.
        """
        self._check_not_released()
        if self.reads_texts:
            for device in self._drop_text_encoders():
                free_memory(device)

    def _drop_text_encoders(self) -> set[torch.device]:
        """Keep nothing of the text encoders but what recipes tell; return where they were."""
        gone = [model for model in self.models if any(model.module is each for each in self.text_encoders)]
        for model in gone:
            model.check_unchanged()
        left = [model.without_weights() if model in gone else model for model in self.models]
        self.__dict__.update(vars(self.with_models(left)))
        self.reads_texts = False
        gc.collect()  # pipelines that nobody can reach are no users
        for model in gone:
            self._let_go(model)
        return {model.device for model in gone}

    def check_reads_texts(self) -> None:
        """Raise InvalidRequest if the text encoders were given back."""
        if not self.reads_texts:
            raise InvalidRequest(
                "the text encoders of this pipeline were given back, so it reads no more texts: encode all of them "
                "before release_text_encoders() (low_memory does so with those of a job), or make another pipeline."
            )

    def _give_back(self) -> None:
        gc.collect()  # pipelines that nobody can reach are no users
        for model in self.models:
            self._let_go(model)
        self.__dict__.update({**dict.fromkeys(vars(self)), "loaded": (), "released": True})

    def _let_go(self, model: LoadedModel[Any]) -> None:
        """Draw with a network no longer; if nobody else does, its holder forgets it."""
        model.users.discard(self)
        holder = None if model.holder is None else model.holder()
        if holder is not None and not model.users:
            holder.forget(model)

    def _check_not_released(self) -> None:
        if self.released:
            raise InvalidRequest(
                "this pipeline was released and has no networks; make another with from_model_manager(manager), "
                "after loading what the manager no longer has."
            )

    def remark_all(self, request: R, complete: R) -> None:
        """Warn of all that a user may not expect of a request, its second stage and its latents included."""
        self.remark(request, complete)
        hires.remark(request, complete)
        if isinstance(complete.input_image, LatentImage):
            self._remark_latents(complete.input_image)

    def _remark_latents(self, latents: LatentImage) -> None:
        """Tell when latents may be of another autoencoder, which their numbers do not show."""
        own = [Source.of_model(model) for model in self.models if model.module is self.codec.vae]
        if not latents.belongs_to(self.codec.vae) and not drawn_with(latents, own):
            logger.warning(
                "the latents come from another autoencoder than the one here; if it is not a variant of this one, "
                "the picture will be wrong. %s",
                THROUGH_PIXELS,
            )

    def _hand_out(self, latents: Tensor, request: R, output_type: OutputType) -> list[Any]:
        """Return (B, C, h, w) scaled latents as images, decoded or not."""
        if output_type == "latent":
            return self.codec.hand_over(latents)
        tiled: Any = request
        return [image for row in latents for image in self.codec.decode(row[None], tiles=Tiles.of(tiled))]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the denoiser is, and latents are kept."""

    @property
    @abstractmethod
    def codec(self) -> ImageCodec:
        """The autoencoder, used as the conventions say."""

    @property
    @abstractmethod
    def models(self) -> tuple[LoadedModel[Any], ...]:
        """The loaded networks, the denoiser first."""

    def models_for(self, request: R) -> tuple[LoadedModel[Any], ...]:
        """Return those of the networks that a complete request needs; its recipe names them."""
        return self.models

    def denoisers(self, request: R) -> tuple[tuple[nn.Module, float], ...]:
        """Return the denoisers, each with the timestep below which it takes over, the first one first."""
        return ((self.models[0].module, float("inf")),)

    @abstractmethod
    def with_models(self, models: Sequence[LoadedModel[Any]]) -> Self:
        """Return a pipeline that differs from this one in its networks.

        Args:
            models: networks of the same sizes, one in the place of each of ``models``.
        """

    @property
    @abstractmethod
    def vocabularies(self) -> tuple[Source, ...]:
        """The vocabularies of the tokenizers, where they are files of their own."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the settings of the pipeline itself that an image depends on."""

    @abstractmethod
    def fill_in(self, request: R) -> R:
        """Return a request with the conventions' values, but for those of a second stage; see ``complete``."""

    @abstractmethod
    def round_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that are drawn when these are wanted, in pixels."""

    @abstractmethod
    def scheduler_for(self, request: R) -> Scheduler:
        """Return the sampler that a request names, in the sense of the conventions."""

    @abstractmethod
    def remark(self, request: R, complete: R) -> None:
        """Warn of what a user may not expect: settings that were changed or have no effect beside the others."""

    @property
    @abstractmethod
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """The networks that ``encode`` uses."""

    @abstractmethod
    def texts_of(self, request: R) -> Sequence[Hashable]:
        """Return the texts that the denoiser is told of a complete request, each with how it is read."""

    @abstractmethod
    def encode(self, text: Any) -> Any:
        """Return the features of one of the ``texts_of`` a request: tensors, in a tuple or dataclass."""

    @abstractmethod
    def draw_stage(self, requests: Sequence[R], texts: Texts, monitor: Monitor) -> Tensor:
        """Return the clean latents (B, C, h, w) of one stage, scaled to unit variance.

        Args:
            requests: complete ones that differ in prompts, seeds and input images only.
            texts: features of their texts, on any device.
            monitor: who is told about progress.
        """


CALL_ARGUMENTS = tuple(
    name for name in signature(ImagePipeline.__call__).parameters if name not in ("self", "settings")
)


def _showing_settings(request_type: type[ImageRequest]) -> Callable[..., Any]:
    """Return the call of a pipeline with one keyword in its signature for each field of the request."""

    @functools.wraps(ImagePipeline.__call__)
    def call(self: ImagePipeline[Any], prompt: str | Sequence[str], **settings: Any) -> Any:
        return ImagePipeline.__call__(self, prompt, **settings)

    own = signature(ImagePipeline.__call__)
    fixed = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    fields = (each for name, each in request_type.settings().items() if name != "prompt")
    shown = [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type) for each in fields
    ]
    call.__signature__ = own.replace(parameters=[*fixed, *shown])  # type: ignore[attr-defined]
    return call


def _shared(request: ImageRequest) -> ImageRequest:
    """Return the part of a request that all images drawn together have in common."""
    return replace(request, prompt="", negative_prompt="", seed=0)
