"""Study 5, the claims: the figures that decide 5.1 to 5.6, from the tables of results.

Usage::

    verdicts = judge(auc, pairs, overlaps, ablation, circumference)

The rules are in ``data/claims.yml``. A figure whose variant was not run is not defined, and so its claim not decidable
here.
"""

import math

import pandas as pd

from xai_lib import claims
from xai_lib.results import Verdict
from xai_lib.studies.verdicts import and_p, find, negative, shifted, twice

OURS = "SDR"
PERCENTILES = (50, 75, 90)
MAPS = tuple(f"{name} {p}" for name in ("CAM", "SAL") for p in PERCENTILES)
KEPT = 0.03  # 5.1: the change of AUC that still counts as none
TESTED, LEVEL = "largest p of Wilcoxon's test after Holm", 0.01  # 5.2


def judge(
    auc: pd.DataFrame,
    pairs: pd.DataFrame,
    overlaps: pd.DataFrame,
    ablation: pd.DataFrame,
    circumference: pd.DataFrame,
) -> dict[str, Verdict]:
    """Verdicts on claims 5.1 to 5.6; the arguments are the fields of `summary.Summary`.

    Beside each difference of 5.2 stands that of a random disc as large as our mask: it says what a small mask gains by
    its size alone, and decides nothing.
    """
    known = claims.load()
    healthy, mass = (find(auc, "change", tissue=tissue) for tissue in ("healthy", "mass"))
    keeps = {
        "0.03 - rise by healthy tissue": shifted(negative(healthy), KEPT),
        "0.03 - fall by healthy tissue": shifted(healthy, KEPT),
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
        "5.2": and_p(claims.decide(known["5.2"], closer, by_chance), tested, TESTED, LEVEL),
        "5.3": twice(known["5.3"], smaller),
        "5.4": claims.decide(known["5.4"], more),
        "5.5": claims.decide(known["5.5"], scatter),
        "5.6": claims.decide(known["5.6"], {"share - shifted": find(circumference, "gain", variant=OURS)}),
    }
