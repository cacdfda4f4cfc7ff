"""What an image would take, found by drawing it without weights: every operation is run for its shapes alone.

The networks are built on PyTorch's meta device, and the pipeline itself draws with them; so whatever it asks of them is
counted: control networks, a refiner, an IP-Adapter, tiles, second stages. A multiplication with its addition is two
operations. Bytes are those of live tensors; what a kernel or an allocator needs besides is not seen, up to a tenth more
for small networks on a CPU. Attention counts as one kernel, which writes no scores. Attached LoRAs are left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from diffsynth.core.loaded import LoadedModel
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.codec import Tiles
from diffsynth.pipelines.denoise import StepReport
from diffsynth.pipelines.hires import draw_over
from diffsynth.pipelines.monitor import Monitor
from diffsynth.pipelines.request import ImageRequest
from diffsynth.pipelines.texts import Texts, with_tensors

aten = torch.ops.aten


@dataclass(frozen=True)
class Load:
    """What a computation takes.

    Args:
        operations: floating-point ones.
        nbytes: the most that its tensors have at a time, without what was there before.
    """

    operations: float = 0
    nbytes: int = 0


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations on tensors without values, and watches what they take.

    Where values are looked at, all is finite and true, and what is brought to the CPU is zero.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0.0
        self.nbytes = 0  # the most there were at a time
        self._now = 0
        self._sizes: dict[int, int] = {}  # storage → bytes, while it lives

    @property
    def load(self) -> Load:
        """All until now."""
        return Load(self.operations, self.nbytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or stand in for it, and note what it did and made."""
        kwargs = kwargs or {}
        stand_in = STAND_INS.get(func)
        if stand_in is not None and args[0].is_meta:
            found = stand_in(args, kwargs)
            if found is not None:
                return found
        before = self._storages((args, kwargs))
        result = func(*args, **kwargs)
        count = OPERATIONS.get(func.overloadpacket)
        if count is not None:
            self.operations += count(*args, **kwargs, out_val=result)
        for place, storage in self._storages(result).items():
            if place not in before and place not in self._sizes:
                self._made(place, storage)
        self.nbytes = max(self.nbytes, self._now)
        return result

    def _storages(self, values: Any) -> dict[int, Any]:
        found = [each.untyped_storage() for each in tree_leaves(values) if isinstance(each, Tensor) and each.is_meta]
        return {storage._cdata: storage for storage in found}

    def _made(self, place: int, storage: Any) -> None:
        self._sizes[place] = storage.nbytes()
        self._now += storage.nbytes()
        weakref.finalize(storage, self._gone, place).atexit = False

    def _gone(self, place: int) -> None:
        self._now -= self._sizes.pop(place)


def _value(args: Any, kwargs: Any) -> Any:
    return True if args[0].dtype is torch.bool else 1


def _on_cpu(args: Any, kwargs: Any) -> Tensor | None:
    if torch.device(kwargs.get("device") or "meta").type != "cpu":
        return None
    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)


def _attention(queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
    """Return the operations of attention on (B, heads, L, size)."""
    batch, heads, length, size = queries.shape
    return int(2 * batch * heads * length * keys.shape[2] * (size + values.shape[3]))


STAND_INS: Mapping[Any, Callable[[Any, Any], Any]] = {
    aten._local_scalar_dense.default: _value,
    aten._to_copy.default: _on_cpu,
    aten.nonzero.default: lambda args, kwargs: torch.empty(0, args[0].ndim, dtype=torch.int64),
}
OPERATIONS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # PyTorch does not count those of a CPU
}


