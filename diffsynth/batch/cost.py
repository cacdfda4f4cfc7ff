"""What a job costs: floating-point operations from the networks' sizes, weights in memory, and time at a known rate.

Operations are counted, not guessed: the networks are built without weights, on PyTorch's meta device, and run once for
their shapes. A multiplication with its addition is two operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffsynth.batch.plan import Plan, Unit
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.models.unet.model import UNet
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.monitor import Monitor
from diffsynth.pipelines.request import ImageRequest

TEXT_TOKENS = 77  # of a prompt that no encoder cuts


def _attention(queries: Sequence[int], keys: Sequence[int], values: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations of attention on (B, heads, L, size); PyTorch does not count those of a CPU."""
    batch, heads, length, size = queries
    return 2 * batch * heads * length * keys[2] * (size + values[3])


ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@dataclass(frozen=True)
class Cost:
    """Operations of one image.

    Args:
        denoise: of all steps and of both stages, with guidance.
        decode: of the autoencoder.
    """

    denoise: float
    decode: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.denoise + self.decode


def hunyuan_dit_step(config: HunyuanDiTConfig, height: int, width: int) -> int:
    """Return the operations of one step for one row, a half of a guidance pair, with the prompt's part done before.

    Args:
        config: sizes of the network.
        height: of the latents.
        width: of the latents.
    """
    tokens = height * width // config.patch_size**2
    size, depth, text = config.hidden_size, config.depth, config.text_len + config.t5_len
    own = 8 * depth * tokens * size**2 + 4 * depth * tokens**2 * size
    cross = 4 * depth * tokens * size**2 + 4 * depth * tokens * text * size
    mlp = 4 * depth * tokens * size * config.mlp_size
    skips = 4 * len(config.skip_sources) * tokens * size**2
    ends = 2 * tokens * size * config.patch_size**2 * 3 * config.in_channels
    return own + cross + mlp + skips + ends


def counted(call: Callable[[], Any]) -> int:
    """Return the operations of a call."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


def step_cost(network: Any, height: int, width: int) -> int:
    """Return the operations of a denoiser's step for one row; height and width are those of the latents."""
    if isinstance(network.config, HunyuanDiTConfig):
        return hunyuan_dit_step(network.config, height, width)
    with torch.device("meta"):
        unet = UNet(network.config)
        latents = torch.zeros(1, network.config.in_channels, height, width)
        context = torch.zeros(1, TEXT_TOKENS, network.config.context_size)
        label = [torch.zeros(1, network.config.label_size), torch.zeros(1, 0)] if network.config.label_size else []
        return counted(lambda: unet(latents, torch.zeros(1), context, *label))


def decode_cost(vae: Any, height: int, width: int) -> int:
    """Return the operations of decoding one image; height and width are those of the latents."""
    with torch.device("meta"):
        twin = type(vae)(vae.config)
        return counted(lambda: twin.decode(torch.zeros(1, vae.config.latent_channels, height, width)))


class Estimate:
    """Costs of a plan, each kind of image counted once.

    Args:
        pipe: what draws.
        plan: the job.
    """

    def __init__(self, pipe: ImagePipeline[Any], plan: Plan) -> None:
        self.pipe, self.plan = pipe, plan
        self._networks: dict[tuple[str, int, int], int] = {}
        self._units = [(unit, self.image(self.request_of(unit))) for unit in plan.units]

    def request_of(self, unit: Unit) -> Any:
        """Return the complete request of a unit's first image."""
        (request,) = self.pipe.prepare([unit.group.request(self.pipe, unit.items[0])])
        return request

    def image(self, request: ImageRequest) -> Cost:
        """Return the cost of a complete request."""
        assert request.height is not None
        assert request.width is not None
        steps = request.num_inference_steps or 0
        stages = [(request.height, request.width, steps * request.denoising_strength)]
        if request.enlarges:
            assert request.hires_height is not None
            assert request.hires_width is not None
            again = (request.hires_steps or steps) * (request.hires_strength or 0)
            stages.append((request.hires_height, request.hires_width, again))
        rows = len(self.pipe.texts_of(request))
        denoise = sum(rows * count * self._of("denoiser", height, width) for height, width, count in stages)
        return Cost(denoise, self._of("vae", *stages[-1][:2]))

    def _of(self, part: str, height: int, width: int) -> int:
        if (part, height, width) not in self._networks:
            vae: Any = self.pipe.codec.vae
            size = height // vae.config.downscale, width // vae.config.downscale
            denoiser: Any = self.pipe.models[0].module
            cost = decode_cost(vae, *size) if part == "vae" else step_cost(denoiser, *size)
            self._networks[part, height, width] = cost
        return self._networks[part, height, width]

    @property
    def operations(self) -> float:
        """Of the whole job, but for its texts."""
        return sum(len(unit.items) * cost.total for unit, cost in self._units)

    @property
    def decoding(self) -> float:
        """The share of it that decoding takes, 0 to 1."""
        return sum(len(unit.items) * cost.decode for unit, cost in self._units) / max(self.operations, 1)

    @property
    def texts(self) -> int:
        """How many distinct texts there are."""
        requests = ((self.request_of(unit), unit) for unit in self.plan.units)
        return len({
            text
            for request, unit in requests
            for item in unit.items
            for text in self.pipe.texts_of(
                replace(request, prompt=item.prompt, negative_prompt=item.negative_prompt)
            )
        })  # fmt: skip

    @property
    def weights(self) -> int:
        """Bytes of all networks."""
        return sum(model.nbytes for model in self.pipe.models)

    def measure(self) -> tuple[float, float]:
        """Draw the first batch of the job and return its seconds, and operations per second."""
        unit, cost = self._units[0]
        batch = next(unit.batches())
        started = time.perf_counter()
        requests = self.pipe.prepare([unit.group.request(self.pipe, item) for item in batch])
        texts = self.pipe.encode_texts(requests)
        drawing = time.perf_counter()
        self.pipe.decode(requests, self.pipe.draw_latents(requests, texts, Monitor(iter)))
        seconds = time.perf_counter() - drawing
        return drawing - started + seconds, len(batch) * cost.total / seconds
