"""``(words:1.2)``: parts of a prompt that count more or less than the rest."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

from diffsynth.errors import InvalidRequest, printable

logger = logging.getLogger(__name__)

_MARK = re.compile(r"\\[()\\]|[(]|:\s*([0-9]*\.?[0-9]+)\s*[)]|[)]")
_NO_WEIGHT = re.compile(r"(?<!\\)[(][^()]{0,40}:\s*(?:[+-][0-9.]+|[0-9.]+e[+-]?[0-9]+|[+-]?(?:nan|inf))\s*[)]")
HIGHEST = 10.0


@dataclass(frozen=True)
class Span:
    """A part of a prompt and its weight, 1 where none is given."""

    text: str
    weight: float = 1.0


def weighted_spans(prompt: str) -> list[Span]:
    r"""Return the parts of a prompt with their weights.

    Only ``(words:number)`` is a weight; brackets inside one another multiply theirs. Other brackets are text, and
    so are ``\(`` and ``\)``, without the backslash. A prompt without weights is one span, word for word.

    Raises:
        InvalidRequest: a weight is above 10.
    """
    for odd in _NO_WEIGHT.findall(prompt):
        logger.warning("%s gives no weight, which is a number from 0 to %g; it is read as text", odd, HIGHEST)
    weights = _closing_weights(prompt)
    if not weights:
        return [Span(prompt)]
    spans: list[Span] = []
    open_weights: list[float] = []
    for text, place, closes in _pieces(prompt):
        if place in weights and not closes:
            open_weights.append(weights[place])
        elif closes and place in weights:
            open_weights.pop()
        else:
            weight = 1.0
            for each in open_weights:
                weight *= each
            if weight > HIGHEST:
                raise InvalidRequest(
                    f"the brackets around {printable(text)} multiply to a weight of {weight:g}, above {HIGHEST:g}."
                )
            _append(spans, Span(text, weight))
    return spans


def _pieces(prompt: str) -> Iterator[tuple[str, int, bool]]:
    """Yield each piece of text and each mark: the text, where a mark stands or -1, and whether it closes."""
    last = 0
    for mark in _MARK.finditer(prompt):
        if mark.start() > last:
            yield prompt[last : mark.start()], -1, False
        found = mark.group()
        if found.startswith("\\"):
            yield found[1:], -1, False
        else:
            yield found, mark.start(), found != "("
        last = mark.end()
    if last < len(prompt):
        yield prompt[last:], -1, False


def _closing_weights(prompt: str) -> dict[int, float]:
    """Return the weight of every bracket that has one, under the places of both its ends."""
    opened: list[int] = []
    weights: dict[int, float] = {}
    for mark in _MARK.finditer(prompt):
        found = mark.group()
        if found == "(":
            opened.append(mark.start())
        elif not found.startswith("\\") and opened:
            start = opened.pop()
            if mark.group(1) is not None:
                weight = float(mark.group(1))
                if weight > HIGHEST:
                    part = printable(prompt[start : mark.end()])
                    raise InvalidRequest(f"{part} gives a weight above {HIGHEST:g}; 0.5 to 1.5 is usual.")
                weights[start] = weights[mark.start()] = weight
    return weights


def _append(spans: list[Span], span: Span) -> None:
    """Add a span, joined to the one before it if both have the same weight."""
    if spans and spans[-1].weight == span.weight:
        spans[-1] = Span(spans[-1].text + span.text, span.weight)
    else:
        spans.append(span)
