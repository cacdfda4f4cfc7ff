"""Write a network to a file, in any of its family's layouts."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from diffsynth.core.convert import Converter
from diffsynth.core.family import Layout, ModelFamily
from diffsynth.core.files import replacing
from diffsynth.errors import InvalidRequest, listed
from diffsynth.types import StateDict


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
) -> Path:
    """Write a network as a safetensors file.

    Args:
        module: the network.
        family: its family.
        config: its config.
        path: the file; replaced in one step if it exists.
        layout: the name of the spelling.
        metadata: texts for the file's header.

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
    state = {key: tensor.detach().contiguous() for key, tensor in to_layout(module, chosen, config).items()}
    with replacing(path) as temporary:
        try:
            save_file(state, temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # as a full disk is reported: "... (os error 28)"
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number) if found else str(error), str(path)) from error
    return path


def _refuse_parts(module: nn.Module, family: ModelFamily, config: Any) -> None:
    gone = family.build_on_meta(config).state_dict().keys() - module.state_dict().keys()
    if gone:
        raise InvalidRequest(
            f"{family.name} cannot be saved: {len(gone)} of its weights were freed, such as {listed(sorted(gone), 3)}. "
            "To save it, load it again."
        )
