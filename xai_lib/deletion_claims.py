"""Study 5, the claims: the figures that decide 5.1 to 5.6, from the tables of results.

Usage::

    verdicts = judge(auc, pairs, overlaps, ablation, circumference)

The rules are in ``data/claims.yml``. A figure whose variant was not run is not defined, and so its claim not decidable
here.
"""

import math
from dataclasses import replace

import pandas as pd

from xai_lib import claims
from xai_lib.knowledge_transfer_claims import find, negative
from xai_lib.results import Estimate, Verdict

OURS = "SDR"
PERCENTILES = (50, 75, 90)
MAPS = tuple(f"{name} {p}" for name in ("CAM", "SAL") for p in PERCENTILES)
KEPT = 0.03  # 5.1: the change of AUC that still counts as none
LEVEL = 0.01  # 5.2: of the tests
TWICE = 2.0  # 5.3: as large, at least


def judge(
    auc: pd.DataFrame,
    pairs: pd.DataFrame,
    overlaps: pd.DataFrame,
    ablation: pd.DataFrame,
    circumference: pd.DataFrame,
) -> dict[str, Verdict]:
    """Verdicts on claims 5.1 to 5.6; the arguments are the fields of `deletion_summary.Summary`.

    Beside each difference of 5.2 stands that of a random disc as large as our mask: it says what a small mask gains by
    its size alone, and decides nothing.
    """
    known = claims.load()
    healthy, mass = (find(auc, "change", tissue=tissue) for tissue in ("healthy", "mass"))
    keeps = {
        "0.03 - rise by healthy tissue": _plus(KEPT, negative(healthy)),
        "0.03 - fall by healthy tissue": _plus(KEPT, healthy),
        "fall by the mass": negative(mass),
    }
    closer, by_chance = (
        {f"{m}, {name} - SDR": find(pairs, column, variant=name, measure=m) for m in ("D", "H") for name in MAPS}
        for column in ("difference", "chance")
    )
    smaller = {f"{name} / SDR": find(pairs, "ratio", variant=name, measure="A") for name in MAPS}
    more = {f"SAL {p} - CAM {p}": find(overlaps, "difference", percentile=str(p)) for p in PERCENTILES}
    scatter = {f"{m}, without - with": find(ablation, "difference", measure=m) for m in ("D", "H", "components")}
    tested = pairs[pairs["measure"].isin(["D", "H"])]["holm"].max() if len(pairs) else math.nan
    return {
        "5.1": claims.decide(known["5.1"], keeps),
        "5.2": _and_p(claims.decide(known["5.2"], closer, by_chance), tested),
        "5.3": _twice(known["5.3"], smaller),
        "5.4": claims.decide(known["5.4"], more),
        "5.5": claims.decide(known["5.5"], scatter),
        "5.6": claims.decide(known["5.6"], {"share - shifted": find(circumference, "gain", variant=OURS)}),
    }


def _plus(constant: float, e: Estimate) -> Estimate:
    """An estimate moved by a constant."""
    low, high = (None if end is None else constant + end for end in (e.low, e.high))
    return Estimate(constant + e.value, low, high, e.method)


def _and_p(verdict: Verdict, p: float) -> Verdict:
    """Claim 5.2: a verdict that holds only where also p < `LEVEL`."""
    fails = verdict.verdict == claims.HOLDS and not p < LEVEL
    said = "not defined" if math.isnan(p) else f"{p:.2g}, {'' if p < LEVEL else 'not '}below {LEVEL:g}"
    why = f"{verdict.why}; largest p of Wilcoxon's test after Holm {said}"
    return replace(verdict, verdict=claims.UNDECIDED if fails else verdict.verdict, why=why)


def _twice(claim: claims.Claim, ratios: dict[str, Estimate]) -> Verdict:
    """Claim 5.3: each ratio against 2; one that lies below 2 but not below 1 decides nothing."""
    parts = dict(claims.decide(claim, ratios, dict.fromkeys(ratios, TWICE)).parts)
    for name, part in parts.items():
        high = ratios[name].high
        if part.verdict == claims.FAILS and not (high is not None and high < 1):
            parts[name] = replace(part, verdict=claims.UNDECIDED, why=f"{part.why}, but not wholly below 1")
    return claims.combine(claim, parts)
