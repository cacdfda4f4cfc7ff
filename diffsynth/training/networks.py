"""The networks of a run: new ones from sizes, or those of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.digest import sha256_of
from diffsynth.core.family import ModelFamily
from diffsynth.core.folder import component_folders
from diffsynth.errors import CheckpointError, InvalidRequest, listed
from diffsynth.manager import ModelManager
from diffsynth.training.randomness import seed_for

M = TypeVar("M", bound=nn.Module)


def load_for_training(path: str, family: ModelFamily, kind: type[M]) -> tuple[M, tuple[Path, ...]]:
    """Load one network in float32, in memory of its own, so that its weights can change.

    Returns:
        The network and the files it came from.

    Raises:
        CheckpointError: the file cannot be used.
    """
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", mmap=False)
    manager.load_model(Path(path), kind=family.name)
    entry = manager.find(kind)
    return entry.module.float(), entry.checkpoint.files


def digest_of(files: Iterable[Path]) -> str:
    """Return the hashes of a network's files as one text."""
    return " ".join(sha256_of(file) for file in files)


def make_network(family: ModelFamily, given: Mapping[str, Any] | str, kind: type[M], seed: int) -> M:
    """Return a new network of given sizes, or that of a file, in float32 on the CPU, all of its weights learning.

    Args:
        family: what kind of network.
        given: fields of the family's config, or a path.
        kind: the network's class.
        seed: of new weights.

    Raises:
        InvalidRequest: the sizes make no network, or none that a file could tell.
        CheckpointError: the file cannot be used.
    """
    if isinstance(given, str):
        module, _ = load_for_training(given, family, kind)
    else:
        config = make_sizes(family, given)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed_for(seed, "weights", family.name))
            made = family.build(config)
        assert isinstance(made, kind)
        module = made
    return module.train().requires_grad_(requires_grad=True)


def network_problem(family: ModelFamily, given: Mapping[str, Any] | str) -> str:
    """Return what is wrong with given sizes, each alone, or with a file, as far as its header tells; else nothing."""
    if isinstance(given, str):
        return file_problem(given)
    defaults = {each.name: each.default for each in fields(type(family.tiny()))}
    if unknown := sorted(given.keys() - defaults.keys()):
        return f"{family.name} has no size {listed(unknown)}; it has {listed(sorted(defaults), 30)}."
    bad = [f"{name} = {value!r}" for name, value in given.items() if not _is_size(value, defaults[name])]
    return f"{family.name} has sizes that are none: {listed(bad)}." if bad else ""


def file_problem(path: str) -> str:
    """Return what is wrong with the file of a network, or with a Diffusers folder of several; else nothing."""
    try:
        for each in component_folders(Path(path)) or (path,):
            open_checkpoint(each)
    except CheckpointError as error:
        return str(error)
    return ""


def _is_size(value: Any, default: Any) -> bool:
    """Whether a value can be a size: of the type of its default, and positive."""
    if isinstance(default, tuple):
        return isinstance(value, (tuple, list)) and all(_is_size(each, default[0]) for each in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int) and value > 0


def make_sizes(family: ModelFamily, given: Mapping[str, Any]) -> Any:
    """Return a family's config, sizes that are not given being those of the released network.

    Raises:
        InvalidRequest: there is no such size, sizes contradict each other, or a size is changed that no file tells,
            so that the saved network could not be loaded.
    """
    kind = type(family.tiny())
    if problem := network_problem(family, given):
        raise InvalidRequest(problem)
    try:
        config = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"these sizes make no {family.name}: {error}.") from error
    layout = family.layouts[0]
    told = layout.read_config(layout.signature.measure(family.header(config, layout), ""))
    if differs := [each.name for each in fields(kind) if getattr(told, each.name) != getattr(config, each.name)]:
        wanted = listed(f"{name} = {getattr(told, name)}" for name in differs)
        raise InvalidRequest(
            f"{family.name}: a saved file does not tell {listed(differs)}; only {wanted} can be loaded."
        )
    return config


def copy_of(module: M, family: ModelFamily, dtype: torch.dtype) -> M:
    """Return a network with weights of its own, the same but for their dtype, for a file.

    A text encoder's copy is not fit to run: it lacks what no file holds.
    """
    twin = family.build_on_meta(module.config)
    state = {name: weight.detach().to(dtype, copy=True) for name, weight in module.state_dict().items()}
    twin.load_state_dict(state, strict=True, assign=True)
    assert isinstance(twin, type(module))
    return twin.requires_grad_(requires_grad=False)


def checkpoint_activations(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    """Have the modules of some kinds inside another compute their insides again on the way back."""
    for each in module.modules():
        if isinstance(each, kinds):
            _recompute(each)


def _recompute(module: nn.Module) -> None:
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    module.forward = forward
