from __future__ import annotations

import pytest

from diffsynth.core.patterns import KeyPattern, PatternTable, fold_numbers, key_pattern

LAYER = (".weight", ".bias")


def test_a_pattern_without_fields_matches_itself_only() -> None:
    pattern = KeyPattern("a.b")

    assert pattern.match("a.b") == ({}, "")
    assert pattern.match("axb") is None
    assert pattern.match("a.b.c") is None
    assert pattern.match("x.a.b") is None


def test_fields_match_numbers_and_are_filled_again() -> None:
    pattern = KeyPattern("blocks.{i}.norm{k}", LAYER)

    assert pattern.match("blocks.12.norm3.bias") == ({"i": 12, "k": 3}, ".bias")
    assert pattern.fields == ("i", "k")
    assert pattern.fill({"i": 12, "k": 3}) == "blocks.12.norm3"


@pytest.mark.parametrize("number", ["01", "-1", "1e3", "x", "", "1.0", "1234567890", "٣", "²", "1 "])
def test_a_number_is_written_in_one_way_only(number: str) -> None:
    assert KeyPattern("blocks.{i}.weight").match(f"blocks.{number}.weight") is None


def test_a_suffix_is_reported_apart_and_need_not_be_there() -> None:
    pattern = KeyPattern("a", LAYER)

    assert [pattern.match(key) for key in ("a", "a.weight", "a.bias")] == [({}, ""), ({}, ".weight"), ({}, ".bias")]
    assert pattern.match("a.weights") is None


def test_stars_at_the_end_match_any_rest() -> None:
    pattern = KeyPattern("decoder.**", LAYER)

    assert pattern.match("decoder.block.0.weight") is not None
    assert pattern.match("decoder.a\nb") is not None
    assert pattern.match("decoder") is None
    assert pattern.match("the_decoder.block") is None


def test_text_that_means_something_in_regular_expressions_means_itself() -> None:
    assert KeyPattern("a+.(b)").match("a+.(b)") == ({}, "")
    assert KeyPattern("a+.(b)").match("aa.b") is None


def test_patterns_are_made_once() -> None:
    assert key_pattern("blocks.{i}", LAYER) is key_pattern("blocks.{i}", LAYER)
    assert repr(key_pattern("blocks.{i}")) == "KeyPattern('blocks.{i}')"


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("blocks.3.norm2.weight", ("norm", {"i": 3, "k": 2}, ".weight")),
        ("blocks.3.norm2", ("norm", {"i": 3, "k": 2}, "")),
        ("blocks.0.norm1.bias", ("the first", {}, ".bias")),
        ("blocks.1.norm1.bias", ("norm", {"i": 1, "k": 1}, ".bias")),
        ("blocks.01.norm1.bias", None),
        ("decoder.7.weight", ("rest", {}, "")),
        ("blocks.0.rest.3", ("rest of the first", {}, "")),
        ("blocks.1.rest.3", None),
        ("end2", ("end", {}, "")),
        ("end3", None),
    ],
)
def test_a_table_finds_the_first_pattern_that_a_key_matches(
    key: str, found: tuple[str, dict[str, int], str] | None
) -> None:
    rows = [
        (KeyPattern("blocks.0.norm1", LAYER), "the first"),
        (KeyPattern("blocks.{i}.norm{k}", LAYER), "norm"),
        (KeyPattern("end2"), "end"),
        (KeyPattern("blocks.0.**"), "rest of the first"),
        (KeyPattern("decoder.**"), "rest"),
        (KeyPattern("decoder.7.weight"), "too late"),
    ]

    assert PatternTable(rows).find(key) == found
    assert PatternTable(rows[::-1]).find("blocks.0.norm1.bias") == ("rest of the first", {}, "")


def test_folding_names_each_number_of_a_key() -> None:
    assert fold_numbers("down.3.resnets.12.conv1.weight") == "down.{i}.resnets.{j}.conv1.weight"
    assert fold_numbers("weight") == "weight"


def test_a_key_of_very_many_numbers_can_be_folded() -> None:
    folded = fold_numbers(".".join("7" * 40))

    assert len(set(folded.split("."))) == 40
