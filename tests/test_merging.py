"""Files merged into new ones, for every family in each of its layouts: what is in them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsynth import ModelManager, merge_models, models, open_checkpoint
from diffsynth.core.blend import blend
from diffsynth.core.checkpoint import same_bits
from diffsynth.core.family import ModelFamily
from diffsynth.core.registry import Registry
from diffsynth.core.saving import save_network
from diffsynth.errors import (
    AmbiguousCheckpoint,
    CorruptCheckpoint,
    InvalidRequest,
    NonFiniteResult,
    StateDictMismatch,
    UnknownCheckpoint,
    UnsupportedCheckpoint,
)
from diffsynth.merging import Merged
from diffsynth.models import hunyuan_dit, mt5, unet
from examples.random_stable_diffusion import write_single_file
from tests.released import write_hollow
from tests.spellings import lively, original_mt5, saved_as, spelt, under
from tests.test_contract import Case, each_case

FAMILIES = Registry.collect(models).families
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.name))
HALF = torch.float16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSYNTH_CACHE", str(tmp_path / "cache"))


def write(
    family: ModelFamily,
    path: Path,
    seed: int,
    *,
    config: Any = None,
    layout: str = "",
    dtype: torch.dtype | None = None,
) -> Path:
    network = lively(family, config, seed).to(dtype or torch.float32)
    return save_network(network, family, network.config, path, layout or family.layouts[0].name)


def write_three(family: ModelFamily, folder: Path, dtype: torch.dtype | None = None) -> list[Path]:
    """Write three networks, the second and third in further layouts if the family has them."""
    layouts = [layout.name for layout, _ in zip(cycle(family.layouts), range(3), strict=False)]
    return [
        write(family, folder / f"{name}.safetensors", seed, layout=layout, dtype=dtype)
        for seed, (name, layout) in enumerate(zip("abc", layouts, strict=True))
    ]


def weights(path: Path) -> dict[str, Tensor]:
    """Return a network's weights by our names, as the manager loads them."""
    (entry,) = ModelManager(torch_dtype=None, device="cpu").load_model(path, torch_dtype=torch.float32)
    state: dict[str, Tensor] = entry.module.state_dict()
    return state


def recipe_of(path: Path) -> Any:
    return json.loads(open_checkpoint(path).metadata["merge"])


# Every family


@each_case
def test_a_weight_of_0_is_the_first_file_and_of_1_the_second(case: Case, tmp_path: Path) -> None:
    one, two = (
        write(
            case.family, tmp_path / f"{seed}.safetensors", seed, config=case.config, layout=case.layout.name, dtype=HALF
        )
        for seed in (1, 2)
    )

    made = [merge_models(one, two, tmp_path / f"w{weight}.safetensors", weight=weight) for weight in (0, 1)]

    for merged, source in zip(made, (one, two), strict=True):
        result, expected = open_checkpoint(merged.path), open_checkpoint(source)
        assert dict(result.header) == dict(expected.header)
        assert all(same_bits(result[key], expected[key]) for key in expected)
        assert (len(merged.merged), merged.kept, merged.beside) == (1, (), ())


@each_family
def test_both_methods_are_plain_arithmetic_across_spellings(family: ModelFamily, tmp_path: Path) -> None:
    a, b, c = write_three(family, tmp_path)
    plain, added = tmp_path / "plain.safetensors", tmp_path / "added.safetensors"

    merge_models(a, b, plain, weight=0.3)
    merge_models(a, b, added, weight=0.8, difference=c)

    one, two, base = map(weights, (a, b, c))
    sums, differences = weights(plain), weights(added)
    assert open_checkpoint(plain).header == open_checkpoint(added).header == open_checkpoint(a).header
    for key, tensor in one.items():
        floating = tensor.is_floating_point()
        assert torch.equal(sums[key], tensor * (1 - 0.3) + two[key] * 0.3 if floating else tensor), key
        assert torch.equal(differences[key], tensor + 0.8 * (two[key] - base[key]) if floating else tensor), key


