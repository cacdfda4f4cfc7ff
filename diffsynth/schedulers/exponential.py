"""Weights of exponential multistep integrators: how data predictions at several levels lead to the next level.

In the time variable l = log(alpha / sigma) the probability-flow equation of a diffusion model has the solution

    x(end) = sigma_end / sigma_start * x(start) + alpha_end * ∫ exp(l - l_end) data(l) dl,

and solvers differ in how they replace ``data`` by a polynomial through predictions they already have
(DPM-Solver++, arXiv 2211.01095, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from diffsynth.schedulers.base import Mix
from diffsynth.schedulers.betas import Level

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def constant(start: Level, end: Level) -> Mix:
    """Take the data as constant: order 1. From prediction at ``start``. This is DDIM."""
    return Mix(end.sigma / start.sigma, (_mass(start, end),))


def trapezoid(start: Level, end: Level) -> Mix:
    """Take the mean of the predictions at ``end`` (first weight) and at ``start``: the corrector of order 1."""
    half = 0.5 * _mass(start, end)
    return Mix(end.sigma / start.sigma, (half, half))


def midpoint(start: Level, end: Level, before: Level) -> Mix:
    """Extrapolate from ``before`` and ``start`` to the middle of the step: order 2, DPM-Solver++ 2M."""
    mass = _mass(start, end)
    slope = 0.5 * mass * _span(start, end) / _span(before, start)
    return Mix(end.sigma / start.sigma, (mass + slope, -slope))


def published_third(start: Level, end: Level, before: Level, earlier: Level) -> Mix:
    """Weights of DPM-Solver++ 3M as its authors' code and others have them.

    The weight of the second difference is half of what integration gives, so the order seen in practice is 2; see
    ``polynomial`` for the one that converges with order 3.
    """
    h = _span(start, end)
    r0, r1 = _span(before, start) / h, _span(earlier, before) / h
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / h + 1.0
    phi_3 = phi_2 / h - 0.5
    # The data's first and second difference, each written as weights of the slopes start-before and before-earlier.
    tilt = r0 / (r0 + r1)
    newer = phi_2 * (1.0 + tilt) - phi_3 / (r0 + r1)
    older = -phi_2 * tilt + phi_3 / (r0 + r1)
    data = (-phi_1 + newer / r0, -newer / r0 + older / r1, -older / r1)
    return Mix(end.sigma / start.sigma, tuple(end.alpha * weight for weight in data))


def polynomial(start: Level, end: Level, nodes: Sequence[Level]) -> Mix:
    """Integrate the polynomial through the predictions at ``nodes``: order ``len(nodes)``.

    Args:
        start: where the step begins.
        end: where it leads, with some noise left.
        nodes: different levels of the predictions, in the order of the weights; ``end`` may be among them (a
            corrector).
    """
    h = _span(start, end)
    places = [_span(start, node) / h for node in nodes]  # 0 is the start, 1 the end, the past is negative
    at = 0.5 * (_POINTS + 1.0)
    kernel = 0.5 * _WEIGHTS * h * np.exp(-h * (1.0 - at))
    data = []
    for index, place in enumerate(places):
        others = [other for position, other in enumerate(places) if position != index]
        basis = np.prod([(at - other) / (place - other) for other in others], axis=0)
        data.append(end.alpha * float(np.sum(kernel * basis)))
    return Mix(end.sigma / start.sigma, tuple(data))


def stay() -> Mix:
    """Leave the latents as they are: the step's two levels are the same."""
    return Mix(1.0, (0.0,))


def _span(start: Level, end: Level) -> float:
    return end.log_snr - start.log_snr


def _mass(start: Level, end: Level) -> float:
    """Return the sum of all data weights; at a clean end the span is infinite and this is 1."""
    return -end.alpha * math.expm1(-_span(start, end))
