from __future__ import annotations

import math

import pytest
import torch

from diffsynth.core import blend as module
from diffsynth.core.blend import BlendWeights, all_finite, blend
from diffsynth.errors import InvalidRequest

NAMES = ["mid.attn.q.weight", "down.0.norm.bias", "down.1.norm.bias"]


def three(shape: tuple[int, ...] = (7, 3), dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (7, 3), (1, 9, 2), (0, 3)], ids=str)
@pytest.mark.parametrize("values", [1, 4, 1 << 20])
def test_both_methods_are_plain_arithmetic_however_many_rows_are_taken(
    shape: tuple[int, ...], values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_VALUES_AT_A_TIME", values)
    one, two, base = three(shape)

    added = blend(one, two, 0.3, base=base, dtype=torch.float32)

    assert torch.equal(blend(one, two, 0.3, base=None, dtype=torch.float32), one * (1 - 0.3) + two * 0.3)
    assert torch.equal(added, one + 0.3 * (two - base))


def test_a_weight_of_0_is_the_first_and_of_1_the_second_bit_for_bit() -> None:
    one, two = torch.tensor([-0.0, math.nan, 3e-41]), torch.tensor([-0.0, 2.0, math.inf])

    first, second = (blend(one, two, weight, base=None, dtype=torch.float32) for weight in (0, 1))

    assert torch.equal(first.view(torch.int32), one.view(torch.int32))
    assert torch.equal(second.view(torch.int32), two.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_small_numbers_are_not_lost_in_between(dtype: torch.dtype) -> None:
    one, two, base = three(dtype=dtype)

    result = blend(one, two, 0.3, base=base, dtype=torch.float32)

    assert torch.equal(result, one.float() + 0.3 * (two.float() - base.float()))
    narrow = blend(one, two, 0.3, base=base, dtype=dtype)
    assert torch.equal(narrow.float(), result.to(dtype).float())


def test_double_precision_is_kept() -> None:
    one, two = torch.tensor([1.0], dtype=torch.float64), torch.tensor([1 + 1e-12], dtype=torch.float64)

    assert blend(one, two, 0.5, base=None, dtype=torch.float64).item() - 1 == pytest.approx(5e-13, rel=1e-3)


def test_the_inputs_stay_as_they_are_and_need_not_be_dense() -> None:
    one, two, base = (tensor.t() for tensor in three())
    before = one.clone(), two.clone(), base.clone()

    result = blend(one, two, 0.5, base=base, dtype=torch.float32)

    assert torch.equal(result, before[0] + 0.5 * (before[1] - before[2]))
    assert all(torch.equal(*pair) for pair in zip((one, two, base), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float8_e5m2], ids=str)
def test_what_is_not_finite_is_found(dtype: torch.dtype) -> None:
    assert all_finite(torch.tensor([1.0, -2.0]).to(dtype))
    assert not all_finite(torch.tensor([[1.0], [math.nan]]).to(dtype))
    assert all_finite(torch.tensor(1e300, dtype=torch.float64))


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("mid", [True, False, False]),
        ("mid.attn.q.weight", [True, False, False]),
        ("mi", [False, False, False]),
        ("down.*", [False, True, True]),
        ("down.1", [False, False, True]),
        ("*.norm", [False, True, True]),
        ("*bias", [False, True, True]),
        ("down.[01].norm.bias", [False, True, True]),
    ],
)
def test_a_pattern_names_a_tensor_or_a_block_around_it(pattern: str, fits: list[bool]) -> None:
    weights = BlendWeights(default=0.5, blocks={pattern: 0.25})

    assert [weights.of([name]) == 0.25 for name in NAMES] == fits


def test_of_several_patterns_the_last_counts_and_of_several_names_any() -> None:
    weights = BlendWeights(default=0.5, blocks={"down": 0.1, "down.1": 0.2, "other": 0.3})

    assert [weights.of([name]) for name in NAMES] == [0.5, 0.1, 0.2]
    assert weights.of(["down.1.weight", "other"]) == 0.3


def test_a_pattern_that_fits_nothing_names_what_is_near() -> None:
    weights = BlendWeights(default=0.5, blocks={"down": 0.1, "down.0.nrom": 0.2})

    with pytest.raises(InvalidRequest, match=r"no block is called 'down\.0\.nrom'\. Near it are down\.0\.norm"):
        weights.check(NAMES)
    with pytest.raises(InvalidRequest, match=r"no block is called 'zzz'\. There are down, down\.0, "):
        BlendWeights(default=0.5, blocks={"zzz": 1.0}).check(NAMES)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "0.5"])
def test_a_weight_is_a_finite_number(wrong: float) -> None:
    with pytest.raises(InvalidRequest, match="weight: a weight is a finite number, not"):
        BlendWeights(default=wrong)
    with pytest.raises(InvalidRequest, match="mid: a weight is a finite number, not"):
        BlendWeights(default=0.5, blocks={"mid": wrong})
