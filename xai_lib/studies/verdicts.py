"""What the studies share to decide a claim: figures found in a table, and two rules that need more than an interval.

Usage::

    gain = find(pairs, "accuracy", first="transfer", second="fine-tuning")
    verdict = and_p(claims.decide(claim, {"gain": gain}), p, "p over folds", 0.05)
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from xai_lib import claims
from xai_lib.results import Estimate, Verdict

TWICE = 2.0


def find(frame: pd.DataFrame, column: str, **where: str) -> Estimate:
    """The estimate in the row that has these values; one that is not defined where there is none."""
    if len(frame):
        rows = frame[(frame[list(where)] == pd.Series(where)).all(axis=1)]
        if len(rows):
            return rows[column].iloc[0]
    return Estimate(math.nan, method="not measured: " + ", ".join(map(str, where.values())))


def negative(e: Estimate) -> Estimate:
    """Minus an estimate."""
    low, high = (None if end is None else -end for end in (e.high, e.low))
    return Estimate(-e.value, low, high, e.method)


def shifted(e: Estimate, by: float) -> Estimate:
    """An estimate moved by a constant."""
    low, high = (None if end is None else end + by for end in (e.low, e.high))
    return Estimate(e.value + by, low, high, e.method)


def twice(claim: claims.Claim, ratios: Mapping[str, Estimate]) -> Verdict:
    """Each ratio against 2; one that lies below 2 but not wholly below 1 decides nothing."""
    parts = dict(claims.decide(claim, ratios, dict.fromkeys(ratios, TWICE)).parts)
    for name, part in parts.items():
        high = ratios[name].high
        if part.verdict == claims.FAILS and not (high is not None and high < 1):
            parts[name] = replace(part, verdict=claims.UNDECIDED, why=f"{part.why}, but not wholly below 1")
    return claims.combine(claim, parts)


def and_p(verdict: Verdict, p: float, what: str, level: float) -> Verdict:
    """A verdict that holds only where also p < `level`; `what` names p in the reason."""
    fails = verdict.verdict == claims.HOLDS and not p < level
    said = "not defined" if math.isnan(p) else f"{p:.2g}, {'' if p < level else 'not '}below {level:g}"
    return replace(verdict, verdict=claims.UNDECIDED if fails else verdict.verdict, why=f"{verdict.why}; {what} {said}")
