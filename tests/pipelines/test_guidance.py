"""Guidance: the formulas, one by one."""

from __future__ import annotations

import torch

from diffsynth.pipelines.guidance import Guidance, Region


def predictions(count: int) -> list[torch.Tensor]:
    """Return predictions for two images."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, 6, 8, generator=generator) for _ in range(count)]


def test_without_guidance_the_prompt_alone_counts() -> None:
    (positive,) = predictions(1)

    assert torch.equal(Guidance().combine(positive, negative=None, perturbed=None, regional=[]), positive)


def test_guidance_goes_from_the_negative_prompt_past_the_prompt() -> None:
    positive, negative = predictions(2)

    guided = Guidance(scale=3.0).combine(positive, negative=negative, perturbed=None, regional=[])

    torch.testing.assert_close(guided, 3 * positive - 2 * negative)


def test_perturbed_attention_adds_its_own_difference() -> None:
    positive, negative, perturbed = predictions(3)
    guidance = Guidance(scale=3.0, perturbed_scale=2.0)

    guided = guidance.combine(positive, negative=negative, perturbed=perturbed, regional=[])

    torch.testing.assert_close(guided, 3 * positive - 2 * negative + 2 * (positive - perturbed))


def test_rescaling_brings_each_image_back_to_the_spread_of_its_prompt() -> None:
    positive, negative = predictions(2)
    negative[1] *= 5

    guided = Guidance(scale=6.0, rescale=1.0).combine(positive, negative=negative, perturbed=None, regional=[])
    half = Guidance(scale=6.0, rescale=0.5).combine(positive, negative=negative, perturbed=None, regional=[])

    plain = Guidance(scale=6.0).combine(positive, negative=negative, perturbed=None, regional=[])
    torch.testing.assert_close(guided.flatten(1).std(dim=1), positive.flatten(1).std(dim=1))
    torch.testing.assert_close(half, (guided + plain) / 2)


def test_regions_are_weighed_against_the_whole_and_act_on_the_prompt_only() -> None:
    positive, negative, first, second = predictions(4)
    left, everywhere = torch.zeros(1, 1, 6, 8), torch.ones(1, 1, 6, 8)
    left[..., :4] = 1
    guidance = Guidance(scale=2.0, regions=[Region(left, 3.0), Region(everywhere, 0.5)])

    guided = guidance.combine(positive, negative=negative, perturbed=None, regional=[first, second])

    mixed = torch.cat(
        [
            ((positive + 3 * first + 0.5 * second) / 4.5)[..., :4],
            ((positive + 0.5 * second) / 1.5)[..., 4:],
        ],
        dim=-1,
    )
    torch.testing.assert_close(guided, 2 * mixed - negative)
