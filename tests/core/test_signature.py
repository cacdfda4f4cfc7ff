from __future__ import annotations

import pytest
import torch

from diffsynth.core.signature import Signature
from diffsynth.types import Header, TensorSpec

SIGNATURE = Signature(
    {
        "stem.weight": ("hidden", "inputs"),
        "blocks.{block}.fc.weight": ("mlp", "hidden"),
        "blocks.{block}.conv{unit}.weight": ("_", "hidden", 3, 3),
        "head.weight": ("outputs", "hidden"),
    },
    optional={"extra.weight": ("extra",)},
    absent=("control.{block}.weight",),
)
SHAPES: dict[str, tuple[int, ...]] = {
    "stem.weight": (8, 4),
    "blocks.0.fc.weight": (20, 8),
    "blocks.1.fc.weight": (20, 8),
    "blocks.0.conv0.weight": (5, 8, 3, 3),
    "blocks.1.conv0.weight": (6, 8, 3, 3),
    "blocks.1.conv1.weight": (7, 8, 3, 3),
    "head.weight": (2, 8),
}


def header(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> Header:
    return {prefix + key: TensorSpec(shape, torch.float16) for key, shape in shapes.items()}


def test_sizes_are_measured_and_items_counted() -> None:
    match = SIGNATURE.measure(header(SHAPES), "")

    assert match.complete
    assert match.score == 1
    assert match.sizes == {"hidden": 8, "inputs": 4, "mlp": 20, "outputs": 2}
    assert (match.count("block"), match.count("unit")) == (2, 2)


def test_only_keys_under_the_prefix_are_looked_at() -> None:
    both = {**header(SHAPES, "a."), **header({**SHAPES, "blocks.2.fc.weight": (20, 8)}, "b.a.")}

    assert SIGNATURE.prefixes(both) == ["a.", "b.a."]
    assert SIGNATURE.measure(both, "a.").count("block") == 2
    assert SIGNATURE.measure(both, "b.a.").count("block") == 3


def test_a_prefix_ends_at_a_dot() -> None:
    assert SIGNATURE.prefixes(header({"main_stem.weight": (8, 4), "stem.weight": (8, 4)})) == [""]


def test_what_is_missing_is_named_by_its_pattern() -> None:
    match = SIGNATURE.measure(header({key: SHAPES[key] for key in ("stem.weight", "head.weight")}), "")

    assert match.missing == ("blocks.{block}.fc.weight", "blocks.{block}.conv{unit}.weight")
    assert not match.complete
    assert match.score == 0.5


@pytest.mark.parametrize(
    ("key", "shape", "sentence"),
    [
        ("blocks.1.fc.weight", (21, 8), "mlp is 20 in blocks.0.fc.weight, but 21 in blocks.1.fc.weight"),
        ("head.weight", (2, 9), "hidden is 8 in stem.weight, but 9 in head.weight"),
        ("blocks.1.conv1.weight", (7, 8, 1, 3), "has shape (7, 8, 1, 3), expected 3 where it has 1"),
        ("head.weight", (2, 8, 1), "head.weight has shape (2, 8, 1), 2 dimensions were expected"),
        ("head.weight", (0, 8), "head.weight has shape (0, 8), which is empty"),
        ("control.0.weight", (3,), "control.{block}.weight belongs to another network"),
        ("blocks.999999999.fc.weight", (20, 8), "block goes up to 999999999, but only 3 are there"),
    ],
)
def test_a_contradiction_is_told_in_a_sentence(key: str, shape: tuple[int, ...], sentence: str) -> None:
    match = SIGNATURE.measure(header({**SHAPES, key: shape}), "")

    assert not match.complete
    assert sentence in match.conflicts[0]


def test_a_block_that_is_missing_is_still_counted() -> None:
    shapes = {**SHAPES, **{f"blocks.{i}.fc.weight": (20, 8) for i in (3, 4)}}

    match = SIGNATURE.measure(header(shapes), "")

    assert match.complete
    assert match.count("block") == 5


def test_a_name_with_a_field_is_measured_for_each_number() -> None:
    signature = Signature({"down.{level}.weight": ("width{level}", "_")})

    match = signature.measure(header({"down.0.weight": (4, 1), "down.1.weight": (6, 4)}), "")

    assert match.sizes == {"width0": 4, "width1": 6}


@pytest.mark.parametrize(("shape", "count"), [((4, 6), 0), ((4, 6, 1, 1), 2)])
def test_dimensions_that_a_star_stands_for_are_counted(shape: tuple[int, ...], count: int) -> None:
    signature = Signature({"proj.weight": ("out", "in", "*kernel")})

    match = signature.measure(header({"proj.weight": shape}), "")

    assert match.complete
    assert match.sizes == {"out": 4, "in": 6, "kernel": count}


def test_a_star_stands_for_the_same_number_everywhere_and_for_no_fewer_than_none() -> None:
    signature = Signature({"proj.{i}.weight": ("_", "_", "*kernel")})

    differing = signature.measure(header({"proj.0.weight": (4, 6), "proj.1.weight": (4, 6, 1)}), "")
    fewer = signature.measure(header({"proj.0.weight": (4,)}), "")

    assert "kernel is 0 in proj.0.weight, but 1 in proj.1.weight" in differing.conflicts[0]
    assert "has shape (4,), 2 dimensions were expected" in fewer.conflicts[0]


def test_what_is_optional_is_measured_where_it_is() -> None:
    assert "extra" not in SIGNATURE.measure(header(SHAPES), "").sizes
    assert SIGNATURE.measure(header({**SHAPES, "extra.weight": (9,)}), "").sizes["extra"] == 9


def test_a_network_without_its_anchor_is_still_found_for_an_explanation() -> None:
    cut = header({key: shape for key, shape in SHAPES.items() if key != "stem.weight"}, "model.")

    assert SIGNATURE.prefixes(cut) == []
    assert SIGNATURE.possible_prefixes(cut) == ["", "model."]
    assert SIGNATURE.measure(cut, "model.").score == 0.75
