"""Study 6, tables of the maps: scores of discs and grid, methods side by side, and the weight of each diameter.

Usage::

    discs = prepared(discs)
    discs_of(discs)                                          # scores per network, scenario, view, method and diameters
    pairs_of(discs); fading_of(discs, prepared_cells(cells)); ranks_of(discs)

A score is disc minus ring in standard deviations of one visit, weighted by visits. It is raw: positive is red.
"signed" is the score times the polarity: positive is towards a disc that is easier to see. "seen" discs are those that
the observer finds with a chance above 0.9. Intervals are from a bootstrap over the cells of the phantom.

Reference: Amanova et al. 2022, section 3, Figs. 3 to 7 and 12.
"""

import numpy as np
import pandas as pd
from scipy import stats

from xai_lib.studies.omig.claims import ALL, FIRST, OURS, SEEN
from xai_lib.studies.omig.grouped_bootstrap import Array, Sums, shares, table

DIAMETERS = {"2.00-1.25": 1.2, "1.00-0.63": 0.6, "0.50-0.31": 0.3, "0.25-0.16": 0.15, "<= 0.13": 0.0}  # above, mm
PAIRS = ((OURS, "sensitivity"), (OURS, "clipped sensitivity"), (OURS, "occlusion"),
         ("clipped sensitivity", "sensitivity"))  # fmt: skip
SURE = 0.9  # a disc is seen where the observer is right more often
CLEAR = 2.0  # z of a single disc that shows
PLACE = ["row", "column", "place"]


def prepared(discs: pd.DataFrame) -> pd.DataFrame:
    """The table of discs with what is summed; discs without a visit on both sides are left out.

    gap, in standard deviations of one visit; z of the single disc; `seen`; `diameters`, the group; `cell`.
    """
    if not len(discs):
        return discs
    discs = discs[(discs["disc_visits"] > 0) & (discs["ring_visits"] > 0) & (discs["sd"] > 0)]
    visits, edges = discs["disc_visits"].astype(float), [*DIAMETERS.values()][::-1]
    gap = (discs["disc"] - discs["ring"]) / discs["sd"]
    noise = visits + visits**2 / discs["ring_visits"]  # variance of visits * gap
    return discs.assign(
        visits=visits,
        gap=visits * gap,
        signed=visits * gap * discs["polarity"],
        noise=noise,
        discs=1.0,
        shown=(visits * gap / np.sqrt(noise) > CLEAR).astype(float),
        ranked=visits.where(discs["auc"].notna()),
        area=visits * discs["auc"],
        area_smooth=visits.where(discs["auc"].notna()) * discs["auc_smooth"],
        seen=discs["probability"] > SURE,
        diameters=pd.cut(discs["diameter_mm"], [*edges, np.inf], labels=[*DIAMETERS][::-1]).astype(str),
        cell=discs["row"] * 16 + discs["column"],
    )


def expanded(discs: pd.DataFrame) -> pd.DataFrame:
    """Rows once for their diameters and once for all, and those that are seen again with `chosen` "seen"."""
    both = pd.concat([discs.assign(diameters=ALL), discs])
    return pd.concat([both[both["seen"]].assign(chosen=SEEN), both.assign(chosen=ALL)], ignore_index=True)


