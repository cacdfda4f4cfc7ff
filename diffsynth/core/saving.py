"""Write a network to a file, in any of its family's layouts; and tensors to a file, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsynth.core.convert import Converter
from diffsynth.core.family import Layout, ModelFamily
from diffsynth.core.files import replacing
from diffsynth.core.formats.safetensors import write_safetensors
from diffsynth.errors import InvalidRequest, listed
from diffsynth.types import Header, StateDict, TensorSpec


def to_layout(module: nn.Module, layout: Layout, config: Any) -> StateDict:
    """Return the weights of a module under the names, and in the shapes, of a file layout.

    Args:
        module: a network of the layout's family.
        layout: the spelling wanted.
        config: the module's config.
    """
    theirs = Converter(layout.rules(config)).to_theirs(module.state_dict())
    return {layout.prefix + key: tensor for key, tensor in theirs.items()}


def save_network(
    module: nn.Module,
    family: ModelFamily,
    config: Any,
    path: Path,
    layout: str,
    metadata: Mapping[str, str] | None = None,
    marks: Iterable[str] = (),
) -> Path:
    """Write a network as a safetensors file.

    Args:
        module: the network.
        family: its family.
        config: its config.
        path: the file; replaced in one step if it exists.
        layout: the name of the spelling.
        metadata: texts for the file's header.
        marks: of the network, written beside it where the layout has them.

    Returns:
        The path.

    Raises:
        InvalidRequest: the family has no such layout, or weights of the network are no longer there.
        OSError: the file cannot be written.
    """
    try:
        chosen = family.layout(layout)
    except KeyError as error:
        raise InvalidRequest(str(error.args[0])) from error
    _refuse_parts(module, family, config)
    state = to_layout(module, chosen, config) | {mark: torch.empty(0) for mark in marks if mark in chosen.marks}
    header = {key: TensorSpec(tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()}
    return save_tensors(path, header, state.items(), metadata)


def save_tensors(
    path: Path, header: Header, tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file whose tensors come one at a time; what goes wrong on the way leaves nothing behind.

    Args:
        path: the file; replaced in one step if it exists.
        header: key → shape and dtype of what will come.
        tensors: each key of the header once, in any order.
        metadata: texts for the file's header.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        write_safetensors(temporary, header, tensors, {"format": "pt", **(metadata or {})})
    return path


def _refuse_parts(module: nn.Module, family: ModelFamily, config: Any) -> None:
    gone = family.build_on_meta(config).state_dict().keys() - module.state_dict().keys()
    if gone:
        raise InvalidRequest(
            f"{family.name} cannot be saved: {len(gone)} of its weights were freed, such as {listed(sorted(gone), 3)}. "
            "To save it, load it again."
        )
