from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffsynth.nn.tiling import Window, blend_mask, origins, tiled, windows

SIZES = [(1, 1), (3, 9), (8, 8), (13, 7), (16, 21), (40, 5)]
TILES = [(1, 1), (4, 1), (4, 3), (5, 5), (8, 4), (64, 32)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("tile", "stride"), TILES)
def test_windows_cover_every_cell_and_stay_inside(size: tuple[int, int], tile: int, stride: int) -> None:
    covered = torch.zeros(size)

    places = windows(size, tile, stride)

    for place in places:
        assert place.top >= 0
        assert place.left >= 0
        assert place.bottom <= size[0]
        assert place.right <= size[1]
        assert (place.height, place.width) == (min(tile, size[0]), min(tile, size[1]))
        place.crop(covered).add_(1)
    assert covered.min() >= 1
    assert len(set(places)) == len(places)


def test_the_last_window_is_pulled_back_to_the_border() -> None:
    assert origins(64, 64, 32) == (0,)
    assert origins(80, 64, 32) == (0, 16)
    assert origins(96, 64, 32) == (0, 32)
    assert origins(97, 64, 32) == (0, 32, 33)
    assert origins(128, 64, 32) == (0, 32, 64)


def test_blend_weights_fall_only_towards_neighbours() -> None:
    mask = blend_mask(Window(top=0, left=4, height=4, width=6), (4, 20), border=3)

    expected_row = torch.tensor([1, 2, 3, 3, 2, 1]) / 3
    assert torch.equal(mask, expected_row.expand(4, 6))


def test_the_default_ramp_is_a_quarter_of_height_plus_width() -> None:
    mask = blend_mask(Window(top=8, left=0, height=8, width=8), (16, 8))

    assert torch.equal(mask[:, 0], torch.tensor([1, 2, 3, 4, 4, 4, 4, 4]) / 4)


def test_corners_take_the_smaller_ramp() -> None:
    mask = blend_mask(Window(top=0, left=0, height=6, width=6), (9, 9), border=3)

    assert mask[5, 0] == pytest.approx(1 / 3)
    assert mask[4, 5] == pytest.approx(1 / 3)
    assert mask[4, 4] == pytest.approx(2 / 3)
    assert mask[0, 0] == 1


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("tile", "stride"), TILES)
@pytest.mark.parametrize("border", [None, 1, 1000])
def test_cropping_alone_gives_the_grid_back(size: tuple[int, int], tile: int, stride: int, border: int | None) -> None:
    grid = torch.randn(2, 3, *size)

    whole = tiled(lambda window: window.crop(grid), size, tile=tile, stride=stride, border=border)

    torch.testing.assert_close(whole, grid)


def test_channels_last_is_the_same_thing_transposed() -> None:
    grid = torch.randn(2, 3, 11, 9)
    tokens = grid.permute(0, 2, 3, 1)

    first = tiled(lambda window: window.crop(grid) * window.top, (11, 9), tile=4, stride=3)
    last = tiled(
        lambda window: window.crop(tokens, channels_last=True) * window.top,
        (11, 9),
        tile=4,
        stride=3,
        channels_last=True,
    )

    torch.testing.assert_close(last.permute(0, 3, 1, 2), first)


def test_the_result_may_be_finer_than_the_grid() -> None:
    grid = torch.randn(1, 2, 7, 10)

    def enlarge(window: Window) -> Tensor:
        return window.crop(grid).repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)

    whole = tiled(enlarge, (7, 10), tile=4, stride=2, scale=8)

    torch.testing.assert_close(whole, enlarge(Window(0, 0, 7, 10)))


def test_a_finer_input_is_cropped_with_the_scaled_window() -> None:
    pixels = torch.randn(1, 3, 40, 56)

    def shrink(window: Window) -> Tensor:
        return torch.nn.functional.avg_pool2d(window.scaled(8).crop(pixels), 8)

    whole = tiled(shrink, (5, 7), tile=3, stride=2)

    torch.testing.assert_close(whole, torch.nn.functional.avg_pool2d(pixels, 8))


def test_one_window_is_returned_untouched() -> None:
    grid = torch.randn(1, 2, 5, 6, dtype=torch.float16)

    whole = tiled(lambda window: window.crop(grid), (5, 6), tile=6, stride=1)

    assert torch.equal(whole, grid)


def test_half_precision_comes_back_as_half_precision() -> None:
    grid = torch.randn(1, 2, 9, 9, dtype=torch.bfloat16)

    whole = tiled(lambda window: window.crop(grid), (9, 9), tile=4, stride=2)

    assert torch.equal(whole, grid)


def test_gradients_flow_through_the_blend() -> None:
    grid = torch.randn(1, 2, 9, 7, requires_grad=True)

    whole = tiled(lambda window: window.crop(grid).square(), (9, 7), tile=4, stride=3)
    (gradient,) = torch.autograd.grad(whole.sum(), grid)

    torch.testing.assert_close(gradient, 2 * grid.detach())


@pytest.mark.parametrize("stride", [0, -1, 5])
def test_a_stride_that_would_leave_gaps_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to the tile size 4 to leave no gaps, but is {stride}"):
        windows((8, 8), 4, stride)


@pytest.mark.parametrize(("size", "tile"), [((0, 8), 4), ((8, 8), 0)])
def test_empty_grids_and_tiles_are_refused(size: tuple[int, int], tile: int) -> None:
    with pytest.raises(ValueError, match="both must be at least 1"):
        windows(size, tile, 1)


def test_a_function_that_returns_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a window of 8 x 8 cells came back as \(1, 1, 4, 4\)"):
        tiled(lambda window: torch.zeros(1, 1, 4, 4), (8, 8), tile=4, stride=4, scale=2)
