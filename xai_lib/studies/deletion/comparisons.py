"""Study 5, comparisons: deletion masks of two variants on the same images, with tests and intervals.

Usage::

    masks = prepared(masks, diagonal_px=math.hypot(320, 160))
    found = differences(masks, [("D", "CAM 50", "SDR")])     # a row for each (measure, first variant, second variant)
    found = against_maps(masks)                              # claims 5.2 and 5.3, Holm over all tests

Means are over images, intervals from a bootstrap over patients. An empty mask has no D, H, A or components: its image
is left out, but "D penalty" and "H penalty" give it the image's diagonal. A pair that was not run has no row.

Reference: Major et al. 2020, section 4, Tabs. 1 and 2.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from xai_lib.paired_tests import holm, rank_biserial, wilcoxon
from xai_lib.results import Estimate
from xai_lib.studies.deletion.claims import MAPS, OURS, PERCENTILES
from xai_lib.studies.resampling import Array, mean_of, resampled

ABLATED = "no shape terms"
DISCS = ("random disc", "breast centre", "brightest spot")
CHANCE = (*DISCS, "untrained")
MEASURES = {"D": "D penalty", "H": "H penalty", "A": "A"}  # of the pairs: what is compared where a mask is empty


# ---------------------------------------------------------------------------------------- the masks, side by side


def prepared(masks: pd.DataFrame, diagonal_px: float) -> pd.DataFrame:
    """The table of masks with the columns that are compared or averaged, NaN where a mask is empty.

    "healthy after" counts images that the classifier called a mass before: 1 where their log odds after are at most 0.
    Where SDR's mask is empty, so is a chance disc as large as it, whether it has a row or not.
    """
    blank = masks[(masks["variant"] == OURS) & masks["empty"].astype(bool)]
    for name in [name for name in DISCS if name in set(masks["variant"])]:
        absent = ~blank["case"].isin(masks.loc[masks["variant"] == name, "case"])
        masks = pd.concat([masks, blank[absent].assign(variant=name)], ignore_index=True)
    masks = masks.assign(empty=masks["empty"].astype(bool), skipped=masks["skipped"].astype(bool))
    there = ~masks["empty"]
    for name in ("A", "over", "components"):
        masks[name] = masks[name].astype(float).where(there)
    for name in ("D", "H"):
        masks[f"{name}_mm"] = masks[name] * masks["pixel_mm"].astype(float)
        masks[f"{name} penalty"] = masks[name].where(there, diagonal_px)
    masks["circumference gain"] = masks["circumference"] - masks["shifted"]
    masks["healthy after"] = (masks["after"] <= 0).astype(float).where((masks["score"] > 0) & masks["after"].notna())
    return masks


def wide(masks: pd.DataFrame, keys: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """A row for each case of the table of masks, a column for each (measure, variant), NaN where it was not run."""
    measures = list(dict.fromkeys(measure for measure, _ in keys))
    return masks.pivot(index="case", columns="variant", values=measures)[list(keys)].astype(float)


def patients(table: pd.DataFrame) -> pd.Series:
    """The patients of the cases, in the order of `wide`."""
    return table.drop_duplicates("case").set_index("case")["patient_id"].sort_index()


# ---------------------------------------------------------------------------------------- comparisons


def differences(
    masks: pd.DataFrame, pairs: Iterable[tuple[str, str, str]], n: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Comparisons of two variants on the images where both have the measure: (measure, first variant, second variant).

    Returns:
        A row for each pair that was run: measure, first, second, images; the means first_mean and second_mean, the
        `difference` first - second, the `ratio` of the means; `p` by `wilcoxon`, `effect` by `rank_biserial`.
    """
    there = set(masks["variant"])
    pairs = [pair for pair in pairs if {*pair[1:]} <= there]
    if not pairs:
        return pd.DataFrame()
    masks = masks[masks["variant"].isin({name for pair in pairs for name in pair[1:]})]
    first, second = (wide(masks, [(pair[0], pair[k]) for pair in pairs]).to_numpy() for k in (1, 2))
    gaps = first - second
    mean_first, mean_second = (mean_of(np.where(np.isnan(gaps), np.nan, values)) for values in (first, second))

    def figures(weights: Array) -> Array:
        a, b = mean_first(weights), mean_second(weights)
        return np.stack([a, b, a - b, np.where(b > 0, a / b, np.nan)])

    found = resampled(figures, patients(masks), n, seed)
    rows = []
    for k, (measure, one, other) in enumerate(pairs):
        known = gaps[~np.isnan(gaps[:, k]), k]
        row = {"measure": measure, "first": one, "second": other, "images": len(known)}
        row |= dict(zip(("first_mean", "second_mean", "difference", "ratio"), found[:, k], strict=True))
        rows.append(row | {"p": wilcoxon(known), "effect": rank_biserial(known)})
    return pd.DataFrame(rows)


def against_maps(masks: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Claims 5.2 and 5.3: the thresholded maps minus SDR, for D, H and A; `holm` is `p` corrected over all of them.

    In `difference`, `ratio`, `p` and `effect` an empty mask takes the diagonal as its D and H; `empty` counts those of
    SDR. `both` is the difference over the images where both masks are there, `both_images`. `chance` is the difference
    from a random disc as large as SDR's mask instead. An empty mask has no A, so its image is left out of that.
    """
    asked = [(column, name) for column in MEASURES.values() for name in MAPS]
    found = differences(masks, [(*pair, OURS) for pair in asked], n, seed)
    if not len(found):
        return found
    found["measure"] = found["measure"].map({column: name for name, column in MEASURES.items()})
    both = differences(masks, [(measure, name, OURS) for measure in MEASURES for name in MAPS], n, seed)
    disc = differences(masks, [(*pair, DISCS[0]) for pair in asked], n, seed)
    known = found["p"].notna()
    if known.any():
        found.loc[known, "holm"] = holm(list(found.loc[known, "p"]))
    missing = [Estimate(math.nan, method="not measured")] * len(found)
    return found.rename(columns={"first": "variant"}).assign(
        empty=int(masks.loc[masks["variant"] == OURS, "empty"].sum()),
        both=both["difference"],
        both_images=both["images"],
        chance=disc["difference"] if len(disc) else pd.Series(missing),
    )


def overlaps(masks: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Claim 5.4: SAL minus CAM in their overlap with SDR, a row for each `percentile`."""
    found = differences(masks, [("O", f"SAL {p}", f"CAM {p}") for p in PERCENTILES], n, seed)
    if len(found):
        found.insert(0, "percentile", found["first"].str.removeprefix("SAL "))
    return found


def ablation(masks: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Claim 5.5: the search without the shape terms minus SDR."""
    return differences(masks, [(name, ABLATED, OURS) for name in ("D", "H", "components", "A")], n, seed)


def against_chance(masks: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """SDR minus each chance row, in D and H, without and with the images whose mask is empty."""
    pairs = [(name, OURS, other) for name in ("D", "H", "D penalty", "H penalty") for other in CHANCE]
    return differences(masks, pairs, n, seed)
