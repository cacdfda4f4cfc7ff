"""What the arguments of a call mean: one request per image, each with a seed of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.latents import seed_from
from diffsynth.pipelines.request import ImageRequest, check_range, plain


def make_requests(
    request_type: type[ImageRequest], prompt: str | Sequence[str], count: int, settings: dict[str, Any]
) -> list[Any]:
    """Return one request per image: for each prompt ``count`` of them, with a seed for each.

    Raises:
        InvalidRequest: a list has the wrong length, or a setting is not valid.
    """
    prompts = [prompt] if isinstance(prompt, str) else _listed("prompt", prompt)
    if not prompts:
        raise InvalidRequest("prompt is an empty list; nothing to draw.")
    negative = settings.pop("negative_prompt", None)
    one = negative is None or isinstance(negative, str)
    negatives = [negative] * len(prompts) if one else _listed("negative_prompt", negative)
    if len(negatives) != len(prompts):
        raise InvalidRequest(f"negative_prompt has {len(negatives)} entries for {len(prompts)} prompts.")
    pairs = [pair for pair in zip(prompts, negatives, strict=True) for _ in range(count)]
    seeds = _seeds(settings.pop("seed", None), len(pairs))
    return [
        request_type.from_settings({"prompt": text, "negative_prompt": negative, "seed": seed, **settings})
        for (text, negative), seed in zip(pairs, seeds, strict=True)
    ]


def _listed(name: str, texts: Any) -> list[Any]:
    if not isinstance(texts, Iterable):
        raise InvalidRequest(f"{name} must be text or a list of texts, not {type(texts).__name__}.")
    return list(texts)


def _seeds(source: Any, count: int) -> list[int]:
    """Return a seed per image from one seed, a generator, a list of either, or nothing."""
    source = plain(source)
    if isinstance(source, (list, tuple)):
        if len(source) != count:
            raise InvalidRequest(f"{len(source)} seeds were given for {count} images.")
        return [_seeds(each, 1)[0] for each in source]
    if isinstance(source, bool) or not isinstance(source, (int, torch.Generator, type(None))):
        raise InvalidRequest(f"seed must be a whole number or a torch.Generator, not {type(source).__name__}.")
    first = seed_from(source)
    check_range("seed", first, 0, 2**63 - count)
    return [first + index for index in range(count)]
