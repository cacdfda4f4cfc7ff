"""The features of texts, between the text encoders and the denoiser: each text once, alone, and movable."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffsynth.pipelines.precision import finite

REMEDY = "Run `diffsynth inspect --verify` on the weight files; a damaged file gives this."


@dataclass(frozen=True)
class Texts:
    """What the text encoders say of texts.

    Args:
        features: text, with the settings that it is read with → tensors, in a tuple or dataclass of the pipeline's.
    """

    features: Mapping[Hashable, Any] = field(default_factory=dict)

    def __getitem__(self, text: Hashable) -> Any:
        return self.features[text]

    def __contains__(self, text: Hashable) -> bool:
        return text in self.features

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: str | torch.device) -> Texts:
        """Return the same features, kept on a device, such as in the memory of the CPU."""
        moved = {text: with_tensors(value, lambda tensor: tensor.to(device)) for text, value in self.features.items()}
        return Texts(moved)

    def with_more(self, others: Texts) -> Texts:
        """Return these features and others."""
        return Texts({**self.features, **others.features}) if len(others) else self

    @property
    def nbytes(self) -> int:
        """Bytes of all features."""
        return sum(tensor.nbytes for value in self.features.values() for tensor in tensors_in(value))


NO_TEXTS = Texts()


def encode_distinct(texts: Iterable[Hashable], encode: Callable[[Any], Any], encoders: Sequence[nn.Module]) -> Texts:
    """Encode each distinct text once, and alone, so that its features do not depend on those beside it.

    Args:
        texts: what to encode; those that overflow are encoded once more in float32.
        encode: returns the features of one of them.
        encoders: the networks that it uses.

    Raises:
        NonFiniteResult: features are not finite, in float32 neither.
    """
    wanted = dict.fromkeys(texts)
    found: dict[Hashable, Any] = {}

    def compute() -> tuple[Texts, str | None]:
        for text in wanted:
            if text not in found:
                features = encode(text)
                if all(bool(tensor.isfinite().all()) for tensor in tensors_in(features)):
                    found[text] = features
        return Texts(found), None if len(found) == len(wanted) else "the text encoder's features"

    return finite(compute, encoders, REMEDY)


def rows_of(sides: Iterable[Sequence[Any]]) -> list[Any]:
    """Return the texts of all rows that a denoiser is run on: for each image its first, then for each its second, …"""
    return [text for side in zip(*sides, strict=True) for text in side]


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of the features of a text."""
    if isinstance(value, Tensor):
        return [value]
    parts = [getattr(value, each.name) for each in fields(value)] if is_dataclass(value) else value or ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the features of a text with each tensor changed, in the order of ``tensors_in``."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(with_tensors(part, change) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: with_tensors(getattr(value, each.name), change) for each in fields(value)})
    return value
