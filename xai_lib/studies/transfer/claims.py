"""Study 4, the claims: the figures that decide 4.1 to 4.8, from the tables of results.

Usage::

    verdicts = judge(performance, comparisons, localisation, groups, cells, recipes)

The rules are in ``data/claims.yml``. A figure whose table or start is missing is not defined, and so its claim not
decidable here. Claims 4.3, 4.4 and 4.6 name no start: they take that of the mammograms where there is one.
"""

import math
from dataclasses import replace

import pandas as pd

from xai_lib import claims
from xai_lib.results import Estimate, Verdict
from xai_lib.studies.transfer.scores import FINE, MASKS, TRANSFER
from xai_lib.studies.verdicts import and_p, find, negative

IMAGENET, MAMMOGRAMS = "ImageNet", "mammograms"
STEPS = ("group2 - group1", "group3 - group2", "group4 - group3")
OTHERS = ("original", "double_square", "double_flips", "shifted")  # than the paper's own recipe
CELLS = {"AUC - pixels alone": "auc_gain", "activation, Lesion - Background": "activation_gap"}  # columns of `cells`
LEVEL = 0.05  # of the tests


def judge(
    performance: pd.DataFrame,
    comparisons: pd.DataFrame,
    localisation: pd.DataFrame,
    groups: pd.DataFrame,
    cells: pd.DataFrame,
    recipes: pd.DataFrame,
) -> dict[str, Verdict]:
    """Verdicts on claims 4.1 to 4.8; the arguments are the fields of `summary.Summary`.

    4.5 is judged on the first network of its table.
    """
    known = claims.load()
    start = main_start(performance)
    gain = find(localisation, "gain", start=start, region="mass", method=TRANSFER)
    less = find(localisation, "gain", start=start, region="confounders", method=TRANSFER)
    network = groups["network"].iloc[0] if len(groups) else ""
    steps = {name: find(groups, "distance", network=network, form="printed", figure=name) for name in STEPS}
    ours: dict[str, dict[str, Estimate]] = {
        "4.3": {
            "excess of fine-tuning": find(performance, "excess", start=start, method=FINE),
            "size, fine-tuning - transfer": negative(
                find(comparisons, "bias", start=start, first=TRANSFER, second=FINE)
            ),
        },
        "4.4": {"masks - ROIs": find(comparisons, "accuracy", start=start, first=MASKS, second=FINE)},
        "4.6": {
            "mass, transfer - fine-tuning": gain,
            "confounders, fine-tuning - transfer": negative(less),
        },
    }
    verdicts = {
        "4.1": _beats(known["4.1"], comparisons, IMAGENET),
        "4.2": _beats(known["4.2"], comparisons, MAMMOGRAMS),
    }
    disc = {"mass, transfer - fine-tuning": find(localisation, "gain", start=start, region="mass", method="disc")}
    for name, figures in ours.items():
        verdict = claims.decide(known[name], figures, disc)
        verdicts[name] = replace(verdict, why=f"start {start}: {verdict.why}")
    verdicts["4.5"] = claims.decide(known["4.5"], steps)
    transfer, random = (
        {name: find(cells, column, network=network) for name, column in CELLS.items()}
        for network in (TRANSFER, "random")
    )
    verdicts["4.7"] = claims.decide(known["4.7"], transfer, random)
    better = {f"mass_centred - {name}": negative(find(recipes, "accuracy_gain", recipe=name)) for name in OTHERS}
    p = recipes["holm"].max() if len(recipes) else math.nan
    verdicts["4.8"] = and_p(claims.decide(known["4.8"], better), p, "largest p after Holm", LEVEL)
    return dict(sorted(verdicts.items()))


def main_start(frame: pd.DataFrame) -> str:
    """The start that claims without one are judged on: the mammograms' where there is one, else the first."""
    starts = list(dict.fromkeys(frame["start"]))
    return MAMMOGRAMS if MAMMOGRAMS in starts else starts[0]


def _beats(claim: claims.Claim, comparisons: pd.DataFrame, start: str) -> Verdict:
    """Claims 4.1 and 4.2."""
    where = {"start": start, "first": TRANSFER, "second": FINE}
    rows = comparisons[(comparisons[list(where)] == pd.Series(where)).all(axis=1)]
    verdict = claims.decide(claim, {"transfer - fine-tuning": find(comparisons, "accuracy", **where)})
    if rows.empty:
        return replace(verdict, why=f"no network from the start {start}")
    return and_p(verdict, rows["corrected"].iloc[0], "p of the corrected t-test over folds", LEVEL)