def discs_of(discs: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.3 to 6.7: scores of discs per network, scenario, view, method and diameters, of seen discs and of all.

    score, z (of the mean, visits taken as independent), signed, `shown` (share of single discs with z above 2), auc and
    auc_smooth (means over discs, weighted by visits; 0.5 is chance).
    """
    if not len(discs):
        return pd.DataFrame()

    def of(sums: Sums, _: pd.DataFrame) -> dict[str, Array]:
        visits = sums["visits"]
        found = {"score": sums["gap"] / visits, "z": sums["gap"] / np.sqrt(sums["noise"])}
        found |= {"signed": sums["signed"] / visits, "shown": sums["shown"] / sums["discs"]}
        return found | {
            name: sums[of] / sums["ranked"] for name, of in (("auc", "area"), ("auc_smooth", "area_smooth"))
        }

    by = ["network", "scenario", "view", "method", "diameters", "chosen"]
    columns = ["visits", "gap", "noise", "signed", "shown", "discs", "ranked", "area", "area_smooth"]
    return shares(table(expanded(discs), by, "cell", columns, of, n, seed), ["shown"], "cells")


def compared(first: pd.DataFrame, second: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """The same discs, or cells, twice: columns of the first end in _first, of the second in _second."""
    return first.merge(second, on=on, suffixes=("_first", "_second"))


def pairs_of(discs: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.3: the first method minus the second on the same discs of one map, in score, auc and auc_smooth."""
    if not len(discs):
        return pd.DataFrame()
    on = ["network", "scenario", "view", *PLACE, "cell", "diameters", "seen"]
    values = ["visits", "gap", "ranked", "area", "area_smooth"]
    parts = []
    for a, b in PAIRS:
        first, second = (discs.loc[discs["method"] == name, [*on, *values]] for name in (a, b))
        parts.append(compared(first, second, on).assign(first=a, second=b))

    def of(sums: Sums, _: pd.DataFrame) -> dict[str, Array]:
        asked = {"score": ("gap", "visits"), "auc": ("area", "ranked"), "auc_smooth": ("area_smooth", "ranked")}
        return {
            name: sums[f"{above}_first"] / sums[f"{below}_first"] - sums[f"{above}_second"] / sums[f"{below}_second"]
            for name, (above, below) in asked.items()
        }

    by = ["network", "scenario", "view", "first", "second", "diameters", "chosen"]
    columns = [f"{value}_{side}" for value in values for side in ("first", "second")]
    return table(expanded(pd.concat(parts)), by, "cell", columns, of, n, seed)


def grid_of(cells: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.6: score of the grid lines against the background of their cells, weighted by visits."""
    by = ["network", "scenario", "view", "method"]
    return table(cells, by, "cell", ["gap", "visits"], lambda s, _: {"score": s["gap"] / s["visits"]}, n, seed)


def prepared_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """The table of cells with what is summed; cells without a visit on both sides are left out."""
    if not len(cells):
        return cells
    cells = cells[(cells["grid_visits"] > 0) & (cells["background_visits"] > 0) & (cells["sd"] > 0)]
    visits = cells["grid_visits"].astype(float)
    gap = visits * (cells["grid"] - cells["background"]) / cells["sd"]
    return cells.assign(visits=visits, gap=gap, cell=cells["row"] * 16 + cells["column"])


def fading_of(discs: pd.DataFrame, cells: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.6: scores of discs and grid in scenario #1 and in another, on the same discs, seen in both, or the same cells.

    `first_score`, `second_score`, `difference` first - second, and `ratio` second / first.
    """
    parts = []
    for what, frame, place in (("discs", discs, PLACE), ("grid", cells, PLACE[:2])):
        if not len(frame):
            continue
        plain = frame[(frame["view"] == "plain") & frame.get("seen", True)]
        on = ["network", "method", *place, "cell"]
        first, others = (plain.loc[rows, [*on, "scenario", "visits", "gap"]] for rows in
                         (plain["scenario"] == FIRST, plain["scenario"] != FIRST))  # fmt: skip
        both = compared(first.drop(columns="scenario"), others, on)
        parts.append(both.assign(what=what, first=FIRST, second=both["scenario"]))

    def of(s: Sums, _: pd.DataFrame) -> dict[str, Array]:
        a, b = s["gap_first"] / s["visits_first"], s["gap_second"] / s["visits_second"]
        return {"first_score": a, "second_score": b, "difference": a - b, "ratio": b / a}

    by = ["network", "method", "what", "first", "second"]
    columns = [f"{value}_{side}" for value in ("visits", "gap") for side in ("first", "second")]
    return table(pd.concat(parts) if parts else pd.DataFrame(), by, "cell", columns, of, n, seed)


def weights_of(discs: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.5: weight of the seen discs of each diameter: `total`, the sum over visits, and `mean` per visit of a pixel."""
    if not len(discs):
        return pd.DataFrame()
    by = ["network", "scenario", "view", "method", "diameter_mm"]
    columns = ["total", "disc_visits", "discs"]

    def of(s: Sums, _: pd.DataFrame) -> dict[str, Array]:
        return {"total": np.where(s["discs"] > 0, s["total"], np.nan), "mean": s["total"] / s["disc_visits"]}

    found = table(discs[discs["seen"]], by, "cell", columns, of, n, seed)
    return found.sort_values(by, ascending=[True] * 4 + [False], ignore_index=True) if len(found) else found


def ranks_of(discs: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.5: Spearman's rank correlation of both weights of `weights_of` with the diameter, over diameters.

    `chosen` "seen" or "all" discs. A diameter whose discs were not drawn is left out of that replicate.
    """
    if not len(discs):
        return pd.DataFrame()
    by = ["network", "scenario", "view", "method", "chosen"]
    sizes = sorted(discs["diameter_mm"].unique())
    frame = expanded(discs).query("diameters == @ALL")
    size = np.eye(len(sizes))[np.searchsorted(sizes, frame["diameter_mm"])]
    frame = frame.assign(**{f"{k} {name}": size[:, k] * frame[name] for k in range(len(sizes))
                            for name in ("total", "disc_visits")})  # fmt: skip

    def of(s: Sums, _: pd.DataFrame) -> dict[str, Array]:
        total, visits = (
            np.stack([s[f"{k} {name}"] for k in range(len(sizes))], 1) for name in ("total", "disc_visits")
        )
        total = np.where(visits > 0, total, np.nan)
        return {
            "total": rank_correlation(total, np.array(sizes)),
            "mean": rank_correlation(total / visits, np.array(sizes)),
        }

    columns = [f"{k} {name}" for k in range(len(sizes)) for name in ("total", "disc_visits")]
    return table(frame, by, "cell", columns, of, n, seed)


def rank_correlation(values: Array, order: Array) -> Array:
    """Spearman's correlation of each row of values (G, D), NaN left out, with `order` (D,); NaN below three values."""
    there = ~np.isnan(values)
    ranks = [stats.rankdata(np.where(there, v, np.inf), axis=1) for v in (values, np.broadcast_to(order, values.shape))]
    count = there.sum(1, keepdims=True)
    a, b = (np.where(there, r - (r * there).sum(1, keepdims=True) / count, 0) for r in ranks)
    return np.where(count[:, 0] > 2, (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)), np.nan)
