"""What every family of networks owes, in each of its layouts: from module to file and back without a change."""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffsynth import models
from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.family import Layout, ModelFamily
from diffsynth.core.loading import check_header
from diffsynth.core.registry import Identified, Registry
from diffsynth.core.saving import save_network
from diffsynth.errors import StateDictMismatch, UnknownCheckpoint
from diffsynth.manager import ModelManager
from tests.released import write_hollow
from tests.spellings import assert_same_weights, lively, spelt

REGISTRY = Registry.collect(models)
NORMS = ("norm.bias", "norm1.bias", "layer_norm.weight", "ln_1.bias", "norm_cond.bias")


@dataclass(frozen=True, eq=False)
class Case:
    """A family, a layout of it, and a config of its own making."""

    family: ModelFamily
    layout: Layout
    config: Any
    note: str = ""

    def __str__(self) -> str:
        return f"{self.family.name}-{self.layout.name}{self.note}"


def all_cases() -> list[Case]:
    cases = [Case(family, layout, family.tiny()) for family in REGISTRY.families for layout in family.layouts]
    conditioned = [
        replace(case, config=replace(case.config, size_conditioning=True), note="-with-sizes")
        for case in cases
        if hasattr(case.config, "size_conditioning")
    ]
    others = [
        Case(family, layout, make(), f"-{name.removeprefix('tiny_').replace('_', '-')}")
        for family in REGISTRY.families
        for name, make in inspect.getmembers(type(family.tiny()), inspect.ismethod)
        if name.startswith("tiny_")  # families whose networks come in several shapes
        for layout in family.layouts
    ]
    return cases + conditioned + others


each_case = pytest.mark.parametrize("case", all_cases(), ids=str)


@cache
def network_of(case: Case) -> Any:
    return lively(case.family, case.config)


def write(case: Case, folder: Path, network: Any = None) -> Path:
    path = folder / "model.safetensors"
    return save_network(network or network_of(case), case.family, case.config, path, case.layout.name)


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    header = case.family.header(case.config, case.layout)
    return {case.layout.prefix + key: spec.shape for key, spec in header.items()}


def check(path: Path) -> Identified:
    checkpoint = open_checkpoint(path)
    (found,) = REGISTRY.identify(checkpoint).networks
    check_header(found, checkpoint, found.family.build_on_meta(found.config).state_dict())
    return found


def recognised(path: Path) -> Identified | str:
    try:
        return check(path)
    except (UnknownCheckpoint, StateDictMismatch) as error:
        return str(error)


def test_the_registry_finds_the_families() -> None:
    names = [family.name for family in REGISTRY.families]

    assert {"autoencoder_kl", "bert_clip", "hunyuan_dit", "mt5"} <= set(names)
    assert len(names) == len(set(names))


def test_no_two_families_answer_to_one_name() -> None:
    names = [name for family in REGISTRY.families for name in (family.name, *family.aliases)]

    assert len(names) == len(set(names))


@each_case
def test_weights_survive_their_own_file(case: Case, tmp_path: Path) -> None:
    network = network_of(case)
    path = write(case, tmp_path)

    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    (entry,) = manager.load_models([path])

    assert entry.config == case.config
    assert entry.found.layout is case.layout
    assert_same_weights(manager.fetch_model(type(network)), network)


@each_case
def test_a_file_is_claimed_by_its_own_family_and_by_no_other(case: Case, tmp_path: Path) -> None:
    path = write(case, tmp_path)

    identification = REGISTRY.identify(open_checkpoint(path))

    (found,) = identification.networks
    assert found.family is case.family
    assert found.keys == open_checkpoint(path).keys()
    assert identification.unclaimed == ()


@each_case
def test_saving_again_gives_the_file_back(case: Case, tmp_path: Path) -> None:
    first = write(case, tmp_path)
    manager = ModelManager(torch_dtype=None, device="cpu", file_path_list=[first])

    second = manager.save(case.family.name, tmp_path / "again.safetensors")

    assert second.read_bytes() == first.read_bytes()


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_files_give_what_rounding_gives(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    network = deepcopy(network_of(case)).to(dtype)
    path = write(case, tmp_path, network)

    manager = ModelManager(device="cpu")
    (entry,) = manager.load_model(path, torch_dtype=torch.float32)

    assert_same_weights(entry.module, network, torch.float32)


@each_case
def test_a_header_foretells_the_file(case: Case, tmp_path: Path) -> None:
    path = write(case, tmp_path)

    foretold = case.family.header(case.config, case.layout)

    assert {case.layout.prefix + key: spec for key, spec in foretold.items()} == dict(open_checkpoint(path).header)


@each_case
def test_a_key_too_few_is_noticed(case: Case, tmp_path: Path) -> None:
    shapes = shapes_of(case)

    for number, key in enumerate(list(shapes)[:: len(shapes) // 4]):
        fewer = {name: shape for name, shape in shapes.items() if name != key}
        path = write_hollow(fewer, tmp_path / f"{number}.safetensors")
        result = recognised(path)
        # without a part that a network may lack it is another network
        assert "missing" in result if isinstance(result, str) else result.config != case.config


@each_case
def test_a_key_too_many_is_noticed(case: Case, tmp_path: Path) -> None:
    shapes = shapes_of(case)
    known = next(key for key in shapes if "norm" in key.lower() or "ln_" in key).removeprefix(case.layout.prefix)
    surplus = f"{case.layout.prefix}{known.split('.')[0]}.surplus.weight"
    path = write_hollow(shapes | {surplus: (3, 5)}, tmp_path / "more.safetensors")

    with pytest.raises(StateDictMismatch, match=f"unexpected 1 keys: {surplus}"):
        check(path)


@each_case
def test_a_wrong_shape_is_noticed(case: Case, tmp_path: Path) -> None:
    shapes = shapes_of(case)
    key = next(key for key in shapes if key.lower().endswith(NORMS))
    path = write_hollow(shapes | {key: (7,)}, tmp_path / "wrong.safetensors")

    with pytest.raises(StateDictMismatch, match=rf"{key}: expected \({shapes[key][0]},\), found \(7,\)"):
        check(path)


@each_case
def test_a_network_lies_under_any_prefix(case: Case, tmp_path: Path) -> None:
    network = network_of(case)
    state = {f"a.b.{key}": tensor.contiguous() for key, tensor in spelt(network, case.family, case.layout).items()}
    save_file(state, tmp_path / "deep.safetensors")

    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(tmp_path / "deep.safetensors")

    assert entry.found.prefix == f"a.b.{case.layout.prefix}"
    assert_same_weights(entry.module, network)
