"""The model manager: load files, hold the networks, hand them out, release them."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import nn

from diffsynth import models
from diffsynth.core.checkpoint import Checkpoint, open_checkpoint
from diffsynth.core.folder import component_folders
from diffsynth.core.loaded import LoadedModel
from diffsynth.core.loading import load_network
from diffsynth.core.placement import floating_dtype, free_memory, resolve_device
from diffsynth.core.registry import Identified, Registry, without_copies
from diffsynth.core.saving import save_network
from diffsynth.errors import AmbiguousModel, InvalidRequest, ModelNotLoaded, UnknownCheckpoint, listed
from diffsynth.lora.apply import LoRA, attach_lora

logger = logging.getLogger(__name__)

AnyPath = str | PathLike[str]
M = TypeVar("M", bound=nn.Module)


class ModelManager:
    """Loads checkpoint files and holds the networks they contain, each once.

    Args:
        torch_dtype: what floating-point weights are converted to; None keeps what each file has. The
            autoencoder stays in float32, because it overflows in half precision, unless it is loaded with a
            dtype of its own.
        device: where networks are placed; None takes the accelerator there is, else the CPU.
        model_id_list: names from the catalogue whose files are loaded at once, as ``download_models`` gives them.
        downloading_priority: the hubs to ask, in this order.
        file_path_list: files to load at once.
        mmap: map files, or read them into memory; None maps them unless they lie on a network disk.

    Raises:
        InvalidRequest: the device does not exist here.
        CheckpointError: a file cannot be used; the message says which and why.
    """

    def __init__(
        self,
        torch_dtype: torch.dtype | None = torch.float16,
        device: str | torch.device | None = None,
        model_id_list: Sequence[str] = (),
        downloading_priority: Sequence[str] = ("ModelScope", "HuggingFace"),
        file_path_list: Sequence[AnyPath | Sequence[AnyPath]] = (),
        *,
        mmap: bool | None = None,
    ) -> None:
        self.torch_dtype = floating_dtype(torch_dtype)
        self.device = resolve_device(device)
        self.registry = Registry.collect(models)
        self._mmap = mmap
        self._loaded: list[LoadedModel[Any]] = []
        if model_id_list:
            from diffsynth.hub.download import download_models

            self.load_models(download_models(model_id_list, downloading_priority))
        self.load_models(file_path_list)

    def load_models(
        self,
        file_path_list: Sequence[AnyPath | Sequence[AnyPath]],
        *,
        torch_dtype: torch.dtype | None = None,
    ) -> list[LoadedModel[Any]]:
        """Load several files; see ``load_model``."""
        if isinstance(file_path_list, (str, PathLike)):
            file_path_list = [file_path_list]
        return [entry for path in file_path_list for entry in self.load_model(path, torch_dtype=torch_dtype)]

    def load_model(
        self,
        path: AnyPath | Sequence[AnyPath],
        *,
        kind: str | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> list[LoadedModel[Any]]:
        """Load every network that a file holds.

        Args:
            path: a checkpoint, a list of the shards of one, a folder with one, or a Diffusers folder with
                ``model_index.json``.
            kind: a family's name, to take only that from the file.
            torch_dtype: what these weights are converted to, in place of the manager's dtype.

        Returns:
            What was loaded; a network that is loaded already is returned as it is.

        Raises:
            CheckpointError: the file cannot be used; the message says why.
        """
        if isinstance(path, (str, PathLike)) and (components := component_folders(Path(path))):
            return self._load_components(Path(path), components, kind, torch_dtype)
        checkpoint = open_checkpoint(path, mmap=self._mmap)
        identification = self.registry.identify(checkpoint, kind)
        if identification.unclaimed:
            logger.info("%s: %d tensors stay unread: %s", checkpoint.path, len(identification.unclaimed),
                        listed(identification.unclaimed))  # fmt: skip
        for each in identification.on_request:
            logger.info("%s: holds %s too, loaded with kind=%r", checkpoint.path, each.label, each.family.name)
        for network in identification.nearly:
            logger.warning("%s: not loaded, because the file is damaged or incomplete: %s", checkpoint.path, network)
        return [self._load(found, checkpoint, torch_dtype) for found in without_copies(identification.networks)]

    def _load_components(
        self, folder: Path, components: Sequence[Path], kind: str | None, torch_dtype: torch.dtype | None
    ) -> list[LoadedModel[Any]]:
        loaded: list[LoadedModel[Any]] = []
        unknown: list[UnknownCheckpoint] = []
        for component in components:
            try:
                loaded += self.load_model(component, kind=kind, torch_dtype=torch_dtype)
            except UnknownCheckpoint as error:
                unknown.append(error)
                logger.info("%s: not used: %s", folder, error)
        if not loaded and unknown:
            raise unknown[0]
        return loaded

    def _load(self, found: Identified, checkpoint: Checkpoint, torch_dtype: torch.dtype | None) -> LoadedModel[Any]:
        dtype = floating_dtype(torch_dtype) or found.family.dtype or self.torch_dtype
        same = [each for each in self if each.comes_from(checkpoint, found) and dtype in (None, each.dtype)]
        for entry in same:
            if entry.is_current():
                logger.info("%s is loaded already", entry.label)
                return entry
            logger.info("%s has changed, so it is loaded again", entry.label)
        started = time.perf_counter()
        module, views = load_network(found, checkpoint, dtype=dtype, device=self.device)
        actual = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)
        entry = LoadedModel(module, found, checkpoint, actual, views, weakref.ref(self))
        self._loaded = [*(each for each in self if each not in same), entry]
        logger.info("loaded %s in %.1f s", entry.label, time.perf_counter() - started)
        return entry

    @overload
    def fetch_model(self, kind: type[M], variant: str | int | None = None) -> M: ...
    @overload
    def fetch_model(self, kind: str, variant: str | int | None = None) -> nn.Module: ...

    def fetch_model(self, kind: type[nn.Module] | str, variant: str | int | None = None) -> nn.Module:
        """Return the one loaded network of a kind.

        Args:
            kind: a class, or a family's name such as ``hunyuan_dit`` or ``sdxl_vae``.
            variant: which of several, by the name or path of its file, its prefix, the version its family tells
                (such as ``SDXL refiner``), or its index among them.

        Raises:
            ModelNotLoaded: there is none.
            AmbiguousModel: there are several.
        """
        module: nn.Module = self.find(kind, variant).module
        return module

    @overload
    def find(self, kind: type[M], variant: str | int | None = None) -> LoadedModel[M]: ...
    @overload
    def find(self, kind: str, variant: str | int | None = None) -> LoadedModel[Any]: ...

    def find(self, kind: type[nn.Module] | str, variant: str | int | None = None) -> LoadedModel[Any]:
        """Return the one loaded network of a kind with what is known of it; see ``fetch_model``."""
        if isinstance(kind, str):
            family = self.registry.family(kind)
            name, found = kind, [entry for entry in self._loaded if entry.family is family]
        else:
            name, found = kind.__name__, [entry for entry in self._loaded if isinstance(entry.module, kind)]
        if isinstance(variant, int) and -len(found) <= variant < len(found):
            found = [found[variant]]
        elif variant is not None:
            name = f"{name} ({variant})"
            found = [entry for entry in found if entry.answers_to(str(variant))]
        match found:
            case [entry]:
                return entry
            case []:
                raise ModelNotLoaded(name, self.names(), "Load its file with load_model(path).")
            case _:
                raise AmbiguousModel(name, [entry.label for entry in found])

    def load_lora(
        self,
        path: AnyPath,
        scale: float | None = None,
        *,
        lora_alpha: float | None = None,
        strict: bool = True,
        variant: str | None = None,
    ) -> LoRA:
        """Attach a LoRA to those of the loaded networks that it was made for; their weights stay as they are.

        Args:
            path: the file, or the folder of one.
            scale: how much of it is added, 1 if it is not given; change it later by setting ``scale`` of the result.
            lora_alpha: what DiffSynth 1.x calls ``scale``.
            strict: raise if a key belongs to no network; else it is left out and listed in ``unmatched``.
            variant: change only networks that this means, as in ``fetch_model``, if it fits several.

        Returns:
            The LoRA, which tells what it changes, and can be merged or detached.

        Raises:
            CheckpointError: the file is no LoRA, or does not fit; the message names keys and the nearest layers.
            AmbiguousModel: it fits several networks of a kind.
            ModelNotLoaded: there is no network that it could change.
            InvalidRequest: the scale is no number, or the file is attached already.
        """
        if scale is not None and lora_alpha is not None:
            raise InvalidRequest("give scale or lora_alpha, which is another name for it, not both.")
        networks = [entry for entry in self if variant is None or entry.answers_to(variant)]
        if variant is not None and not networks:
            raise ModelNotLoaded(variant, self.names(), "Name one of those that are loaded.")
        chosen = lora_alpha if scale is None else scale
        checkpoint = open_checkpoint(path, mmap=self._mmap)
        return attach_lora(checkpoint, networks, 1.0 if chosen is None else chosen, strict=strict)

    @property
    def loras(self) -> tuple[LoRA, ...]:
        """The LoRAs that are attached to its networks or merged into them, in the order in which they came."""
        found = (each for entry in self for each in entry.adapters if isinstance(each, LoRA))
        return tuple(dict.fromkeys(found))

    def names(self) -> list[str]:
        """Return a label for every loaded network."""
        return [entry.label for entry in self._loaded]

    def __iter__(self) -> Iterator[LoadedModel[Any]]:
        return iter(tuple(self._loaded))

    def __len__(self) -> int:
        return len(self._loaded)

    def to(self, device: str | torch.device) -> ModelManager:
        """Move every network to a device; later files go there too.

        Raises:
            InvalidRequest: the device does not exist here.
        """
        self.device = resolve_device(device)
        for entry in self._loaded:
            entry.module.to(self.device)
        return self

    def release(self, kind: type[nn.Module] | str | None = None, variant: str | int | None = None) -> None:
        """Forget one network, or all of them, so that their memory is freed.

        A pipeline made from them keeps its own hold on them until it is deleted; images do not. The ``release`` of
        a pipeline does both.

        Raises:
            ModelNotLoaded: there is none of this kind.
            AmbiguousModel: there are several.
        """
        if kind is None:
            self._loaded.clear()
        else:
            self.forget(self.find(kind, variant))
        free_memory(self.device)

    def forget(self, entry: LoadedModel[Any]) -> None:
        """Keep a network no longer, if it is still kept; its memory is freed when nobody else holds it."""
        self._loaded = [each for each in self._loaded if each is not entry]

    def save(self, kind: type[nn.Module] | str, path: AnyPath, *, layout: str | None = None,
             variant: str | int | None = None) -> Path:  # fmt: skip
        """Write a network to a safetensors file, with the LoRAs that were merged and without those only attached.

        Args:
            kind: which network, as in ``fetch_model``.
            path: the file to write; replaced in one step if it exists.
            layout: the spelling, such as ``original`` or ``diffusers``; None takes that of its own file.
            variant: which of several.

        Raises:
            ModelNotLoaded: there is none of this kind.
            AmbiguousModel: there are several.
            InvalidRequest: the family has no such layout.
        """
        entry = self.find(kind, variant)
        name = layout or entry.found.layout.name
        return save_network(entry.module, entry.family, entry.config, Path(path), name, marks=entry.found.marks)

    def verify(self) -> dict[str, dict[str, int]]:
        """Read every loaded file and return the networks with NaN or infinity: label → key → how many."""
        counted = {checkpoint: checkpoint.nonfinite() for checkpoint in {entry.checkpoint for entry in self}}
        bad = {
            entry.label: {key: n for key, n in counted[entry.checkpoint].items() if key in entry.found.keys}
            for entry in self
        }
        return {label: keys for label, keys in bad.items() if keys}

    def __repr__(self) -> str:
        rows = [
            f"  {entry.family.name:<16} {str(entry.dtype).removeprefix('torch.'):<9} "
            f"{entry.nbytes / 1e6:>9.1f} MB  {entry.path}"
            + (f" under {entry.found.prefix!r}" if entry.found.prefix else "")
            for entry in self._loaded
        ]
        head = f"ModelManager(device={str(self.device)!r}, {len(rows)} networks"
        return "\n".join([head + (":" if rows else ")"), *rows]) + (")" if rows else "")