@each_family
def test_each_block_may_have_a_weight_of_its_own(family: ModelFamily, tmp_path: Path) -> None:
    a, b, _ = write_three(family, tmp_path)
    one, two = weights(a), weights(b)
    names = [key.rpartition(".")[0] for key, tensor in one.items() if tensor.ndim > 1]
    block, other = names[-1], names[len(names) // 2]
    output = tmp_path / "out.safetensors"

    merge_models(a, b, output, weight=0, blocks={block: 1, f"{family.name}.{other}": 0.5})

    result = weights(output)
    half, whole = names_of(result, other), names_of(result, block)
    for key, found in result.items():
        if key in half:
            assert torch.equal(found, one[key] * 0.5 + two[key] * 0.5), key
        else:
            assert torch.equal(found, (two if key in whole else one)[key]), key


def names_of(state: dict[str, Tensor], block: str) -> set[str]:
    """Return the keys of a block, and further names of its tensors."""
    inside = {tensor.data_ptr() for key, tensor in state.items() if key.startswith(f"{block}.")}
    return {key for key, tensor in state.items() if tensor.data_ptr() in inside}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32], ids=str)
def test_the_result_has_the_dtype_of_the_first_file_or_the_one_asked_for(
    dtype: torch.dtype | None, tmp_path: Path
) -> None:
    family = mt5.FAMILY
    a = write(family, tmp_path / "a.safetensors", 1, dtype=torch.float16)
    b = write(family, tmp_path / "b.safetensors", 2, dtype=torch.bfloat16)
    c = write(family, tmp_path / "c.safetensors", 3, dtype=torch.float32)

    merge_models(a, b, tmp_path / "out.safetensors", weight=0.3, difference=c, torch_dtype=dtype)

    result = load_file(tmp_path / "out.safetensors")
    one, two, base = map(load_file, (a, b, c))
    for key, tensor in result.items():
        if tensor.is_floating_point():
            exact = one[key].float() + 0.3 * (two[key].float() - base[key].float())
            assert tensor.dtype is (dtype or torch.float16)
            assert torch.equal(tensor, exact.to(tensor.dtype)), key


@each_family
def test_files_of_other_sizes_are_refused_with_key_and_shapes(family: ModelFamily, tmp_path: Path) -> None:
    a = write(family, tmp_path / "a.safetensors", 1)
    b = write(family, tmp_path / "b.safetensors", 2, config=other_sizes(family))
    one, two = open_checkpoint(a).header, open_checkpoint(b).header

    with pytest.raises(StateDictMismatch) as raised:
        merge_models(a, b, tmp_path / "out.safetensors", weight=0.5)

    shapes = raised.value.shapes
    assert str(raised.value).startswith(f"{b}: does not fit {family.name} (layout")
    assert f"of the sizes in {a}" in str(raised.value)
    assert shapes
    assert shapes == {key: (one[key].shape, two[key].shape) for key in one if one[key].shape != two[key].shape}
    assert not (tmp_path / "out.safetensors").exists()


def other_sizes(family: ModelFamily) -> Any:
    """Return a config of which a file tells that one of its sizes is doubled."""
    config, layout = family.tiny(), family.layouts[0]
    for field in fields(config):
        size = getattr(config, field.name)
        if type(size) is int and size:
            try:
                doubled = replace(config, **{field.name: 2 * size})
                told = layout.read_config(layout.signature.measure(family.header(doubled, layout), ""))
            except (ValueError, LookupError):
                continue
            if told == doubled:
                return doubled
    raise AssertionError(f"no size of {family.name} can be doubled")


