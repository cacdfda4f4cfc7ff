"""What the text encoders share: earlier layers on request, and buffers that no weight file holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffsynth.errors import InvalidRequest


def check_clip_skip(clip_skip: int, num_layers: int) -> None:
    """Raise InvalidRequest unless ``clip_skip`` counts a layer from the end: 1 (the last) to ``num_layers``."""
    if not 1 <= clip_skip <= num_layers:
        raise InvalidRequest(
            f"clip_skip is {clip_skip}, but must be from 1 (the last layer) to {num_layers}, the text encoder's layers."
        )


def earlier_layer(hidden_states: Sequence[Tensor], clip_skip: int) -> Tensor:
    """Return the states ``clip_skip`` from the end, on the scale of the last ones.

    Mean and standard deviation (with Bessel's correction) of the earlier states are replaced by
    those of the last. They are taken over all tokens and channels of one row, padding included,
    so that a text's features do not depend on the other texts of the batch. For one text this is
    the usual formula; programs that take them over the whole batch differ for several.

    Args:
        hidden_states: one (B, L, C) per layer, the last layer last.
        clip_skip: 1 for the last layer, whose states are returned unchanged, 2 for the one before, and so on.

    Returns:
        (B, L, C), in the dtype of the states.
    """
    last = hidden_states[-1]
    if clip_skip == 1:
        return last
    earlier, target = hidden_states[-clip_skip].float(), last.float()
    own_std, own_mean = torch.std_mean(earlier, dim=(1, 2), keepdim=True)
    std, mean = torch.std_mean(target, dim=(1, 2), keepdim=True)
    return ((earlier - own_mean) / own_std * std + mean).to(last.dtype)


def copy_buffers(source: nn.Module, target: nn.Module, device: torch.device) -> None:
    """Put the buffers of ``source`` in the place of those of ``target`` that have the same names."""
    for name, values in source.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(owner), leaf, values.to(device))
