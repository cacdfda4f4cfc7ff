"""Which pipeline ``diffsynth generate`` draws with: that of the denoiser among the files, or of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsynth.errors import DiffSynthError, InvalidRequest, printable
from diffsynth.pipelines.hunyuan_dit.request import HunyuanDiTRequest
from diffsynth.pipelines.request import ImageRequest
from diffsynth.pipelines.sd.conventions import CONVENTIONS as SD_CONVENTIONS
from diffsynth.pipelines.sd.request import SDRequest
from diffsynth.pipelines.sdxl.conventions import CONVENTIONS as SDXL_CONVENTIONS
from diffsynth.pipelines.sdxl.request import SDXLRequest
from diffsynth.pipelines.unet_conventions import choose

if TYPE_CHECKING:
    from diffsynth.manager import ModelManager


@dataclass(frozen=True)
class Kind:
    """What the command line has to know of a pipeline.

    Args:
        pipeline: its public name.
        request: its settings.
        draws: (family, config) of a network → whether the pipeline has it for its denoiser.
        conventions: returns its conventions by name.
        home: the module that defines it, imported when it is needed, since that takes a while.
    """

    pipeline: str
    request: type[ImageRequest]
    draws: Callable[[str, Any], bool]
    conventions: Callable[[str], Any]
    home: str

    def make(
        self,
        manager: ModelManager,
        conventions: str,
        options: Mapping[str, Any],
        inversions: Sequence[tuple[Path, str | None]] = (),
    ) -> Any:
        """Wire the pipeline; options that are None are left to it.

        Args:
            manager: has loaded the networks.
            conventions: by name.
            options: further arguments of ``from_model_manager``.
            inversions: the file of each textual inversion, and the word to give it, if not its own.

        Raises:
            InvalidRequest: an option is not one of this pipeline, or networks do not fit.
            ModelNotLoaded: a network is missing.
        """
        given = {name: value for name, value in options.items() if value is not None}
        self.check_options(given, inversions)
        pipe = self._type.from_model_manager(manager, conventions, **given)
        for path, word in inversions:
            pipe.load_textual_inversion(path, word)
        return pipe

    def check_options(
        self, options: Mapping[str, Any], inversions: Sequence[object] = (), settings: Sequence[str] = ()
    ) -> None:
        """Raise InvalidRequest if an option that is not None, or a setting, is not one of this pipeline."""
        known = {*signature(self._type.from_model_manager).parameters, *self.request.settings()}
        for name in (*(name for name, value in options.items() if value is not None), *settings):
            if name not in known:
                raise InvalidRequest(f"--{name.replace('_', '-')} is not an option of {self.pipeline}.")
        if inversions and not hasattr(self._type, "load_textual_inversion"):
            raise InvalidRequest(f"--textual-inversion is not an option of {self.pipeline}.")

    @property
    def _type(self) -> Any:
        return getattr(import_module(self.home), self.pipeline)


def _conventions_of_hunyuan_dit(name: str) -> Any:
    from diffsynth.pipelines.hunyuan_dit.conventions import conventions_named  # imports torch

    return conventions_named(name)


KINDS = (
    Kind(
        "HunyuanDiTImagePipeline",
        HunyuanDiTRequest,
        lambda family, _: family == "hunyuan_dit",
        _conventions_of_hunyuan_dit,
        "diffsynth.pipelines.hunyuan_dit.pipeline",
    ),
    Kind(
        "SDImagePipeline",
        SDRequest,
        lambda family, config: family == "unet" and not config.label_size,
        lambda name: choose(SD_CONVENTIONS, name),
        "diffsynth.pipelines.sd.pipeline",
    ),
    Kind(
        "SDXLImagePipeline",
        SDXLRequest,
        lambda family, config: family == "unet" and bool(config.label_size),
        lambda name: choose(SDXL_CONVENTIONS, name),
        "diffsynth.pipelines.sdxl.pipeline",
    ),
)
USUAL = KINDS[0]


def kind_named(pipeline: str, source: object) -> Kind:
    """Return the kind of a pipeline's name, as a recipe has it.

    Raises:
        InvalidRequest: this command has no such pipeline; ``source`` is named in the message.
    """
    for kind in KINDS:
        if kind.pipeline == pipeline:
            return kind
    known = ", ".join(kind.pipeline for kind in KINDS)
    raise InvalidRequest(f"{source} was drawn by {printable(pipeline)}; this command draws with {known}.")


def kind_of(parts: Sequence[tuple[Path, str | None]], denoiser: str | int | None = None) -> Kind:
    """Return the kind of pipeline that draws with the denoisers among some files, of which only headers are read.

    A file that cannot be read decides nothing; loading it tells what is wrong with it.

    Args:
        parts: each a file or a folder, with the kind of network that it is said to hold, or None.
        denoiser: the name of the one that is meant, if there are several.

    Raises:
        InvalidRequest: there are denoisers of several pipelines.
    """
    from diffsynth import models
    from diffsynth.core.checkpoint import open_checkpoint
    from diffsynth.core.registry import Registry

    registry = Registry.collect(models)
    found: dict[str, Kind] = {}
    meant: dict[str, Kind] = {}
    for path, name in parts:
        try:
            checkpoint = open_checkpoint(path)
            networks = registry.identify(checkpoint, name).networks
        except (DiffSynthError, OSError):
            continue
        for network in networks:
            draw = {kind.pipeline: kind for kind in KINDS if kind.draws(network.family.name, network.config)}
            found |= draw
            if isinstance(denoiser, str) and network.answers_to(denoiser, checkpoint.path):
                meant |= draw
    found = meant or found
    if len(found) > 1:
        raise InvalidRequest(
            f"the files hold denoisers of several pipelines: {', '.join(found)}. Name the file of one with --denoiser."
        )
    return next(iter(found.values()), USUAL)


def all_settings() -> dict[str, Any]:
    """Return the fields of every pipeline's request by name."""
    return {name: each for kind in reversed(KINDS) for name, each in kind.request.settings().items()}
