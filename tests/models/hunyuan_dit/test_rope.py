from __future__ import annotations

import math

import pytest
import torch

from diffsynth.models.hunyuan_dit.rope import EndPoint, Rope, build_rope, crop_region
from diffsynth.nn.tiling import Window

CROPS = [
    # image width, height; token rows, columns; where the crop starts and stops
    (1024, 1024, (64, 64), (0, 0), (32, 32)),
    (1280, 1280, (80, 80), (0, 0), (32, 32)),
    (1024, 768, (48, 64), (4, 0), (28, 32)),
    (1152, 864, (54, 72), (4, 0), (28, 32)),
    (1280, 960, (60, 80), (4, 0), (28, 32)),
    (768, 1024, (64, 48), (0, 4), (32, 28)),
    (864, 1152, (72, 54), (0, 4), (32, 28)),
    (960, 1280, (80, 60), (0, 4), (32, 28)),
    (1280, 768, (48, 80), (6, 0), (25, 32)),
    (768, 1280, (80, 48), (0, 6), (32, 25)),
]


@pytest.mark.parametrize(("width", "height", "grid", "start", "stop"), CROPS)
def test_the_crop_of_each_training_size(
    width: int, height: int, grid: tuple[int, int], start: tuple[int, int], stop: tuple[int, int]
) -> None:
    assert (height // 16, width // 16) == grid

    assert crop_region(*grid, base_size=32) == (start, stop)


GOLDEN_DIMENSIONS = (0, 2, 44, 46, 87)
GOLDEN = [
    (
        (64, 64),
        (0.0707372, 0.5512790, -0.8011436, -0.0739691, 0.9999999),
        (0.9974950, 0.8343210, 0.5984721, 0.9972605, 0.0003800),
    ),
    (
        (48, 80),
        (0.3623577, 0.7041863, -0.1248582, 0.5118782, 0.9999993),
        (0.9320391, 0.7100153, 0.9921746, -0.8590580, 0.0012128),
    ),
]


@pytest.mark.parametrize(("grid", "cos", "sin"), GOLDEN)
def test_tables_hold_the_known_numbers(grid: tuple[int, int], cos: tuple[float, ...], sin: tuple[float, ...]) -> None:
    rope = build_rope(*grid, head_dim=88)

    token = 5 * grid[1] + 3  # row 5, column 3
    torch.testing.assert_close(rope.cos[token, list(GOLDEN_DIMENSIONS)], torch.tensor(cos), atol=2e-6, rtol=0)
    torch.testing.assert_close(rope.sin[token, list(GOLDEN_DIMENSIONS)], torch.tensor(sin), atol=2e-6, rtol=0)


def test_the_first_half_of_a_head_turns_with_the_column_and_the_second_with_the_row() -> None:
    rope = build_rope(6, 10, head_dim=16)

    cos = rope.cos.reshape(6, 10, 16)
    assert torch.equal(cos[0, :, :8], cos[5, :, :8])
    assert torch.equal(cos[:, 0, 8:], cos[:, 9, 8:])
    assert not torch.equal(cos[0, 0, :8], cos[0, 9, :8])
    assert not torch.equal(cos[0, 0, 8:], cos[5, 0, 8:])
    assert torch.equal(rope.cos[:, ::2], rope.cos[:, 1::2])


@pytest.mark.parametrize("grid", [(64, 64), (80, 80), (48, 64), (48, 80), (80, 48), (54, 72), (6, 10), (1, 1)])
def test_the_other_end_point_is_that_of_diffusers(grid: tuple[int, int]) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    region = crop_region(*grid, base_size=32)

    rope = build_rope(*grid, head_dim=88, end_point="diffusers")

    cos, sin = embeddings.get_2d_rotary_pos_embed(88, region, grid)
    torch.testing.assert_close(rope.cos, cos, atol=1e-6, rtol=0)
    torch.testing.assert_close(rope.sin, sin, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("grid", "difference"),
    [((64, 64), 0.0), ((80, 80), 0.0), ((48, 80), 0.125), ((48, 64), 1 / 12)],
)
def test_end_points_differ_only_where_the_crop_is_off_the_edge(grid: tuple[int, int], difference: float) -> None:
    def row_positions(end_point: EndPoint) -> torch.Tensor:
        rope = build_rope(*grid, head_dim=88, end_point=end_point)
        slowest = torch.asin(rope.sin[:: grid[1], 87].double())  # the angle is too small to wrap
        return slowest.mul(10000 ** (21 / 22))

    gap = (row_positions("stop") - row_positions("diffusers")).abs().max()

    assert gap == pytest.approx(difference, abs=2e-4)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rope = build_rope(8, 8, head_dim=16)
    query, key = torch.randn(2, 16)

    queries = rope.rotate(query.expand(1, 64, 1, 16)).reshape(8, 8, 16)
    keys = rope.rotate(key.expand(1, 64, 1, 16)).reshape(8, 8, 16)

    torch.testing.assert_close(queries.norm(dim=-1), query.norm().expand(8, 8))
    torch.testing.assert_close(queries[1, 2] @ keys[4, 6], queries[3, 1] @ keys[6, 5])
    assert not math.isclose(queries[1, 2] @ keys[4, 6], queries[1, 2] @ keys[6, 4], rel_tol=1e-3)


def test_rotation_is_the_textbook_formula_in_float32() -> None:
    rope = build_rope(3, 5, head_dim=16)
    features = torch.randn(2, 15, 3, 16, dtype=torch.bfloat16)

    rotated = rope.rotate(features)

    x = features.float()
    partner = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    expected = x * rope.cos[:, None] + partner * rope.sin[:, None]
    assert rotated.dtype == torch.bfloat16
    torch.testing.assert_close(rotated, expected.to(torch.bfloat16), atol=0, rtol=2**-7)


def test_rotation_is_the_same_where_complex_numbers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = build_rope(3, 5, head_dim=16)
    features = torch.randn(2, 15, 3, 16)
    expected = rope.rotate(features)

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    torch.testing.assert_close(rope.rotate(features), expected)


def test_tables_made_for_inference_serve_training_later() -> None:
    with torch.inference_mode():
        rope = build_rope(2, 2, head_dim=8)
        rope.rotate(torch.randn(1, 4, 1, 8))
    features = torch.randn(1, 4, 1, 8, requires_grad=True)

    (gradient,) = torch.autograd.grad(rope.rotate(features).square().sum(), features)

    torch.testing.assert_close(gradient, 2 * features.detach())


def test_a_crop_has_the_positions_of_its_tokens() -> None:
    rope = build_rope(6, 10, head_dim=16)

    part = rope.crop(Window(top=1, left=4, height=3, width=5))

    assert (part.height, part.width) == (3, 5)
    assert torch.equal(part.cos[2 * 5 + 3], rope.cos[3 * 10 + 7])
    assert torch.equal(part.sin[0], rope.sin[1 * 10 + 4])


def test_tables_can_be_rounded_to_half_precision() -> None:
    full, half = build_rope(6, 10, head_dim=16), build_rope(6, 10, head_dim=16, dtype=torch.float16)

    assert torch.equal(half.cos, full.cos.half())
    assert half.rotate(torch.randn(1, 60, 1, 16)).dtype == torch.float32


def test_moving_to_where_it_is_changes_nothing() -> None:
    rope = build_rope(2, 3, head_dim=8)

    moved = rope.to("meta")

    assert rope.to("cpu") is rope
    assert isinstance(moved, Rope)
    assert moved.cos.device.type == "meta"


@pytest.mark.parametrize(
    ("height", "width", "head_dim", "message"),
    [(0, 4, 8, "0 x 4 is empty"), (4, 4, 6, "not a multiple of 4")],
)
def test_impossible_sizes_are_refused(height: int, width: int, head_dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rope(height, width, head_dim)


def test_an_unknown_end_point_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'end'"):
        build_rope(4, 4, 8, end_point="end")  # type: ignore[arg-type]
