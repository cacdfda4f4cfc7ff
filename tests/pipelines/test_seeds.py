"""What a seed means: the same image again, alone or in a batch, in any precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.latents import Noise, seed_from
from diffsynth.pipelines.monitor import Monitor

from .conftest import Load
from .toy import OTHER_PROMPT, PROMPT, largest_difference, load_toy, quiet, request

SMALL: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 2}


def test_one_prompt_gives_an_image_and_a_list_gives_a_list(pipe: HunyuanDiTImagePipeline) -> None:
    one, listed = pipe(PROMPT, **SMALL), pipe([PROMPT], **SMALL)
    several = pipe(PROMPT, num_images_per_prompt=2, **SMALL)

    assert isinstance(one, Image.Image)
    assert one.size == (96, 64)
    assert isinstance(listed, list)
    assert [len(listed), len(several)] == [1, 2]


def test_the_same_seed_gives_the_same_image_bit_for_bit(pipe: HunyuanDiTImagePipeline) -> None:
    first, again, other = (pipe(PROMPT, seed=seed, **SMALL) for seed in (7, 7, 8))

    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm++2m_sde"])
def test_an_image_of_a_batch_is_the_image_of_its_seed_alone(pipeline: Load, scheduler: str) -> None:
    pipe = pipeline("v1.0", "original")
    prompts, settings = [PROMPT, OTHER_PROMPT, PROMPT], {**SMALL, "scheduler": scheduler}

    together = pipe(prompts, num_images_per_prompt=2, seed=20, batch_size=4, **settings)
    one_by_one = pipe(prompts, num_images_per_prompt=2, seed=20, batch_size=1, **settings)

    assert [image.info["seed"] for image in together] == list(range(20, 26))
    for index, (image, lone) in enumerate(zip(together, one_by_one, strict=True)):
        alone = pipe(prompts[index // 2], seed=20 + index, **settings)
        assert lone.tobytes() == alone.tobytes()
        assert largest_difference(image, alone) <= 1


def test_images_of_a_batch_from_one_picture_differ_as_their_seeds(pipeline: Load) -> None:
    pipe = pipeline("v1.2", "original")
    settings = {**SMALL, "input_image": Image.linear_gradient("L"), "strength": 0.5}

    images = pipe(PROMPT, num_images_per_prompt=3, seed=4, **settings)

    for index, image in enumerate(images):
        assert largest_difference(image, pipe(PROMPT, seed=4 + index, **settings)) <= 1
    assert largest_difference(images[0], images[1]) > 1


def test_without_a_seed_the_global_generator_decides(pipe: HunyuanDiTImagePipeline) -> None:
    torch.manual_seed(3)
    first, second = pipe(PROMPT, **SMALL), pipe(PROMPT, **SMALL)
    torch.manual_seed(3)
    again = pipe(PROMPT, **SMALL)

    assert first.tobytes() == again.tobytes()
    assert first.info["seed"] != second.info["seed"]
    assert first.tobytes() != second.tobytes()


def test_the_seed_that_was_chosen_is_told_and_draws_the_image_again(pipe: HunyuanDiTImagePipeline) -> None:
    images = pipe([PROMPT, OTHER_PROMPT], batch_size=1, **SMALL)

    for prompt, image in zip((PROMPT, OTHER_PROMPT), images, strict=True):
        assert pipe(prompt, seed=image.info["seed"], **SMALL).tobytes() == image.tobytes()


def test_drawing_with_a_seed_leaves_the_global_generator_alone(pipe: HunyuanDiTImagePipeline) -> None:
    before = torch.get_rng_state()

    pipe(PROMPT, seed=3, **SMALL)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_generator_means_its_seed_and_then_moves_on(pipe: HunyuanDiTImagePipeline) -> None:
    generator = torch.Generator().manual_seed(7)

    first, second = (pipe(PROMPT, generator=generator, **SMALL) for _ in range(2))

    assert first.info["seed"] == 7
    assert first.tobytes() == pipe(PROMPT, seed=7, **SMALL).tobytes()
    assert second.info["seed"] != 7
    assert second.tobytes() != first.tobytes()


def test_a_used_generator_gives_a_seed_by_a_draw() -> None:
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    torch.rand(3, generator=first)
    torch.rand(3, generator=second)

    assert seed_from(first) == seed_from(second) != 7


def test_every_image_may_have_a_seed_of_its_own(pipe: HunyuanDiTImagePipeline) -> None:
    images = pipe(
        [PROMPT, PROMPT], generator=[torch.Generator().manual_seed(9), torch.Generator().manual_seed(5)], **SMALL
    )

    assert [image.info["seed"] for image in images] == [9, 5]
    assert largest_difference(images[1], pipe(PROMPT, seed=5, **SMALL)) <= 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": [1, 2]}, "2 seeds were given for 1 images"),
        ({"seed": "7"}, "not str"),
        ({"seed": 2**63 - 1, "num_images_per_prompt": 2}, "seed must be"),
        ({"negative_prompt": ["a", "b"]}, "2 entries for 1 prompts"),
    ],
    ids=str,
)
def test_seeds_and_prompts_that_do_not_pair_up_are_refused(
    pipe: HunyuanDiTImagePipeline, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        pipe(PROMPT, **SMALL, **settings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_seed_starts_from_the_same_noise_in_every_precision(v1_2: list[Path], dtype: torch.dtype) -> None:
    starts, images = [], []
    for precision in (torch.float32, dtype):
        pipe = load_toy(v1_2, dtype=precision)
        pipe.denoiser.denoise = lambda latents, *_, **__: torch.zeros_like(latents)  # type: ignore[method-assign]
        images += [pipe(PROMPT, seed=7, callback=lambda report: starts.append(report.latents), **SMALL)]

    assert torch.equal(starts[0], starts[2])
    assert images[0].tobytes() == images[1].tobytes()  # the autoencoder stays in float32


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 12), (torch.bfloat16, 90)], ids=str)
def test_half_precision_draws_nearly_the_same_image(v1_2: list[Path], dtype: torch.dtype, tolerance: int) -> None:
    exact = load_toy(v1_2)(PROMPT, seed=7, cfg_scale=3.0, **SMALL)

    image = load_toy(v1_2, dtype=dtype)(PROMPT, seed=7, cfg_scale=3.0, **SMALL)

    assert largest_difference(image, exact) <= tolerance


def test_noise_does_not_depend_on_the_images_beside_it() -> None:
    together = Noise([3, 4], (4, 8, 8), torch.device("cpu"))
    alone = Noise([4], (4, 8, 8), torch.device("cpu"))

    for _ in range(3):
        assert torch.equal(together.draw()[1:], alone.draw())


def test_copies_of_noise_differ_and_begin_where_the_image_begins() -> None:
    noise = Noise([3, 4], (4, 8, 8), torch.device("cpu"))
    first = noise.draw()

    copies = noise.again(copies=2)
    drawn = copies.draw()

    assert len(copies) == len(drawn) == 4
    assert torch.equal(drawn[:2], first)
    assert torch.equal(drawn[1::2], Noise([4], (4, 8, 8), torch.device("cpu"), copies=2).draw())
    assert not torch.equal(drawn[:2], drawn[2:])


def test_requests_drawn_together_may_differ_in_prompts_and_seed_only(pipe: HunyuanDiTImagePipeline) -> None:
    same = [request(seed=1), request(OTHER_PROMPT, seed=2, negative_prompt="panda")]

    assert len(pipe.draw(same, quiet())) == 2
    with pytest.raises(InvalidRequest, match="may differ in prompts and seed only"):
        pipe.draw([request(seed=1), request(seed=1, cfg_scale=2.0)], Monitor(lambda steps: steps))


def test_a_batch_of_one_kind_is_cut_to_the_batch_size(pipe: HunyuanDiTImagePipeline) -> None:
    rows: list[int] = []

    pipe(
        PROMPT, num_images_per_prompt=5, batch_size=2, callback=lambda report: rows.append(len(report.latents)), **SMALL
    )

    assert rows == [2, 2, 2, 2, 1, 1]
