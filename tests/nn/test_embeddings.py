from __future__ import annotations

import pytest
import torch

from diffsynth.nn.embeddings import PatchEmbed, sinusoid, unpatchify

GOLDEN_981 = {0: 0.679957, 1: -0.255639, 127: 0.994449, 128: 0.733252, 129: 0.966772, 255: 0.105224}


def test_the_sinusoid_of_a_timestep_has_the_known_numbers() -> None:
    embedded = sinusoid(torch.tensor([981.0]), 256)[0]

    for index, value in GOLDEN_981.items():
        assert float(embedded[index]) == pytest.approx(value, abs=2e-6)


def test_integers_and_floats_are_embedded_alike() -> None:
    assert torch.equal(sinusoid(torch.tensor([0, 981]), 256), sinusoid(torch.tensor([0.0, 981.0]), 256))


def test_the_sinusoid_agrees_with_diffusers() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    timesteps = torch.rand(50) * 1000

    expected = embeddings.get_timestep_embedding(timesteps, 64, flip_sin_to_cos=True, downscale_freq_shift=0)

    torch.testing.assert_close(sinusoid(timesteps, 64), expected)


def test_a_sinusoid_appends_its_dimension() -> None:
    values = torch.rand(2, 6) * 1024

    embedded = sinusoid(values, 8)

    assert embedded.shape == (2, 6, 8)
    assert torch.equal(embedded[1, 3], sinusoid(values[1, 3], 8))


def test_an_odd_sinusoid_is_refused() -> None:
    with pytest.raises(ValueError, match="even size, not 7"):
        sinusoid(torch.zeros(1), 7)


def test_patches_are_taken_row_by_row() -> None:
    embed = PatchEmbed(channels=3, patch_size=2, hidden_size=12).requires_grad_(False)
    image = torch.randn(2, 3, 6, 10)

    tokens = embed(image)

    assert tokens.shape == (2, 15, 12)
    torch.testing.assert_close(tokens[:, 1 * 5 + 3], embed(image[..., 2:4, 6:8])[:, 0])


def test_unpatchify_puts_every_value_in_its_place() -> None:
    tokens = torch.randn(2, 3 * 5, 2 * 2 * 4)

    image = unpatchify(tokens, 3, 5, patch_size=2)

    assert image.shape == (2, 4, 6, 10)
    row, column, channel = 3, 8, 2
    token = tokens[:, (row // 2) * 5 + column // 2]
    assert torch.equal(image[:, channel, row, column], token[:, ((row % 2) * 2 + column % 2) * 4 + channel])
