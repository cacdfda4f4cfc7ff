"""Which numbers a step is computed in; weights and moments are float32 always."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffsynth.errors import InvalidRequest


def check_precision(precision: str, device: torch.device) -> None:
    """Make sure that a device computes in a precision.

    Raises:
        InvalidRequest: it does not.
    """
    if precision == "float16" and device.type == "cpu":
        raise InvalidRequest("precision float16 needs an accelerator; on a CPU take bfloat16 or float32.")
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InvalidRequest("this device does not compute in bfloat16; take float16 or float32.")


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute a loss in a precision."""
    if precision == "float32":
        yield
        return
    with torch.autocast(device.type, torch.float16 if precision == "float16" else torch.bfloat16):
        yield


@contextmanager
def attending_in(precision: str, device: torch.device) -> Iterator[None]:
    """Choose how attention is computed, there and back: recomputed activations must be those of the way there.

    On CPUs the way back through fused attention is several times slower in bfloat16 than plain products.
    """
    if precision == "float32" or device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