# Files with more than one network


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Single files: two of SD 1.5, one of SDXL."""
    names = {"a": ("sd15", 0), "b": ("sd15", 1), "xl": ("sdxl", 2)}
    return {key: write_single_file(tmp_path_factory.mktemp(key), name, seed) for key, (name, seed) in names.items()}


def test_every_network_that_both_files_hold_is_merged(singles: dict[str, Path], tmp_path: Path) -> None:
    made = merge_models(singles["a"], singles["b"], tmp_path / "out.safetensors", weight=0.25, blocks={"clip": 0})

    one, two, result = (load_file(path) for path in (singles["a"], singles["b"], made.path))
    labels = ("text", "vae", "unet")
    assert len(made.merged) == len(labels)
    assert made.kept == ()
    assert made.beside == ("cond_stage_model.transformer.text_model.embeddings.position_ids",)
    for key, tensor in result.items():
        weight = 0 if key.startswith("cond_stage_model") else 0.25
        assert torch.equal(tensor, one[key] * (1 - weight) + two[key] * weight if weight else one[key]), key


def test_a_mark_that_one_file_lacks_is_told_of(
    singles: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marked, mixed = tmp_path / "marked.safetensors", tmp_path / "mixed.safetensors"
    save_file({**load_file(singles["b"]), "v_pred": torch.empty(0)}, marked)

    first = merge_models(marked, marked, tmp_path / "out.safetensors", weight=0.5)
    assert caplog.text == ""
    merge_models(singles["a"], marked, mixed, weight=1)

    assert "v_pred" in load_file(first.path)
    assert "v_pred" not in load_file(mixed)
    assert f"of unet in {singles['a']} and {marked} only one is marked v_pred" in caplog.text


def test_networks_that_the_second_file_lacks_are_kept(singles: dict[str, Path], tmp_path: Path) -> None:
    """A single file and a UNet in the spelling of Diffusers."""
    manager = ModelManager(torch_dtype=None, device="cpu", file_path_list=[singles["b"]])
    b = manager.save("unet", tmp_path / "unet.safetensors", layout="diffusers")

    made = merge_models(singles["a"], b, tmp_path / "out.safetensors", weight=0.5)

    one, two, result = (load_file(path) for path in (singles["a"], singles["b"], made.path))
    assert made.merged == ("unet (layout 'ldm', under 'model.diffusion_model.')",)
    assert sorted(label.split()[0] for label in made.kept) == ["autoencoder_kl", "clip"]
    assert recipe_of(made.path)["kept"] == list(made.kept)
    for key, tensor in result.items():
        inside = key.startswith("model.diffusion_model.")
        assert torch.equal(tensor, one[key] * 0.5 + two[key] * 0.5 if inside else one[key]), key


def test_only_one_kind_of_network_is_merged_if_it_is_named(singles: dict[str, Path], tmp_path: Path) -> None:
    made = merge_models(singles["a"], singles["b"], tmp_path / "out.safetensors", weight=1, kind="autoencoder_kl")

    one, two, result = (load_file(path) for path in (singles["a"], singles["b"], made.path))
    assert len(made.merged) == 1
    assert all(
        torch.equal(tensor, (two if key.startswith("first_stage_model.") else one)[key])
        for key, tensor in result.items()
    )


def test_another_dtype_is_that_of_all_networks_but_not_of_what_is_beside(
    singles: dict[str, Path], tmp_path: Path
) -> None:
    a = tmp_path / "a.safetensors"
    save_file({**load_file(singles["a"]), "alphas": torch.rand(3)}, a)

    made = merge_models(a, singles["b"], tmp_path / "out.safetensors", weight=0.5, torch_dtype=HALF, kind="unet")
    every = merge_models(a, singles["b"], tmp_path / "every.safetensors", weight=0.5, torch_dtype=HALF)

    some, result = load_file(made.path), load_file(every.path)
    assert "alphas" in made.beside
    assert "alphas" in every.beside
    assert result.pop("alphas").dtype is torch.float32
    assert all(tensor.dtype is HALF for tensor in result.values() if tensor.is_floating_point())
    assert {key.split(".")[0] for key, tensor in some.items() if tensor.dtype is HALF} == {"model"}


def test_the_two_encoders_of_one_file_find_their_own(singles: dict[str, Path], tmp_path: Path) -> None:
    other = write_single_file(tmp_path / "other", "sdxl", 5)
    place = "conditioner.embedders.1.model."

    made = merge_models(singles["xl"], other, tmp_path / "out.safetensors", weight=0, blocks={place.rstrip("."): 1})

    one, two, result = (load_file(path) for path in (singles["xl"], other, made.path))
    assert len(made.merged) == 4
    assert all(
        torch.equal(tensor, (two if key.startswith(place) and "logit" not in key else one)[key])
        for key, tensor in result.items()
    )


def test_one_sd_and_one_sdxl_are_refused(singles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StateDictMismatch, match=r"sdxl\.safetensors: does not fit unet .* of the sizes in .*sd15"):
        merge_models(singles["a"], singles["xl"], tmp_path / "out.safetensors", weight=0.5)


def test_files_without_a_common_network_are_refused(tmp_path: Path) -> None:
    a, b = write(mt5.FAMILY, tmp_path / "a.safetensors", 0), write(hunyuan_dit.FAMILY, tmp_path / "b.safetensors", 0)

    with pytest.raises(UnsupportedCheckpoint) as raised:
        merge_models(a, b, tmp_path / "out.safetensors", weight=0.5)

    assert f"{a}: has no network in common with {b}" in str(raised.value)
    assert "a.safetensors holds mt5 (layout" in str(raised.value)
    assert "b.safetensors holds hunyuan_dit (layout" in str(raised.value)


def test_it_is_not_guessed_which_of_two_equal_networks_is_meant(tmp_path: Path) -> None:
    family = mt5.FAMILY
    one, two, three = (saved_as(spelt(lively(family, seed=seed), family), torch.float32) for seed in range(3))
    save_file(under("x.", one) | under("y.", two), tmp_path / "both.safetensors")
    save_file(under("x.", two) | under("y.", three), tmp_path / "same.safetensors")
    save_file(three, tmp_path / "one.safetensors")

    made = merge_models(
        tmp_path / "both.safetensors", tmp_path / "same.safetensors", tmp_path / "o.safetensors", weight=1
    )

    assert load_file(made.path).keys() == (under("x.", two) | under("y.", three)).keys()
    assert all(torch.equal(load_file(made.path)[f"y.{key}"], tensor) for key, tensor in three.items())
    with pytest.raises(AmbiguousCheckpoint, match=r"2 fit, under 'x\.', 'y\.'"):
        merge_models(tmp_path / "one.safetensors", tmp_path / "both.safetensors", tmp_path / "p.safetensors", weight=1)


def test_the_moving_average_is_merged_and_the_raw_weights_beside_it_are_kept(tmp_path: Path) -> None:
    family = mt5.FAMILY
    raw, averaged, other = (saved_as(spelt(lively(family, seed=seed), family), torch.float32) for seed in range(3))
    save_file(under("model.", raw) | under("ema.", averaged), tmp_path / "a.safetensors")
    save_file(other, tmp_path / "b.safetensors")

    made = merge_models(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "o.safetensors", weight=1)

    result = load_file(made.path)
    assert all(torch.equal(result[f"ema.{key}"], tensor) for key, tensor in other.items())
    assert all(torch.equal(result[f"model.{key}"], tensor) for key, tensor in raw.items())


# What is in the file


def test_a_tensor_that_the_file_holds_under_several_names_changes_under_all(tmp_path: Path) -> None:
    one, two = (original_mt5(lively(mt5.FAMILY, seed=seed)) for seed in (1, 2))
    torch.save(one, tmp_path / "a.bin")
    torch.save(two, tmp_path / "b.bin")

    made = merge_models(tmp_path / "a.bin", tmp_path / "b.bin", tmp_path / "out.safetensors", weight=0.5)

    result = load_file(made.path)
    assert result.keys() == one.keys()
    for key in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(result[key], one["shared.weight"] * 0.5 + two["shared.weight"] * 0.5), key
    assert "decoder.block.0.layer.1.EncDecAttention.q.weight" in made.beside
    assert all(torch.equal(result[key], one[key]) for key in made.beside if "block" in key)


def test_tensors_that_are_alike_because_they_are_empty_are_no_copies(tmp_path: Path) -> None:
    one, two = (original_mt5(lively(mt5.FAMILY, seed=seed)) for seed in (1, 2))
    plain = {
        key: torch.ones_like(tensor) if key.endswith("layer_norm.weight") else tensor for key, tensor in one.items()
    }
    torch.save(plain, tmp_path / "a.bin")
    torch.save(two, tmp_path / "b.bin")

    made = merge_models(tmp_path / "a.bin", tmp_path / "b.bin", tmp_path / "out.safetensors", weight=0.5)

    result = load_file(made.path)
    key = "block.0.layer.0.layer_norm.weight"
    assert torch.equal(result[f"decoder.{key}"], plain[f"decoder.{key}"])
    assert torch.equal(result[f"encoder.{key}"], 0.5 + two[f"encoder.{key}"] * 0.5)


def test_each_part_of_a_tensor_that_a_file_holds_in_two_keeps_its_own_dtype(tmp_path: Path) -> None:
    """The keys and values of HunyuanDiT are one tensor in one spelling and two in another."""
    a, b = (
        write(hunyuan_dit.FAMILY, tmp_path / f"{seed}.safetensors", seed, layout="diffusers", dtype=HALF)
        for seed in (1, 2)
    )
    state = load_file(a)
    key = "blocks.0.attn1.to_k.weight"
    save_file({**state, key: state[key].float()}, a)

    made = merge_models(a, b, tmp_path / "out.safetensors", weight=0.5)

    result, two = load_file(made.path), load_file(b)
    assert {name for name, tensor in result.items() if tensor.dtype is torch.float32} == {key}
    assert torch.equal(result[key], state[key].float() * 0.5 + two[key].float() * 0.5)


def test_a_pattern_for_one_name_of_a_tied_tensor_counts_for_it(tmp_path: Path) -> None:
    a, b, _ = write_three(mt5.FAMILY, tmp_path)
    names = [key for key in weights(a) if key.endswith(("shared.weight", "embed_tokens.weight"))]

    made = [
        merge_models(a, b, tmp_path / f"{number}.safetensors", weight=0, blocks={name: 1})
        for number, name in enumerate(names)
    ]

    assert len(names) == 2
    assert all(torch.equal(weights(each.path)[name], weights(b)[name]) for each in made for name in names)


def test_a_file_less_its_own_base_adds_nothing(tmp_path: Path) -> None:
    a, b, _ = write_three(unet.FAMILY, tmp_path, HALF)

    nothing = merge_models(a, b, tmp_path / "n.safetensors", weight=0.7, difference=b)
    second = merge_models(a, b, tmp_path / "s.safetensors", weight=1, difference=a, torch_dtype=torch.float32)

    one, expected = weights(a), weights(b)
    assert all(torch.equal(tensor, one[key]) for key, tensor in weights(nothing.path).items())
    for key, tensor in weights(second.path).items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6)


def test_the_recipe_is_in_the_header_and_names_no_folder(tmp_path: Path) -> None:
    a, b, c = write_three(hunyuan_dit.FAMILY, tmp_path)

    made = merge_models(a, b, tmp_path / "out.safetensors", weight=0.5, difference=c, blocks={"blocks.0": 1})

    recipe = recipe_of(made.path)
    assert recipe["method"] == "add difference"
    assert (recipe["weight"], recipe["blocks"]) == (0.5, {"blocks.0": 1})
    assert recipe["inputs"] == {
        role: [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
        for role, path in zip(("first", "second", "difference"), (a, b, c), strict=True)
    }
    assert recipe["merged"] == list(made.merged)
    assert recipe["version"].startswith("diffsynth ")
    assert str(tmp_path) not in json.dumps(recipe)


def test_the_same_merge_gives_the_same_file(tmp_path: Path) -> None:
    a, b, _ = write_three(hunyuan_dit.FAMILY, tmp_path)

    first, second = (merge_models(a, b, tmp_path / f"{name}.safetensors", weight=0.3).path for name in "xy")

    assert first.read_bytes() == second.read_bytes()


# What is refused


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two small files of a family, in float16."""
    a, b = (write(mt5.FAMILY, tmp_path / f"{name}.safetensors", seed, dtype=HALF) for seed, name in enumerate("ab"))
    return a, b


