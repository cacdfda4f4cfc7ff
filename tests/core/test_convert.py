from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffsynth.core.convert import (
    CONV1X1_TO_LINEAR,
    SAME,
    SWAP_HALVES,
    TRANSPOSE,
    VECTOR_TO_ROW,
    Converter,
    Drop,
    Join,
    Op,
    Rename,
    Rules,
    Split,
    Tie,
    keep,
)

RULES: Rules = (
    keep("stem"),
    Rename("blocks.{i}.norm3", "blocks.{i}.norm_cross"),
    Rename("head", "final", SWAP_HALVES),
    Split("blocks.{i}.Wqkv", ("blocks.{i}.q", "blocks.{i}.k", "blocks.{i}.v")),
    Join(("blocks.{i}.to_k", "blocks.{i}.to_v"), "blocks.{i}.kv"),
    Tie("shared", ("embed", "copy.embed")),
    Rename("style", "style.weight", VECTOR_TO_ROW),
    Drop("position_ids", "a buffer"),
    Drop("decoder.**", "not needed"),
)

THEIRS: dict[str, Tensor] = {
    "stem.weight": torch.randn(4, 3),
    "blocks.0.norm3.bias": torch.randn(5),
    "blocks.11.norm3.bias": torch.randn(5),
    "head.weight": torch.arange(8.0).view(4, 2),
    "blocks.0.Wqkv.weight": torch.randn(6, 4),
    "blocks.0.to_k.bias": torch.randn(3),
    "blocks.0.to_v.bias": torch.randn(3),
    "shared.weight": torch.randn(7, 2),
    "style": torch.randn(5),
}


def test_every_rule_translates_to_ours() -> None:
    ours = Converter(RULES).to_ours(THEIRS)

    assert torch.equal(ours["stem.weight"], THEIRS["stem.weight"])
    assert torch.equal(ours["blocks.11.norm_cross.bias"], THEIRS["blocks.11.norm3.bias"])
    assert ours["final.weight"].tolist() == [[4, 5], [6, 7], [0, 1], [2, 3]]
    assert torch.equal(ours["blocks.0.k.weight"], THEIRS["blocks.0.Wqkv.weight"][2:4])
    assert torch.equal(
        ours["blocks.0.kv.bias"], torch.cat((THEIRS["blocks.0.to_k.bias"], THEIRS["blocks.0.to_v.bias"]))
    )
    assert ours["embed.weight"] is ours["copy.embed.weight"] is THEIRS["shared.weight"]
    assert ours["style.weight"].shape == (1, 5)
    assert len(ours) == 11


def test_there_and_back_is_the_same() -> None:
    converter = Converter(RULES)

    back = converter.to_theirs(converter.to_ours(THEIRS))

    assert back.keys() == THEIRS.keys()
    assert all(torch.equal(back[key], THEIRS[key]) for key in THEIRS)


@pytest.mark.parametrize(
    ("op", "tensor"),
    [
        (SAME, torch.randn(2, 3)),
        (TRANSPOSE, torch.randn(2, 3)),
        (TRANSPOSE, torch.randn(2)),
        (CONV1X1_TO_LINEAR, torch.randn(4, 3, 1, 1)),
        (CONV1X1_TO_LINEAR, torch.randn(4)),
        (SWAP_HALVES, torch.randn(6)),
        (SWAP_HALVES, torch.randn(6, 5)),
        (VECTOR_TO_ROW, torch.randn(6)),
    ],
    ids=lambda value: value.name if isinstance(value, Op) else "",
)
def test_every_change_to_a_tensor_has_its_inverse(op: Op, tensor: Tensor) -> None:
    assert torch.equal(op.backward(op.forward(tensor)), tensor)


def test_a_convolution_over_one_pixel_becomes_a_linear_layer() -> None:
    weight = torch.randn(4, 3, 1, 1)

    assert torch.equal(CONV1X1_TO_LINEAR.forward(weight), weight[:, :, 0, 0])
    assert CONV1X1_TO_LINEAR.forward(torch.randn(4, 3, 3, 3)).shape == (4, 3, 3, 3)


def test_splitting_does_not_copy() -> None:
    fused = torch.randn(6, 4)

    parts = Converter(RULES).to_ours({"blocks.0.Wqkv.weight": fused})

    assert parts["blocks.0.q.weight"].data_ptr() == fused.data_ptr()


def test_a_key_of_ours_without_a_rule_is_an_error_of_the_table() -> None:
    with pytest.raises(KeyError, match=r"no rule speaks of blocks\.0\.gate\.weight"):
        Converter(RULES).from_ours(["stem.weight", "blocks.0.gate.weight"])


def test_dropped_and_unknown_keys_of_theirs_have_no_conversion() -> None:
    converter = Converter(RULES)

    assert converter.from_theirs(["decoder.block.0.weight", "position_ids", "unknown.weight"]) == []
    assert converter.drops("decoder.block.0.weight")
    assert converter.drops("position_ids")
    assert not converter.drops("stem.weight")


def test_half_of_a_pair_is_not_enough() -> None:
    with pytest.raises(KeyError, match=r"blocks\.0\.to_v\.bias"):
        Converter(RULES).to_ours({"blocks.0.to_k.bias": torch.ones(3)})


def test_each_conversion_is_listed_once() -> None:
    steps = Converter(RULES).from_ours(["blocks.3.q.weight", "blocks.3.k.weight", "blocks.3.v.weight", "stem.bias"])

    assert [(step.theirs, len(step.ours)) for step in steps] == [(("blocks.3.Wqkv.weight",), 3), (("stem.bias",), 1)]


def test_roots_are_the_first_names_of_theirs() -> None:
    roots = {"stem", "blocks", "head", "shared", "style", "position_ids", "decoder"}

    assert Converter(RULES).roots() == roots
