"""How fast images were drawn, as a small plot in SVG; times without any work are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median

WIDTH, HEIGHT = 1160, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 28
BUCKETS = 60
SHORTEST_PAUSE = 120.0  # seconds
UNITS = (("second", 1.0), ("minute", 60.0), ("hour", 3600.0))


@dataclass(frozen=True)
class Throughput:
    """When images were finished, on a clock that stands still in pauses.

    Args:
        at: seconds of work before each image, sorted.
        failed: likewise, of failures.
        pauses: (seconds of work before it, how many seconds it was).
        length: seconds of work altogether.
    """

    at: tuple[float, ...]
    failed: tuple[float, ...]
    pauses: tuple[tuple[float, float], ...]
    length: float

    @classmethod
    def of(cls, drawn: Sequence[datetime], failed: Sequence[datetime], starts: Sequence[datetime] = ()) -> Throughput:
        """Make the clock; a gap between events is a pause if it is much longer than is usual."""
        named = {"start": starts, "drawn": drawn, "failed": failed}
        events = sorted((time, kind) for kind, times in named.items() for time in times)
        gaps = [0.0, *((later - earlier).total_seconds() for (earlier, _), (later, _) in pairwise(events))]
        usual = median(gaps)
        limit = max(SHORTEST_PAUSE, 20 * usual)
        clock, pauses = 0.0, []
        places: dict[str, list[float]] = {kind: [] for kind in named}
        for gap, (_, kind) in zip(gaps, events, strict=False):
            if gap > limit:
                pauses.append((clock, gap))
            clock += usual if gap > limit else gap
            places[kind].append(clock)
        return cls(tuple(places["drawn"]), tuple(places["failed"]), tuple(pauses), clock)

    @property
    def rate(self) -> float:
        """Images per second of work; 0 if it is not known."""
        return len(self.at) / self.length if self.length else 0.0

    def counts(self) -> list[int]:
        """Return the images finished in each of equal parts of the time."""
        counts = [0] * min(BUCKETS, max(int(self.length), 1), max(len(self.at) // 2, 1))
        for place in self.at:
            counts[min(int(place / self.length * len(counts)), len(counts) - 1) if self.length else 0] += 1
        return counts


def told_rate(rate: float) -> tuple[float, str]:
    """Return a rate per second in the unit in which it is at least 1, if there is one, and the unit."""
    unit, seconds = next((each for each in UNITS if rate * each[1] >= 1), UNITS[-1])
    return rate * seconds, unit


def told_time(seconds: float) -> str:
    """Return a duration in words, of at most two units."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days {hours % 24} h"


def plot(found: Throughput) -> str:
    """Return the plot; empty, if there is nothing to be seen in one."""
    counts = found.counts()
    if len(found.at) < 3 or len(counts) < 3:
        return ""
    part = found.length / len(counts)
    _, unit = told_rate(found.rate)
    scale = dict(UNITS)[unit] / part
    rates = [count * scale for count in counts]
    high = _round_up(max(rates))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(seconds: float) -> float:
        return round(LEFT + seconds / found.length * (right - LEFT), 1)

    def down(rate: float) -> float:
        return round(bottom - rate / high * (bottom - TOP), 1)

    trace = "".join(
        f"{'L' if number else 'M'}{across(number * part)} {down(rate)}H{across((number + 1) * part)}"
        for number, rate in enumerate(rates)
    )
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Images a {unit} over the time of drawing">',
        *(
            f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{down(rate)}" y2="{down(rate)}"/>'
            f'<text x="{LEFT - 8}" y="{down(rate) + 4}" text-anchor="end">{rate:.3g}</text>'
            for rate in (0, high / 2, high)
        ),
        f'<path class="area" d="{trace}V{bottom}H{LEFT}Z"/><path class="trace" d="{trace}"/>',
        *(f'<path class="fail" d="M{across(place)} {bottom}v-9"/>' for place in found.failed[:500]),
        *(
            f'<line class="pause" x1="{across(place)}" x2="{across(place)}" y1="{TOP}" y2="{bottom}">'
            f"<title>no work for {told_time(gap)}</title></line>"
            for place, gap in found.pauses[:100]
        ),
        f'<line class="mean" x1="{LEFT}" x2="{right}" y1="{down(found.rate * dict(UNITS)[unit])}" '
        f'y2="{down(found.rate * dict(UNITS)[unit])}"/>',
        *(
            f'<text x="{across(found.length * share / 4)}" y="{HEIGHT - 8}" '
            f'text-anchor="{"start" if share == 0 else "end" if share == 4 else "middle"}">'
            f"{told_time(found.length * share / 4)}</text>"
            for share in range(5)
        ),
        "</svg>",
    ]
    return "".join(parts)


def _round_up(value: float) -> float:
    """Return the next value of 1, 2, 4, 6, 8 times a power of ten."""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(power * step for step in (1, 2, 4, 6, 8, 10) if power * step >= value)
