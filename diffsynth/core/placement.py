"""Where networks live: device names made into devices that exist, and memory given back."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch

from diffsynth.errors import InvalidRequest


def best_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU if there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def free_memory(device: torch.device) -> None:
    """Give back to the system the memory of what nobody holds any more, that of an accelerator too."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
    if sys.platform == "linux":  # its C library keeps freed blocks of up to 32 MB, which most weights are, unless asked
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return a device that can be used.

    Args:
        device: a name such as ``cuda``, ``cuda:1``, ``mps`` or ``cpu``; None takes the best there is.

    Raises:
        InvalidRequest: there is no such device here.
    """
    if device is None:
        return best_device()
    try:
        wanted = torch.device(device)
        torch.zeros(1, device=wanted).item()  # raises on a device that holds no values, such as meta
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidRequest(
            f"device {str(device)!r} cannot be used here ({reason}). This machine has {str(best_device())!r}; "
            "with cuda wanted, install a torch that was built for it."
        ) from error
    return wanted


def floating_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """Return a dtype that weights can be converted to, or None if none is asked for.

    Raises:
        InvalidRequest: it is no dtype of floating-point numbers.
    """
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise InvalidRequest(f"torch_dtype must be a floating-point torch.dtype, such as torch.float16, not {dtype!r}.")
