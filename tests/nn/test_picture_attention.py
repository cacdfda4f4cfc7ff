"""What is added to attention for pictures: a second attention, weighted row by row, where there are pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsynth.nn.attention import attend
from diffsynth.nn.picture_attention import PictureAttention


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_pictures_are_attended_to_apart_and_weighted_row_by_row() -> None:
    queries, text, pictures = random(2, 6, 3, 4), random(2, 5, 3, 4), random(2, 7, 3, 4)
    hook = PictureAttention({"here": (pictures, pictures + 1)}, torch.tensor([0.5, 2.0]))

    found = hook("here", queries, text, text - 1)

    for row, scale in enumerate((0.5, 2.0)):
        one = slice(row, row + 1)
        expected = attend(queries[one], text[one], text[one] - 1)
        expected = expected + scale * attend(queries[one], pictures[one], pictures[one] + 1)
        torch.testing.assert_close(found[one], expected, atol=1e-6, rtol=1e-6)


def test_attentions_that_have_no_pictures_are_as_without_them() -> None:
    queries, text, pictures = random(1, 6, 3, 4), random(1, 5, 3, 4), random(1, 7, 3, 4)
    hook = PictureAttention({"here": (pictures, pictures)}, torch.ones(1))

    assert torch.equal(hook("there", queries, text, text), attend(queries, text, text))


def test_rows_are_taken_in_the_order_that_is_asked_for() -> None:
    pictures = random(2, 7, 3, 4)
    hook = PictureAttention({"here": (pictures, -pictures)}, torch.tensor([0.5, 2.0])).rows([1, 0, 1])

    keys, values = hook.layers["here"]
    assert torch.equal(keys, pictures[[1, 0, 1]])
    assert torch.equal(values, -keys)
    assert hook.scales.tolist() == [2.0, 0.5, 2.0]
