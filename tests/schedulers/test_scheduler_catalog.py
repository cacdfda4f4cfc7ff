from __future__ import annotations

from typing import Any

import pytest

from diffsynth.errors import InvalidRequest
from diffsynth.schedulers.catalog import RECOMMENDED, SCHEDULERS, make_scheduler
from diffsynth.schedulers.ddim import DDIMScheduler
from diffsynth.schedulers.spacing import SPACINGS, Karras, Leading, LogUniform, Trailing
from diffsynth.schedulers.unipc import UniPCScheduler

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.018}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_scheduler_takes_every_spacing_and_prediction(name: str, spacing: str) -> None:
    for prediction in ("velocity", "epsilon", "sample"):
        made = make_scheduler(name, prediction=prediction, spacing=spacing, **BETAS)

        assert (made.beta_end, made.prediction, type(made.spacing)) == (0.018, prediction, SPACINGS[spacing])


def test_a_scheduler_keeps_its_own_spacing_unless_told() -> None:
    own = make_scheduler("ddim", prediction="velocity", **BETAS)
    told = make_scheduler("ddim", prediction="velocity", spacing=Karras(rho=5.0), **BETAS)

    assert own == DDIMScheduler(beta_end=0.018, spacing=Leading(steps_offset=1))
    assert told.spacing == Karras(rho=5.0)


def test_the_recommended_scheduler_corrects_itself_on_log_uniform_levels() -> None:
    made = make_scheduler(RECOMMENDED, prediction="velocity", **BETAS)

    assert made == UniPCScheduler(beta_end=0.018, order=2, spacing=LogUniform())
    assert made.start(20).levels[-1].sigma == 0.0


def test_final_sigma_and_beta_schedule_are_passed_on() -> None:
    made = make_scheduler(
        "dpm++2m", prediction="epsilon", spacing=Trailing(), final_sigma="sigma_min", beta_schedule="linear", **BETAS
    )

    assert (made.final_sigma, made.beta_schedule) == ("sigma_min", "linear")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "heun"}, "unknown scheduler 'heun'; known are: ddim_diffsynth, ddim, ddpm, dpmms,"),
        ({"spacing": "even"}, "unknown spacing 'even'; known are: trailing, leading,"),
        ({"prediction": "noise"}, "unknown prediction 'noise'; known are: velocity, epsilon, sample"),
        ({"final_sigma": "none"}, "unknown final_sigma 'none'; known are: zero, sigma_min"),
        ({"beta_schedule": "cosine"}, "unknown beta schedule 'cosine'; known are: scaled_linear, linear"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(changes: dict[str, Any], message: str) -> None:
    settings = {"name": "unipc", "prediction": "velocity", **BETAS, **changes}

    with pytest.raises(InvalidRequest) as caught:
        make_scheduler(**settings)

    assert message in str(caught.value)
