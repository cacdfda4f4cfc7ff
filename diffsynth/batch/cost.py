"""What a job costs: floating-point operations, memory in each of its stages, and time, from a measured sample."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from diffsynth.batch.plan import Plan, Unit
from diffsynth.batch.rehearsal import Load, Rehearsal
from diffsynth.batch.runner import TEXT_BYTES
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.hires import no_noise
from diffsynth.pipelines.monitor import Monitor
from diffsynth.pipelines.recipe import request_json
from diffsynth.pipelines.request import ImageRequest

SAME_COST = (  # settings that change how an image looks, or how many steps it has, but not what a step takes
    "prompt", "negative_prompt", "seed", "num_inference_steps", "denoising_strength", "hires_steps", "hires_strength",
    "scheduler", "spacing", "cfg_scale", "guidance_rescale",
)  # fmt: skip
TILES = ("tiled", "tile_size", "tile_stride")


class Kind(NamedTuple):
    """What is asked in a step.

    Args:
        denoiser: number of the denoiser, above 0 for a refiner; None for all in their turn.
        acting: for each control network, or picture of one, whether it acts.
    """

    denoiser: int | None
    acting: tuple[bool, ...]


@dataclass(frozen=True)
class Cost:
    """What an image takes that is drawn with others.

    Args:
        denoise: operations of all steps and of both stages, with guidance; bytes of all images that are drawn together.
        decode: of the autoencoder; images are decoded one by one.
    """

    denoise: Load
    decode: Load


@dataclass(frozen=True)
class Memory:
    """Bytes that one of the stages needs at a time.

    Args:
        weights: of networks.
        activations: of all else that is on their device.
    """

    weights: int
    activations: int

    @property
    def total(self) -> int:
        """Both."""
        return self.weights + self.activations


@dataclass(frozen=True)
class Sample:
    """What the first batch of a job took.

    Args:
        seconds: in all.
        text: seconds for one text.
        denoise: operations in a second.
        decode: operations in a second.
    """

    seconds: float
    text: float
    denoise: float
    decode: float


class Estimate:
    """Costs of a plan; each kind of step is rehearsed once.

    Args:
        pipe: what draws.
        plan: the job.
        low_memory: whether the text encoders are given back before the first image is drawn.

    Attributes:
        text: what one text takes.
        features: bytes of its features.
    """

    def __init__(self, pipe: ImagePipeline[Any], plan: Plan, *, low_memory: bool = False) -> None:
        self.pipe, self.plan, self.low_memory = pipe, plan, low_memory
        self._rehearsal = Rehearsal(pipe)
        self._stages: dict[str, tuple[Load, Load]] = {}
        self._decoded: dict[str, Load] = {}
        largest: dict[str, Unit] = {}
        for unit in plan.units:
            known = largest.setdefault(unit.group.digest, unit)
            if len(unit.items) > len(known.items):
                largest[unit.group.digest] = unit
        self.text, self.features = self._rehearsal.text(self._first(plan.units[0]))
        self._costs = {digest: self.of(self._requests(unit)) for digest, unit in largest.items()}

    def of(self, requests: Sequence[ImageRequest]) -> Cost:
        """Return what each of several complete requests takes that are drawn together."""
        stages, drafts = [list(requests)], 0.0
        if requests[0].enlarges:
            stages.append(self._rehearsal.enlarged(requests))
            drafts = 0 if requests[0].hires_upscale == "latent" else self._decoding(requests[0]).operations
        loads = [self._stage(stage) for stage in stages]
        denoise = sum(load.operations for load in loads) / len(requests) + drafts
        return Cost(Load(denoise, max(load.nbytes for load in loads)), self._decoding(stages[-1][0]))

    def _first(self, unit: Unit) -> Any:
        """Return the complete request of a unit's first image."""
        (request,) = self.pipe.prepare([unit.group.request(self.pipe, unit.items[0])])
        return request

    def _requests(self, unit: Unit) -> list[Any]:
        """Return the complete requests of a unit's first batch."""
        batch = next(unit.batches())
        return self.pipe.prepare([unit.group.request(self.pipe, item) for item in batch])

    def _stage(self, requests: Sequence[ImageRequest]) -> Load:
        """Return what a stage takes, all images that are drawn together."""
        kinds = kinds_of_steps(self.pipe, requests[0])
        all_acting = tuple(any(each) for each in zip(*(kind.acting for kind in kinds), strict=True))
        before, _ = self._rehearsed(requests, Kind(None, all_acting))
        steps = {kind: self._rehearsed(requests, kind)[1] for kind in kinds}
        operations = before.operations + sum(count * steps[kind].operations for kind, count in kinds.items())
        return Load(operations, max(load.nbytes for load in (before, *steps.values())))

    def _rehearsed(self, requests: Sequence[ImageRequest], kind: Kind) -> tuple[Load, Load]:
        """Return what comes before the first step, and a step of a kind."""
        wanted = [_with_steps_like(request, kind, self.pipe) for request in requests]
        settings = {name: value for name, value in request_json(wanted[0]).items() if name not in SAME_COST}
        key = json.dumps([settings, len(requests), len(self.pipe.texts_of(wanted[0]))])
        if key not in self._stages:
            self._stages[key] = self._rehearsal.stage(wanted)
        return self._stages[key]

    def _decoding(self, request: ImageRequest) -> Load:
        key = repr((request.height, request.width, *(getattr(request, name, None) for name in TILES)))
        if key not in self._decoded:
            self._decoded[key] = self._rehearsal.decoding(request)
        return self._decoded[key]

    @cached_property
    def texts(self) -> int:
        """How many distinct texts there are."""
        requests = ((self._first(unit), unit) for unit in self.plan.units)
        return len({
            text
            for request, unit in requests
            for item in unit.items
            for text in self.pipe.texts_of(
                replace(request, prompt=item.prompt, negative_prompt=item.negative_prompt)
            )
        })  # fmt: skip

    @property
    def reading(self) -> float:
        """Operations of the text encoders, if all texts were like the first."""
        return self.texts * self.text.operations

    @property
    def denoising(self) -> float:
        """Operations of denoising."""
        return sum(len(unit.items) * self._costs[unit.group.digest].denoise.operations for unit in self.plan.units)

    @property
    def decoding(self) -> float:
        """Operations of decoding."""
        return sum(len(unit.items) * self._costs[unit.group.digest].decode.operations for unit in self.plan.units)

    @property
    def operations(self) -> float:
        """Of the whole job."""
        return self.reading + self.denoising + self.decoding

    @property
    def weights(self) -> int:
        """Bytes of all networks."""
        return self._rehearsal.weights

    @property
    def text_weights(self) -> int:
        """Bytes of the text encoders among them."""
        return self._rehearsal.text_weights

    @property
    def kept(self) -> int:
        """Bytes of text features that are kept in the memory of the CPU at a time."""
        return min(self.texts * self.features, TEXT_BYTES)

    @property
    def memory(self) -> dict[str, Memory]:
        """Bytes that each stage needs at a time: "texts", "denoising", "decoding"."""
        drawing = self.weights - (self.text_weights if self.low_memory else 0)
        costs = self._costs.values()
        return {
            "texts": Memory(self.weights, self.text.nbytes),
            "denoising": Memory(drawing, max(cost.denoise.nbytes for cost in costs)),
            "decoding": Memory(drawing, max(cost.decode.nbytes for cost in costs)),
        }

    def seconds(self, sample: Sample) -> float:
        """Return how long the whole job takes where a sample was drawn."""
        return self.texts * sample.text + self.denoising / sample.denoise + self.decoding / sample.decode

    def measure(self) -> Sample:
        """Draw the first batch of the job."""
        requests = self._requests(self.plan.units[0])
        cost = self._costs[self.plan.units[0].group.digest]
        began = time.perf_counter()
        texts = self.pipe.encode_texts(requests)  # which reads the weights from the disk
        reading = time.perf_counter()
        self.pipe.encode_texts(requests[:1])
        drawing = time.perf_counter()
        latents = self.pipe.draw_latents(requests, texts, Monitor(iter))
        decoding = time.perf_counter()
        self.pipe.decode(requests, latents)
        end = time.perf_counter()
        count = len(requests)
        return Sample(
            end - began,
            (drawing - reading) / len(set(self.pipe.texts_of(requests[0]))),
            count * cost.denoise.operations / (decoding - drawing),
            count * cost.decode.operations / (end - decoding),
        )


