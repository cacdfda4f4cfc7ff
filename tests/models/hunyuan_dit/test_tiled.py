from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.rope import build_rope
from diffsynth.models.hunyuan_dit.tiled import TokenTiling, run_tiled
from diffsynth.nn.tiling import windows

from .examples import V1_2, random_latents, random_network, random_text


def draw(network: HunyuanDiT, height: int, width: int, tile: TokenTiling | None) -> Tensor:
    condition = network.encode_condition(random_text(V1_2, [(3, 4), (5, 9)]))
    plan = network.plan([700], condition, build_rope(height, width, V1_2.head_dim))
    return network.denoise(random_latents(2, height, width), 0, plan, tile=tile)


@pytest.mark.parametrize("size", [(6, 10), (8, 8), (3, 5)], ids=str)
@pytest.mark.parametrize("tile", [TokenTiling(tile=10, stride=5), TokenTiling(tile=64, stride=32)], ids=str)
def test_an_image_that_fits_into_one_tile_is_drawn_as_without(size: tuple[int, int], tile: TokenTiling) -> None:
    network = random_network(V1_2)

    assert torch.equal(draw(network, *size, tile), draw(network, *size, None))


@pytest.mark.parametrize("size", [(9, 7), (4, 13), (13, 4), (8, 8)], ids=str)
@pytest.mark.parametrize("tile", [TokenTiling(tile=6, stride=3), TokenTiling(tile=5, stride=1)], ids=str)
def test_tiles_cover_images_of_any_size(size: tuple[int, int], tile: TokenTiling) -> None:
    velocity = draw(random_network(V1_2), *size, tile)

    assert velocity.shape == (2, 4, 2 * size[0], 2 * size[1])
    assert velocity.isfinite().all()


def test_tiles_without_overlap_are_images_of_their_own() -> None:
    network = random_network(V1_2)
    condition = network.encode_condition(random_text(V1_2, [(3, 4)]))
    latents = random_latents(1, 8, 16)

    wide = network.plan([700], condition, build_rope(8, 16, V1_2.head_dim))
    velocity = network.denoise(latents, 0, wide, tile=TokenTiling(tile=8, stride=8))

    square = network.plan([700], condition, build_rope(8, 8, V1_2.head_dim))
    left, right = (network.denoise(half, 0, square) for half in latents.chunk(2, dim=-1))
    torch.testing.assert_close(velocity, torch.cat((left, right), dim=-1), atol=1e-5, rtol=1e-5)


def test_a_window_of_a_narrow_image_has_the_positions_of_a_whole_image_of_its_size() -> None:
    rope = TokenTiling(tile=64, stride=32).window_rope(build_rope(48, 80, head_dim=88))

    assert rope is not None
    expected = build_rope(48, 64, head_dim=88)
    assert (rope.height, rope.width) == (48, 64)
    torch.testing.assert_close(rope.cos, expected.cos, atol=1e-5, rtol=0)
    torch.testing.assert_close(rope.sin, expected.sin, atol=1e-5, rtol=0)


def test_the_long_skip_is_cropped_with_its_tokens() -> None:
    size, tile = (7, 9), TokenTiling(tile=4, stride=3)
    tokens, skip = torch.randn(2, 2, 63, 8)

    def run(tokens: Tensor, *, skip: Tensor | None) -> Tensor:
        assert skip is not None
        return tokens + 2 * skip

    torch.testing.assert_close(run_tiled(run, tokens, skip=skip, size=size, tile=tile), tokens + 2 * skip)


def test_windows_are_blended_by_their_weights() -> None:
    """Two windows of 4 overlap in 2 columns; there each weighs what its ramp says."""
    tokens = torch.zeros(1, 4 * 6, 1)
    order = iter((1.0, 4.0))

    blended = run_tiled(
        lambda tokens, *, skip: torch.full_like(tokens, next(order)),
        tokens,
        skip=None,
        size=(4, 6),
        tile=TokenTiling(tile=4, stride=2),
    )

    # a ramp of (4 + 4) // 4 = 2 cells: the left window falls 1, 1, 1, 1/2 and the right one rises 1/2, 1, 1, 1
    assert len(windows((4, 6), 4, 2)) == 2
    expected = torch.tensor([1.0, 1.0, (1 * 1 + 4 / 2) / 1.5, (1 / 2 + 4) / 1.5, 4.0, 4.0])
    torch.testing.assert_close(blended.reshape(4, 6), expected.expand(4, 6))


def test_gradients_flow_through_tiles() -> None:
    network = random_network(V1_2)
    plan = network.plan([700], network.encode_condition(random_text(V1_2, [(3, 4)])), build_rope(6, 9, V1_2.head_dim))
    latents = random_latents(1, 6, 9).requires_grad_()

    velocity = network.denoise(latents, 0, plan, tile=TokenTiling(tile=4, stride=2))
    (gradient,) = torch.autograd.grad(velocity.square().sum(), latents)

    assert gradient.abs().min() > 0


@pytest.mark.parametrize(("tile", "stride"), [(0, 1), (4, 0), (4, 5)])
def test_tiles_that_leave_gaps_are_refused(tile: int, stride: int) -> None:
    with pytest.raises(ValueError, match="tile"):
        TokenTiling(tile=tile, stride=stride)
