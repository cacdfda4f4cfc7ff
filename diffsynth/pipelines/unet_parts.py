"""Choose the networks of a UNet pipeline among all that are loaded: by structure, then by neighbourhood."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import AmbiguousModel, InvalidRequest, ModelNotLoaded
from diffsynth.manager import ModelManager
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.clip.model import ClipText
from diffsynth.models.unet.model import UNet

logger = logging.getLogger(__name__)

Entry = LoadedModel[Any]
Fits = Callable[[Entry], bool]
KINDS: Mapping[type[nn.Module], str] = {UNet: "unet", ClipText: "clip", AutoencoderKL: "autoencoder_kl"}
# Keys that fine-tunes carry beside the network: it predicts the velocity; it was trained down to no signal at all.
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"


def pick(
    manager: ModelManager,
    kind: type[nn.Module],
    variant: str | int | None,
    *,
    fits: Fits,
    wanted: str,
    near: Entry | None = None,
) -> Entry:
    """Return the network that is named, else the only one that fits, else the only one of the same release.

    Args:
        manager: has loaded it.
        kind: of the network.
        variant: which one, by the name of its file or folder, or its index; None for the one that fits.
        fits: whether a network has the right structure.
        wanted: what is looked for, for messages.
        near: among several that fit, the one from this network's file, or from a folder beside its folder, is meant.

    Raises:
        ModelNotLoaded: there is none.
        AmbiguousModel: there are several.
        InvalidRequest: the one that is named does not fit.
    """
    found = [entry for entry in manager if isinstance(entry.module, kind) and fits(entry)]
    if isinstance(variant, str) and any(entry.answers_to(variant) for entry in found):
        found = [entry for entry in found if entry.answers_to(variant)]
    elif variant is not None:
        named = manager.find(kind, variant)
        if not fits(named):
            raise InvalidRequest(f"{named.label} is not {wanted}. Load the files of one release.")
        return named
    if len(found) > 1 and near is not None:
        found = [entry for entry in found if _release(entry) & _release(near)] or found
    if not found:
        raise ModelNotLoaded(wanted, manager.names(), "Load its file with load_model(path).")
    if len(found) > 1:
        raise AmbiguousModel(wanted, [entry.label for entry in found])
    return found[0]


def check_loaded(manager: ModelManager, pipeline: str, needs: Mapping[str, tuple[type[nn.Module], Fits]]) -> None:
    """Name every network that is missing, at once.

    Args:
        manager: has loaded some.
        pipeline: its name, for the message.
        needs: what is needed, in words → its kind and structure.

    Raises:
        ModelNotLoaded: some are missing.
    """
    missing = [
        f"{KINDS[kind]} ({words})"
        for words, (kind, fits) in needs.items()
        if not any(isinstance(entry.module, kind) and fits(entry) for entry in manager)
    ]
    if missing:
        raise ModelNotLoaded(
            " and ".join(missing),
            manager.names(),
            f"{pipeline} pipelines need {', '.join(needs)}; load the missing files with load_model(path).",
        )


def fitting_vae(denoiser: Entry) -> Fits:
    """Return whether an autoencoder has the latents that a denoiser draws."""
    return lambda vae: bool(vae.config.latent_channels == denoiser.config.out_channels)


def prediction_of(denoiser: Entry, given: str | None) -> str:
    """Return what a denoiser predicts: as given, else by the mark in its file, else "epsilon"."""
    return given or ("velocity" if V_PREDICTION in _marks(denoiser) else "epsilon")


def zero_snr_of(denoiser: Entry, given: bool | None, prediction: str) -> bool:
    """Return whether a denoiser draws from pure noise: as given, else by the mark in its file.

    A mark on a denoiser that predicts the noise cannot be heeded, and is told of.
    """
    marked = ZERO_SNR in _marks(denoiser)
    if given is None and marked and prediction == "epsilon":
        logger.warning(
            "%s is marked %s, trained on a schedule that ends in pure noise, but predicts epsilon, which cannot be "
            'drawn so; the usual schedule is taken. If it predicts the velocity, say prediction="velocity".',
            denoiser.label,
            ZERO_SNR,
        )
        return False
    return marked if given is None else given


def _marks(denoiser: Entry) -> set[str]:
    return {key.rpartition(".")[2] for key in denoiser.found.beside}


def _release(entry: Entry) -> set[Path]:
    """Return the places that networks of one release share: the file, or the folder around its folder."""
    path = entry.path.absolute()
    folder = path if path.is_dir() else path.parent
    return {path, folder.parent} if (folder.parent / "model_index.json").is_file() else {path}
