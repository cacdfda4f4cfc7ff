from __future__ import annotations

import torch

from diffsynth.nn.attention import attend, split_heads


def test_attention_is_the_textbook_formula() -> None:
    queries, keys, values = torch.randn(2, 7, 3, 8), torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8)

    mixed = attend(queries, keys, values)

    weights = (torch.einsum("bnhd,blhd->bhnl", queries, keys) / 8**0.5).softmax(dim=-1)
    expected = torch.einsum("bhnl,blhd->bnhd", weights, values).flatten(2)
    torch.testing.assert_close(mixed, expected)


def test_heads_are_neighbouring_features() -> None:
    features = torch.randn(2, 5, 12)

    assert torch.equal(split_heads(features, 3)[:, :, 1], features[..., 4:8])