def merge_pair(pair: tuple[Path, Path], **changes: Any) -> Merged:
    output = changes.pop("output", pair[0].with_name("out.safetensors"))
    return merge_models(*pair, output, **{"weight": 0.5, **changes})


def spoiled(path: Path, change: Callable[[Tensor], Tensor]) -> None:
    state = load_file(path)
    key = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({**state, key: change(state[key])}, path)


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_nan_in_an_input_is_an_error_that_names_key_and_file(weight: float, pair: tuple[Path, Path]) -> None:
    for path in pair if weight == 0.5 else [pair[int(weight)]]:
        spoiled(path, lambda tensor: tensor.index_fill(0, torch.tensor([2]), torch.nan))

    with pytest.raises(
        NonFiniteResult, match=r"encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight\. It is so in"
    ) as e:
        merge_pair(pair, weight=weight)

    assert str(pair[int(weight)]) in str(e.value)
    assert not pair[0].with_name("out.safetensors").exists()


def test_numbers_too_large_for_the_dtype_are_an_error_that_says_so(pair: tuple[Path, Path]) -> None:
    for path in pair:
        spoiled(path, lambda tensor: tensor.float() * 0 + 60000)
    save_file({key: tensor.half() for key, tensor in load_file(pair[0]).items()}, pair[0])

    with pytest.raises(NonFiniteResult, match="The numbers are too large for float16; take smaller weights"):
        merge_pair(pair, weight=0.5, difference=write(mt5.FAMILY, pair[0].with_name("c.safetensors"), 3))

    assert merge_pair(pair, weight=0.5).merged