def kinds_of_steps(pipe: Any, request: Any) -> Counter[Kind]:
    """Return how many steps of each kind a stage has."""
    run = pipe.scheduler_for(request).start(
        request.num_inference_steps, denoising_strength=request.denoising_strength, draw_noise=no_noise
    )
    controls, steps = pipe.controlnets.controls(request), len(run.timesteps)
    ends = [below for _, below in pipe.denoisers(request)]
    kinds: Counter[Kind] = Counter()
    for step, timestep in enumerate(run.timesteps):
        denoiser = max(number for number, below in enumerate(ends) if timestep < below)
        kinds[Kind(denoiser, tuple(denoiser == 0 and control.acts(step, steps) for control in controls))] += 1
    return kinds


def _with_steps_like(request: Any, kind: Kind, pipe: Any) -> Any:
    """Return a request whose steps are all of a kind."""
    changes: dict[str, Any] = {}
    if kind.acting:
        scales = zip(request.controlnet_scales, kind.acting, strict=True)
        changes["controlnet_scales"] = tuple(scale if acts else 0.0 for scale, acts in scales)
        changes["controlnet_starts"], changes["controlnet_ends"] = ((value,) * len(kind.acting) for value in (0.0, 1.0))
    if kind.denoiser is not None and len(pipe.denoisers(request)) > 1:
        changes["refiner_start"] = 0.0 if kind.denoiser else 1.0
    return replace(request, **changes)
