"""The networks that a HunyuanDiT pipeline is made of: whether all are there, and fit each other."""

from __future__ import annotations

from typing import Any

from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import InvalidRequest, ModelNotLoaded
from diffsynth.manager import ModelManager

NEEDS = ("hunyuan_dit", "bert_clip", "mt5", "autoencoder_kl")


def check_loaded(manager: ModelManager) -> None:
    """Name every network that is missing, at once.

    Raises:
        ModelNotLoaded: some are.
    """
    missing = [name for name in NEEDS if not any(entry.family.name == name for entry in manager)]
    if missing:
        raise ModelNotLoaded(
            " and ".join(missing),
            manager.names(),
            f"A HunyuanDiT pipeline needs {', '.join(NEEDS)}; load the missing files with load_model(path).",
        )


def check_fit(dit: LoadedModel[Any], clip: LoadedModel[Any], t5: LoadedModel[Any], vae: LoadedModel[Any]) -> None:
    """Make sure that the networks speak of the same sizes.

    Raises:
        InvalidRequest: they do not.
    """
    pairs = (
        (dit, "text_dim", clip, "hidden_size"),
        (dit, "t5_dim", t5, "d_model"),
        (dit, "in_channels", vae, "latent_channels"),
    )
    for first, name, second, other in pairs:
        expected, found = getattr(first.config, name), getattr(second.config, other)
        if expected != found:
            raise InvalidRequest(
                f"{second.label} does not fit {first.label}: its {other} is {found}, the denoiser expects {expected}. "
                "Load the files of one release."
            )
