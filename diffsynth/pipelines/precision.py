"""What to do when numbers overflow: notice it, try once more in float32, or say where it happened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from diffsynth.errors import NonFiniteResult

logger = logging.getLogger(__name__)

T = TypeVar("T")


def half_precision(module: nn.Module) -> bool:
    """Whether a network computes in 16 bits or fewer."""
    return next(module.parameters()).dtype.itemsize < 4


@contextmanager
def in_float32(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run networks in float32 for a while; their own dtype, and the very same values, come back afterwards."""
    dtypes = [next(module.parameters()).dtype for module in modules]
    try:
        for module in modules:
            module.to(torch.float32)
        yield
    finally:
        for module, dtype in zip(modules, dtypes, strict=True):
            module.to(dtype)


def finite(compute: Callable[[], tuple[T, str | None]], modules: Sequence[nn.Module], remedy: str) -> T:
    """Return what a computation gives, tried once more in float32 if it overflowed.

    Args:
        compute: returns the result, and where it first was not finite, or None if it is fine.
        modules: the networks that take part.
        remedy: what to do if float32 does not help either.

    Raises:
        NonFiniteResult: NaN or infinity came out, in float32 too.
    """
    result, where = compute()
    if where is None:
        return result
    if any(half_precision(module) for module in modules):
        logger.warning("not a finite number in %s; trying once more in float32", where)
        try:
            with in_float32(modules):
                result, still = compute()
        except torch.OutOfMemoryError as error:
            raise NonFiniteResult(where, "There is not enough memory to try once more in float32.") from error
        if still is None:
            return result
        where = still
    raise NonFiniteResult(where, remedy)
