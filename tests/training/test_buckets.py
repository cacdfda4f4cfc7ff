"""Shapes of pictures, and the order of batches."""

from __future__ import annotations

import pytest
from PIL import Image

from diffsynth.training.buckets import BatchOrder, Shape, fit, make_shapes, nearest_shape


def test_a_limit_of_one_leaves_the_square() -> None:
    assert make_shapes(128, 1.0) == (Shape(128, 128),)


@pytest.mark.parametrize(("size", "limit"), [(128, 2.0), (512, 2.5), (1024, 4.0)])
def test_shapes_keep_the_area_and_the_limit(size: int, limit: float) -> None:
    shapes = make_shapes(size, limit)

    assert Shape(size, size) in shapes
    for shape in shapes:
        assert shape.width % 16 == shape.height % 16 == 0
        assert size * size - 16 * min(shape.width, shape.height) < shape.width * shape.height <= size * size
        assert max(shape.width, shape.height) <= limit * min(shape.width, shape.height)
        assert Shape(shape.height, shape.width) in shapes


def test_a_picture_goes_to_the_shape_of_its_aspect() -> None:
    shapes = make_shapes(128, 2.0)

    assert nearest_shape(1000, 1000, shapes) == Shape(128, 128)
    assert nearest_shape(2000, 1000, shapes) == max(shapes, key=lambda shape: shape.width / shape.height)
    assert nearest_shape(500, 1000, shapes) == min(shapes, key=lambda shape: shape.width / shape.height)


def halves(width: int, height: int) -> Image.Image:
    """A picture whose left half is black and whose right half is white."""
    image = Image.new("RGB", (width, height), "white")
    image.paste("black", (0, 0, width // 2, height))
    return image


def test_cropping_keeps_proportions_and_the_chosen_side() -> None:
    wide = halves(64, 32)

    middle, left, right = (fit(wide, Shape(32, 32), at=(across, 0.5)) for across in (0.5, 0.0, 1.0))

    assert middle.size == left.size == right.size == (32, 32)
    assert left.getextrema() == ((0, 0),) * 3
    assert right.getextrema() == ((255, 255),) * 3
    assert middle.getpixel((8, 8)) == (0, 0, 0)
    assert middle.getpixel((24, 8)) == (255, 255, 255)


def test_stretching_keeps_everything() -> None:
    stretched = fit(halves(64, 32), Shape(32, 32), how="stretch")

    assert stretched.getpixel((2, 2)) == (0, 0, 0)
    assert stretched.getpixel((29, 29)) == (255, 255, 255)


def test_an_epoch_shows_every_picture_in_full_batches_of_one_shape() -> None:
    shapes = {number: Shape(32, 32) if number % 3 else Shape(48, 16) for number in range(20)}
    order = BatchOrder(shapes, 4, seed=1)

    batches = [order.batch(number) for number in range(order.per_epoch)]

    assert {epoch for epoch, _ in batches} == {0}
    assert all(len(chosen) == 4 and len({shapes[number] for number in chosen}) == 1 for _, chosen in batches)
    assert {number for _, chosen in batches for number in chosen} == set(shapes)
    assert order.per_epoch == 4 + 2


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    shapes = dict.fromkeys(range(32), Shape(32, 32))
    order, again, other = (BatchOrder(shapes, 4, seed) for seed in (1, 1, 2))

    all_batches = [order.batch(number) for number in range(24)]

    assert [again.batch(number) for number in reversed(range(24))] == all_batches[::-1]
    assert [other.batch(number) for number in range(24)] != all_batches
    assert [chosen for _, chosen in all_batches[:8]] != [chosen for _, chosen in all_batches[8:16]]


def test_a_shape_with_fewer_pictures_than_a_batch_repeats_them() -> None:
    order = BatchOrder({7: Shape(32, 32), 9: Shape(32, 32)}, 5, seed=0)

    _, chosen = order.batch(3)

    assert sorted(set(chosen)) == [7, 9]
    assert len(chosen) == 5