class FusedAttention(TorchFunctionMode):
    """Takes one kernel for attention, as a device would; on the meta device torch writes the scores out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _fused(*args, **kwargs)
        return func(*args, **kwargs)


def _fused(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    found: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
        queries, keys, values, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return found


class _Enough(Exception):
    """Ends a run whose further steps are like the last."""


class Rehearsal:
    """Draws with a pipeline's networks, but without their weights.

    Args:
        pipe: the pipeline; it is not touched.
    """

    def __init__(self, pipe: ImagePipeline[Any]) -> None:
        self._twin: Any = pipe.with_models([_on_meta(model) for model in pipe.models])
        self._features: Any = None  # of a text, and so like those of all

    @property
    def weights(self) -> int:
        """Bytes of the weights of all networks."""
        return sum(_bytes_of(model.module) for model in self._twin.models)

    @property
    def text_weights(self) -> int:
        """Bytes of the weights of the text encoders."""
        return sum(_bytes_of(network) for network in self._twin.text_encoders)

    def text(self, request: ImageRequest) -> tuple[Load, int]:
        """Return what it takes to encode a text of a complete request, and the bytes of its features."""
        text = self._twin.texts_of(request)[-1]
        with watched() as watch:
            self._features = self._twin.encode(text)
        return watch.load, Texts({text: self._features}).nbytes

    def stage(self, requests: Sequence[ImageRequest]) -> tuple[Load, Load]:
        """Return what comes before the first step of a stage, and the first step; bytes are those of both.

        Args:
            requests: complete ones that are drawn together.
        """
        if self._features is None:
            self.text(requests[0])
        wanted = dict.fromkeys(text for request in requests for text in self._twin.texts_of(request))
        texts = Texts({text: _alike(self._features, number) for number, text in enumerate(wanted, 1)})
        done: list[float] = []

        def begin(timesteps: Iterable[float]) -> Iterator[float]:
            done.append(watch.operations)
            return iter(timesteps)

        def end(report: StepReport) -> None:
            done.append(watch.operations)
            raise _Enough

        with watched() as watch, suppress(_Enough):
            self._twin.draw_stage(requests, texts, Monitor(begin, callback=end))
        before, all_of_it = done
        return Load(before, watch.nbytes), Load(all_of_it - before, watch.nbytes)

    def decoding(self, request: ImageRequest) -> Load:
        """Return what it takes to decode an image of the size of a complete request."""
        tiled: Any = request
        with watched() as watch:
            self._twin.codec.decode(self._latents([request]).to("meta"), tiles=Tiles.of(tiled))
        return watch.load

    def enlarged(self, requests: Sequence[ImageRequest]) -> list[ImageRequest]:
        """Return requests of the second stage for those of the first, with pictures like those that it would get."""
        first = requests[0]
        drafts: list[Any]
        if first.hires_upscale == "latent":
            drafts = self._twin.codec.hand_over(self._latents(requests))
            return [draw_over(request, draft) for request, draft in zip(requests, drafts, strict=True)]
        size = (first.width or 0, first.height or 0)
        return [draw_over(request, Image.new("RGB", size)) for request in requests]

    def _latents(self, requests: Sequence[ImageRequest]) -> Tensor:
        config, first = self._twin.codec.vae.config, requests[0]
        return torch.zeros(len(requests), config.latent_channels, *config.latent_size(first.height, first.width))


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch what happens in a block."""
    watch = Watch()
    with torch.no_grad(), watch, FusedAttention():
        yield watch


def _on_meta(model: LoadedModel[Any]) -> LoadedModel[Any]:
    module = model.family.build_on_meta(model.config).to(model.dtype).eval().requires_grad_(requires_grad=False)
    users: weakref.WeakSet[object] = weakref.WeakSet()
    return replace(model, module=module, views=frozenset(), holder=None, users=users, was_on=None)


def _alike(features: Any, value: int) -> Any:
    """Return features of the same sizes in the memory of the CPU, where those of a batch wait, all of one value."""
    return with_tensors(features, lambda tensor: torch.full(tensor.shape, value, dtype=tensor.dtype))


def _bytes_of(network: nn.Module) -> int:
    return sum(weight.nbytes for weight in network.parameters())