def test_a_kept_network_that_does_not_fit_the_dtype_is_an_error(singles: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(singles["a"])
    key = "first_stage_model.encoder.conv_in.weight"
    save_file({**state, key: state[key] + 1e6}, tmp_path / "a.safetensors")
    b = write(unet.FAMILY, tmp_path / "b.safetensors", 1, config=unet_config(singles["b"]))

    with pytest.raises(NonFiniteResult, match=rf"{key}\. The numbers are too large for float16"):
        merge_models(tmp_path / "a.safetensors", b, tmp_path / "o.safetensors", weight=0.5, torch_dtype=HALF)


def unet_config(path: Path) -> Any:
    (entry,) = ModelManager(torch_dtype=None, device="cpu").load_model(path, kind="unet")
    return entry.config


def test_a_merge_never_writes_over_what_it_reads(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before = [path.read_bytes() for path in pair]
    (tmp_path / "link.safetensors").symlink_to(pair[1])

    for output in (pair[0], pair[1], tmp_path / "link.safetensors"):
        with pytest.raises(InvalidRequest, match="is one of the files to merge; give the result another name"):
            merge_pair(pair, output=output)

    assert [path.read_bytes() for path in pair] == before


def test_the_name_of_the_result_says_what_it_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"written as safetensors; call it .*out\.safetensors"):
        merge_pair(pair, output=tmp_path / "out.ckpt")


def test_a_pattern_without_a_block_and_a_dtype_that_is_none_are_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(
        InvalidRequest, match=r"no block is called 't5\.encoder\.blok\.1'\. Near it are .*encoder\.block"
    ):
        merge_pair(pair, blocks={"t5.encoder.blok.1": 0.5})
    with pytest.raises(InvalidRequest, match="torch_dtype must be a floating-point"):
        merge_pair(pair, torch_dtype=torch.int8)


def test_a_file_of_nothing_known_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    save_file({"what.lora_up.weight": torch.ones(3, 3)}, tmp_path / "lora.safetensors")

    with pytest.raises(UnknownCheckpoint, match=r"lora\.safetensors: is not recognised .*\n.*are those of a LoRA"):
        merge_models(pair[0], tmp_path / "lora.safetensors", tmp_path / "out.safetensors", weight=0.5)


def test_a_dtype_that_safetensors_lacks_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({**load_file(pair[0]), "odd": torch.ones(2, dtype=torch.complex128)}, tmp_path / "odd.pt")

    with pytest.raises(UnsupportedCheckpoint, match=r"1 tensors of a dtype .*: odd \(torch\.complex128\)"):
        merge_models(tmp_path / "odd.pt", pair[1], tmp_path / "out.safetensors", weight=0.5)


def test_a_file_that_changes_meanwhile_leaves_nothing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touching(*args: Any, **kwargs: Any) -> Tensor:
        pair[1].touch()
        return blend(*args, **kwargs)

    monkeypatch.setattr("diffsynth.core.merging.blend", touching)

    with pytest.raises(CorruptCheckpoint, match=r"b\.safetensors: changed while it was in use"):
        merge_pair(pair)

    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["a.safetensors", "b.safetensors"]


def test_an_interrupt_leaves_nothing_and_the_old_result_as_it_was(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Tensor:
        if len(list(tmp_path.glob(".out*.part"))) == 1 and next(calls) == 5:
            raise KeyboardInterrupt
        return blend(*args, **kwargs)

    calls = iter(range(99))
    (tmp_path / "out.safetensors").write_bytes(b"old")
    monkeypatch.setattr("diffsynth.core.merging.blend", interrupted)

    with pytest.raises(KeyboardInterrupt):
        merge_pair(pair)

    assert (tmp_path / "out.safetensors").read_bytes() == b"old"
    assert list(tmp_path.glob(".*")) == []


# Memory

MEASURE = """
import resource, sys
from diffsynth import merge_models

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

*small, output = sys.argv[1:4]
merge_models(*small, output, weight=0.3, difference=small[0])
before = peak()
*large, output = sys.argv[4:]
merge_models(*large, output, weight=0.3, difference=large[0])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak is that of Linux")
def test_three_files_of_200_mb_need_little_memory(tmp_path: Path) -> None:
    family = hunyuan_dit.FAMILY
    small = [write(family, tmp_path / f"{name}.safetensors", 1, dtype=HALF) for name in "ab"]
    config = replace(family.tiny(), hidden_size=768, mlp_size=3200, depth=10, t5_dim=256, text_dim=256)
    shapes = {key: spec.shape for key, spec in family.header(config, family.layouts[0]).items()}
    large = [write_hollow(shapes, tmp_path / f"{name}.safetensors") for name in "cd"]
    outputs = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    arguments = [*small, outputs[0], *large, outputs[1]]

    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    size = large[0].stat().st_size
    assert size > 200e6
    assert outputs[1].stat().st_size == pytest.approx(size, rel=0.001)
    assert int(done.stdout) < 0.5 * size, done.stdout
