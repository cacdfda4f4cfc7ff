"""Choose the networks of a UNet pipeline among all that are loaded: by structure, then by neighbourhood."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from diffsynth.core.formats.json_text import parse_object
from diffsynth.core.loaded import LoadedModel
from diffsynth.errors import AmbiguousModel, InvalidRequest, ModelNotLoaded
from diffsynth.manager import ModelManager
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from diffsynth.models.clip.model import ClipText
from diffsynth.models.unet.model import UNet
from diffsynth.models.unet.weights import MARKS

logger = logging.getLogger(__name__)

Entry = LoadedModel[Any]
Fits = Callable[[Entry], bool]


@dataclass(frozen=True)
class Need:
    """A network that a pipeline cannot do without.

    Args:
        words: what it is.
        kind: its class.
        fits: whether a network has the right structure.
        published: the files that hold it, for messages.
    """

    words: str
    kind: type[nn.Module]
    fits: Fits
    published: str


KINDS: Mapping[type[nn.Module], str] = {UNet: "unet", ClipText: "clip", AutoencoderKL: "autoencoder_kl"}
V_PREDICTION, ZERO_SNR = MARKS
KOLORS = (
    "a denoiser of Kolors reads the features of a ChatGLM text encoder, which diffsynth does not have, so no pipeline "
    "draws with it. Load the files of SDXL or Stable Diffusion to draw."
)


def pick(
    manager: ModelManager,
    kind: type[nn.Module],
    variant: str | int | None,
    *,
    fits: Fits,
    wanted: str,
    published: str,
    near: Entry | None = None,
) -> Entry:
    """Return the network that is named, else the only one that fits, else the only one of the same release.

    Args:
        manager: has loaded it.
        kind: of the network.
        variant: which one, by the name of its file or folder, or its index; None for the one that fits.
        fits: whether a network has the right structure.
        wanted: what is looked for, for messages.
        published: the files that hold it, for messages.
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
        raise ModelNotLoaded(wanted, manager.names(), f"Published as {published}; load it with load_model(path).")
    if len(found) > 1:
        raise AmbiguousModel(wanted, [entry.label for entry in found])
    return found[0]


def check_loaded(manager: ModelManager, pipeline: str, needs: Sequence[Need]) -> None:
    """Name every network that is missing, at once.

    Args:
        manager: has loaded some.
        pipeline: its name, for the message.
        needs: what is needed.

    Raises:
        ModelNotLoaded: some are missing.
    """
    missing = [
        need for need in needs if not any(isinstance(entry.module, need.kind) and need.fits(entry) for entry in manager)
    ]
    if missing:
        raise ModelNotLoaded(
            " and ".join(f"{KINDS[need.kind]} ({need.words})" for need in missing),
            manager.names(),
            f"{pipeline} pipelines need {', '.join(need.words for need in needs)}. Published are: "
            + "; ".join(f"{need.words} as {need.published}" for need in missing)
            + ". Load the missing files with load_model(path).",
        )


def is_kolors(config: Any) -> bool:
    """Whether a UNet projects the features of another text encoder by itself, as that of Kolors does."""
    return bool(config.text_size)


def refuse_kolors(manager: ModelManager, denoiser: str | int | None) -> None:
    """Say why nothing can be drawn if the denoiser that is named, or each one there is, is of Kolors.

    Raises:
        InvalidRequest: it is.
    """
    unets = [entry for entry in manager if isinstance(entry.module, UNet)]
    meant = unets
    if isinstance(denoiser, int):
        meant = [unets[denoiser]] if -len(unets) <= denoiser < len(unets) else []
    elif denoiser is not None:
        meant = [entry for entry in unets if entry.answers_to(denoiser)]
    if meant and all(is_kolors(entry.config) for entry in meant):
        raise InvalidRequest(f"{meant[0].label}: {KOLORS}")


def fitting_vae(denoiser: Entry) -> Fits:
    """Return whether an autoencoder has the latents that a denoiser draws."""
    return lambda vae: bool(vae.config.latent_channels == denoiser.config.out_channels)


def prediction_of(denoisers: Sequence[Entry], given: str | None) -> str:
    """Return what denoisers predict: as given, else by their marks, else "epsilon".

    Raises:
        InvalidRequest: they differ, so that no sampler can follow both.
    """
    found = {"velocity" if V_PREDICTION in _marks(entry) else "epsilon": entry.label for entry in denoisers}
    if given is None and len(found) > 1:
        raise InvalidRequest(
            f"{found['velocity']} is marked as predicting the velocity, {found['epsilon']} is not, so that one sampler "
            'cannot follow both. If both predict the same, say it with prediction="velocity".'
        )
    return given or next(iter(found))


def zero_snr_of(denoiser: Entry, given: bool | None, prediction: str) -> bool:
    """Return whether a denoiser draws from pure noise: as given, else by its mark.

    A mark on a denoiser that predicts the noise cannot be heeded, and is told of.
    """
    marked = ZERO_SNR in _marks(denoiser)
    if given is None and marked and prediction == "epsilon":
        logger.warning(
            "%s is marked as trained on a schedule that ends in pure noise, but predicts epsilon, which cannot be "
            'drawn so; the usual schedule is taken. If it predicts the velocity, say prediction="velocity".',
            denoiser.label,
        )
        return False
    return marked if given is None else given


def _marks(denoiser: Entry) -> set[str]:
    """Return the marks in a denoiser's file, and those that its Diffusers folder has for the scheduler instead."""
    found = set(denoiser.found.marks)
    for place in _release(denoiser):
        path = place / "scheduler" / "scheduler_config.json"
        said = parse_object(path.read_bytes(), path, "text") if path.is_file() else {}
        found |= {V_PREDICTION} if said.get("prediction_type") == "v_prediction" else set()
        found |= {ZERO_SNR} if said.get("rescale_betas_zero_snr") is True else set()
    return found


def _release(entry: Entry) -> set[Path]:
    """Return the places that networks of one release share: the file, or the folder around its folder."""
    path = entry.path.absolute()
    folder = path if path.is_dir() else path.parent
    return {path, folder.parent} if (folder.parent / "model_index.json").is_file() else {path}
