"""Headline figures on common scales: where value, interval and baselines lie on a small strip.

Usage::

    for group in groups([("busi", record), ("synthetic", other)]):
        group.low, group.high, group.rows

Figures share a scale where their units agree. A figure without a unit shares it with those that begin with the same
word (``auc_mass``, ``auc_twin``), and all shares between 0 and 1 of one unit have the scale 0 to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xai_lib.records import Record
from xai_lib.results import Estimate, Figure

_WIDE = 0.4  # figures between 0 and 1 that go beyond this have the whole scale


@dataclass(frozen=True)
class Bar:
    """One figure of one run, in percent of its scale: `at` is None where the figure is not defined."""

    run: str
    figure: Figure
    at: float | None
    span: tuple[float, float] | None
    marks: list[tuple[str, float]]


@dataclass(frozen=True)
class Group:
    """Figures on one scale, from `low` to `high`: for each name its bar in every run that has it."""

    unit: str
    low: float
    high: float
    rows: dict[str, list[Bar]]

    @property
    def zero(self) -> float | None:
        """Where 0 lies in percent of the scale; None where it is one of the ends."""
        return None if self.low >= 0 or self.high <= 0 else _percent(0.0, self.low, self.high)


def groups(runs: Sequence[tuple[str, Record]]) -> list[Group]:
    """The figures of several runs (each with its name), by scale, in the order of the first run that has them."""
    names = list(dict.fromkeys(name for _, record in runs for name in record.figures))
    figures = {name: [(run, record.figures[name]) for run, record in runs if name in record.figures] for name in names}
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        unit = figures[name][0][1].unit
        kinds.setdefault((unit, "" if unit else name.partition("_")[0]), []).append(name)
    merged: dict[tuple[str, str, float, float], list[str]] = {}
    for (unit, word), members in kinds.items():
        low, high = limits([v for name in members for _, figure in figures[name] for v in _values(figure)])
        key = (unit, "" if (low, high) == (0.0, 1.0) else word, low, high)
        merged.setdefault(key, []).extend(members)
    return [
        Group(unit, low, high, {n: [_bar(run, f, low, high) for run, f in figures[n]] for n in members})
        for (unit, _, low, high), members in merged.items()
    ]


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Round ends of a scale that holds 0 and every finite value: 0 to 1 for shares that use much of it."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    if low == high or (low == 0 and _WIDE < high <= 1):
        return 0.0, 1.0
    step = _step(high - low)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def number(value: float, digits: int | None = None) -> str:
    """A number with `digits` after the point; by default as many as `estimate` takes for a value alone."""
    if math.isnan(value):
        return "not defined"
    return f"{value:.{_digits([value]) if digits is None else digits}f}"


def estimate(found: Estimate) -> str:
    """Value and interval as text, with three digits after the point, more for small figures, one for large ones."""
    ends = [end for end in (found.low, found.high) if end is not None and not math.isnan(end)]
    digits = _digits([found.value, *ends])
    text = number(found.value, digits)
    return f"{text} [{', '.join(number(end, digits) for end in ends)}]" if len(ends) == 2 else text


def _digits(values: Sequence[float]) -> int:
    """Digits after the point that show the largest of some values with three significant ones."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0 or 0.1 <= largest < 100:
        return 3
    return 1 if largest >= 100 else 2 - math.floor(math.log10(largest))


def _step(width: float) -> float:
    """A round number, a quarter of `width` or less."""
    power = 10.0 ** math.floor(math.log10(width / 4))
    return max(power * m for m in (1, 2, 2.5, 5) if power * m <= width / 4)


def _values(figure: Figure) -> list[float]:
    """Everything of a figure that has a place on its scale."""
    ours = figure.estimate
    ends = [v for v in (ours.value, ours.low, ours.high) if v is not None]
    return ends + [baseline.value for baseline in figure.baselines.values()]


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _bar(run: str, figure: Figure, low: float, high: float) -> Bar:
    """Where a figure lies on the scale from `low` to `high`."""
    ours = figure.estimate
    span = None
    if ours.low is not None and ours.high is not None and not math.isnan(ours.low + ours.high):
        span = (_percent(ours.low, low, high), _percent(ours.high, low, high))
    marks = [(n, _percent(b.value, low, high)) for n, b in figure.baselines.items() if not math.isnan(b.value)]
    return Bar(run, figure, None if math.isnan(ours.value) else _percent(ours.value, low, high), span, marks)
