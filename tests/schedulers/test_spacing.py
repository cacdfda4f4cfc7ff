from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.betas import noise_schedule
from diffsynth.schedulers.spacing import (
    SPACINGS,
    EndToEnd,
    Explicit,
    Karras,
    Leading,
    Linspace,
    LogUniform,
    Spacing,
    Trailing,
)

SCHEDULE = noise_schedule(0.00085, 0.018)


def visited(spacing: Spacing, steps: int, denoising_strength: float = 1.0) -> list[float]:
    return list(spacing.timesteps(steps, denoising_strength, SCHEDULE))


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [(50, [981, 961, 941], [21, 1]), (100, [991, 981], [1]), (25, [961], [1]), (20, [951], [1])],
)
def test_leading_with_an_offset_visits_the_published_timesteps(steps: int, first: list[int], last: list[int]) -> None:
    timesteps = visited(Leading(steps_offset=1), steps)

    assert len(timesteps) == steps
    assert timesteps[: len(first)] == first
    assert timesteps[-len(last) :] == last


def test_linspace_starts_at_the_noisiest_timestep_and_leaves_zero_out() -> None:
    timesteps = visited(Linspace(), 50)

    assert (timesteps[:2], timesteps[-1], len(timesteps)) == ([999, 979], 20, 50)


@pytest.mark.parametrize(("steps", "expected"), [(1, [999]), (2, [999, 499]), (4, [999, 749, 499, 249])])
def test_trailing_visits_the_published_timesteps(steps: int, expected: list[int]) -> None:
    assert visited(Trailing(), steps) == expected


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [
        (20, 1.0, [999, 946, 894, 841, 789, 736, 684, 631, 578, 526, 473, 421, 368, 315, 263, 210, 158, 105, 53, 0]),
        (10, 0.7, [699, 621, 544, 466, 388, 311, 233, 155, 78, 0]),
        (4, 1.0, [999, 666, 333, 0]),
        (1, 1.0, [999]),
        (1, 0.5, [499]),
        (20, 0.003, [2, 1, 0]),
        (20, 0.0001, [0]),
    ],
)
def test_end_to_end_shortens_the_range_and_not_the_count(steps: int, strength: float, expected: list[int]) -> None:
    assert visited(EndToEnd(), steps, strength) == expected


@pytest.mark.parametrize(("steps", "strength", "run"), [(50, 0.8, 40), (20, 0.7, 14), (20, 1.0, 20), (20, 0.05, 1)])
@pytest.mark.parametrize("spacing", [Trailing(), Leading(1), Linspace(), Karras(), LogUniform()], ids=str)
def test_other_spacings_drop_the_first_steps_by_strength(
    spacing: Spacing, steps: int, strength: float, run: int
) -> None:
    assert visited(spacing, steps, strength) == visited(spacing, steps)[steps - run :]


@pytest.mark.parametrize("spacing", [Karras(), LogUniform()], ids=str)
def test_spacings_in_noise_reach_both_ends_and_are_even_in_their_measure(spacing: Spacing) -> None:
    ratios = [SCHEDULE.level(timestep).noise_ratio for timestep in visited(spacing, 12)]

    measured = [ratio ** (1 / 7) for ratio in ratios]
    if isinstance(spacing, LogUniform):
        measured = [-SCHEDULE.level(timestep).log_snr for timestep in visited(spacing, 12)]
    gaps = [earlier - later for earlier, later in pairwise(measured)]
    assert ratios[0] == pytest.approx(SCHEDULE.level(999).noise_ratio)
    assert ratios[-1] == pytest.approx(SCHEDULE.level(0).noise_ratio)
    assert gaps == pytest.approx([gaps[0]] * 11, rel=1e-9)


@pytest.mark.parametrize("name", SPACINGS)
def test_every_spacing_falls_strictly_for_every_number_of_steps(name: str) -> None:
    spacing = SPACINGS[name]()

    for steps in (*range(1, 120), 250, 333, 499, 500, 501, 750, 998, 999):
        timesteps = visited(spacing, steps)
        assert len(timesteps) == steps
        assert 999 >= timesteps[0] >= timesteps[-1] >= 0
        assert all(later < earlier for earlier, later in pairwise(timesteps))


def test_spacings_that_have_no_room_for_a_thousand_steps_say_so() -> None:
    with pytest.raises(InvalidRequest, match="Linspace spacing cannot place 1000 different timesteps from 999 to 0"):
        visited(Linspace(), 1000)
    with pytest.raises(InvalidRequest, match="Leading spacing cannot place 1000"):
        visited(Leading(steps_offset=1), 1000)
    assert len(visited(Trailing(), 1000)) == len(visited(EndToEnd(), 1000)) == 1000


def test_a_strength_that_leaves_no_step_names_one_that_does() -> None:
    with pytest.raises(
        InvalidRequest, match=r"3 steps with denoising_strength 0.3 leave no step to run.* 0.334 or more"
    ):
        visited(Trailing(), 3, 0.3)
    assert len(visited(Trailing(), 3, 0.334)) == 1


def test_explicit_timesteps_are_visited_as_written() -> None:
    assert visited(Explicit((900.0, 450.5, 3.0)), 3) == [900.0, 450.5, 3.0]
    with pytest.raises(InvalidRequest, match="4 steps were asked for, but 3 timesteps were given"):
        visited(Explicit((900.0, 450.5, 3.0)), 4)
    with pytest.raises(InvalidRequest, match="different timesteps"):
        visited(Explicit((900.0, 900.0)), 2)
    with pytest.raises(InvalidRequest, match="different timesteps"):
        visited(Explicit((1000.0, 900.0)), 2)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # theirs, on arrays made from tensors
@pytest.mark.parametrize(
    ("spacing", "oracle_class", "settings"),
    [
        (Leading(steps_offset=1), "DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        (Trailing(), "DDIMScheduler", {"timestep_spacing": "trailing"}),
        (EndToEnd(), "DDIMScheduler", {"timestep_spacing": "linspace"}),
        (Linspace(), "DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
        (Trailing(), "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    ],
    ids=str,
)
def test_whole_timesteps_are_those_of_diffusers(spacing: Spacing, oracle_class: str, settings: dict[str, Any]) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation")
    oracle = getattr(diffusers, oracle_class)(**settings)

    for steps in (2, 3, 7, 10, 15, 20, 25, 28, 30, 33, 50, 77, 100, 150, 250, 500):
        oracle.set_timesteps(steps)
        assert visited(spacing, steps) == oracle.timesteps.tolist()
