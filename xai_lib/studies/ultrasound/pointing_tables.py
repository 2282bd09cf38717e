"""Study 3, the tables: classification, pointing game with its chance levels, and abstention.

Usage::

    frame = mark_correct(points(runs, areas, dataset))
    table1(frame)                                  # AUC, accuracy, sensitivity, specificity with intervals
    table2({"CAM": frame}, areas, grid=(7, 7))     # hit rates of each map, chance rows beside them, per class

Every row of a frame is one test image in one run. Rates are counted over correctly classified rows, as in the paper;
chance rows are counted over the same rows. Intervals resample patients.

Reference: Byra et al. 2022, Tab. 1, Tab. 2, Discussion.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import statistics
from xai_lib.localization import COLUMNS, area_shares, cell_shares, centre_hits, two_points
from xai_lib.results import Estimate

CLASSES = ("all", "benign", "malignant")
EXTREMES = ("max", "min", "both")


def mark_correct(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `threshold` (ROC point closest to the corner; per run, on its test images, as in the paper) and `correct`.

    Raises:
        ValueError: a run's test images are of one class only.
    """
    parts = []
    for _, run in frame.groupby(["seed", "fold"], sort=False):
        cut = statistics.closest_to_corner(run["label"].to_numpy(), run["logit"].to_numpy()).threshold
        parts.append(run.assign(threshold=cut, correct=(run["logit"] >= cut) == (run["label"] == 1)))
    return pd.concat(parts).sort_index()


def mean_auc(frame: pd.DataFrame) -> float:
    """AUC of each run, averaged over runs (scores of different networks are not compared with each other)."""
    runs = pd.factorize(frame["seed"] * 1000 + frame["fold"])[0]
    labels, logits = frame["label"].to_numpy(), frame["logit"].to_numpy()
    return float(np.mean([statistics.auc(labels[runs == r], logits[runs == r]) for r in range(runs.max() + 1)]))


def table1(frame: pd.DataFrame, n: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Tab. 1: AUC (mean over runs), accuracy, sensitivity and specificity, with 95 % intervals over patients.

    The threshold of each run is chosen on its test images, as in the paper, and kept fixed in the bootstrap.
    """

    def figures(f: pd.DataFrame) -> pd.Series:
        right, label = f["correct"].to_numpy(float), f["label"].to_numpy()
        return pd.Series(
            {
                "auc": mean_auc(f),
                "accuracy": right.mean(),
                "sensitivity": right[label == 1].mean() if (label == 1).any() else np.nan,
                "specificity": right[label == 0].mean() if (label == 0).any() else np.nan,
            }
        )

    return statistics.bootstrap_many(figures, frame, n=n, seed=seed)


def spread_over_runs(frame: pd.DataFrame) -> dict[str, Estimate]:
    """The other reading of the paper's "±": mean and standard deviation over runs."""
    rows = []
    for _, run in frame.groupby(["seed", "fold"]):
        point = statistics.closest_to_corner(run["label"].to_numpy(), run["logit"].to_numpy())
        area = statistics.auc(run["label"].to_numpy(), run["logit"].to_numpy())
        rows.append((area, point.accuracy, point.sensitivity, point.specificity))
    names = ("auc", "accuracy", "sensitivity", "specificity")
    return {name: statistics.mean_sd(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def hit_columns(frame: pd.DataFrame, which: str = "both") -> pd.DataFrame:
    """Hits of the maximum, the minimum, or either ("both"), as floats in the columns mass, ring, below, any.

    Raises:
        ValueError: an unknown `which`.
    """
    if which not in EXTREMES:
        raise ValueError(f"which: {which!r} is not one of {', '.join(EXTREMES)}")
    if which == "both":
        hits = {c: frame[f"max_{c}"].to_numpy(bool) | frame[f"min_{c}"].to_numpy(bool) for c in COLUMNS}
    else:
        hits = {c: frame[f"{which}_{c}"].to_numpy(bool) for c in COLUMNS}
    return pd.DataFrame({c: v.astype(float) for c, v in hits.items()}, index=frame.index)


def chance_columns(
    frame: pd.DataFrame,
    areas: Sequence[NDArray[np.uint8]],
    kind: str,
    grid: tuple[int, int] = (7, 7),
    which: str = "both",
) -> pd.DataFrame:
    """Exact chance of a hit for every row of `frame`, in the columns mass, ring, below, any.

    Args:
        frame: from `points`.
        areas: regions (H, W) of every image of the whole data set.
        kind: "uniform", two points anywhere; "cells", two different cells of a random map; "centre", the image's
            centre (one point, also for "both").
        grid: of the map, for "cells".
        which: for "max" and "min", one point instead of two.

    Raises:
        ValueError: an unknown `kind` or `which`.
    """
    if kind not in ("uniform", "cells", "centre"):
        raise ValueError(f"kind: {kind!r} is not 'uniform', 'cells' or 'centre'")
    if which not in EXTREMES:
        raise ValueError(f"which: {which!r} is not one of {', '.join(EXTREMES)}")

    def of(area: NDArray[np.uint8]) -> dict[str, float]:
        if kind == "centre":
            return {c: float(hit) for c, hit in centre_hits(area).items()}
        shares = area_shares(area) if kind == "uniform" else cell_shares(area, grid)
        if which != "both":
            return shares
        cells = grid[0] * grid[1] if kind == "cells" else None
        return {c: two_points(p, cells) for c, p in shares.items()}

    by_image = {int(i): of(areas[int(i)]) for i in frame["index"].unique()}
    return pd.DataFrame([by_image[int(i)] for i in frame["index"]], index=frame.index)[list(COLUMNS)]


def rates(hits: pd.DataFrame, frame: pd.DataFrame, n: int = 1000, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Mean of each hit column over all, benign and malignant rows: ``{class: {region: estimate}}``.

    Intervals are those of the bootstrap, and where every row or none is hit the exact ones of `exact_share`.
    """
    joined = hits.assign(label=frame["label"], patient_id=frame["patient_id"])

    def figures(f: pd.DataFrame) -> pd.Series:
        values, label = f[list(COLUMNS)].to_numpy(), f["label"].to_numpy()
        chosen = {"all": label >= 0, "benign": label == 0, "malignant": label == 1}
        means = {k: values[rows].mean(0) if rows.any() else np.full(len(COLUMNS), np.nan) for k, rows in chosen.items()}
        return pd.Series({f"{k} {c}": m for k, row in means.items() for c, m in zip(COLUMNS, row, strict=True)})

    found = statistics.bootstrap_many(figures, joined, n=n, seed=seed)
    parts = {"all": frame, "benign": frame[frame["label"] == 0], "malignant": frame[frame["label"] == 1]}
    patients = {k: part["patient_id"].nunique() for k, part in parts.items()}
    return {k: {c: statistics.exact_share(found[f"{k} {c}"], patients[k]) for c in COLUMNS} for k in CLASSES}


def table2(
    maps: Mapping[str, pd.DataFrame],
    areas: Sequence[NDArray[np.uint8]],
    grid: tuple[int, int],
    which: str = "both",
    n: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Tab. 2 with what it lacks: one row per map and class, then the chance rows, over the same images.

    Args:
        maps: frames by the name of their row. Rows that the *first* one (with `correct`) classifies rightly are counted
            for every map, so that all rates are over the same images.
        areas: regions of the whole data set.
        grid: of the class activation map.
        which: "both" (the paper), "max" or "min".
        n: bootstrap replicates.
        seed: of the bootstrap.

    Returns:
        Columns row, kind ("map" or "chance"), class, images, and for mass, ring, below, any an `Estimate`.

    Raises:
        ValueError: two maps have different rows, or an unknown `which`.
    """
    first = next(iter(maps.values()))
    kept = first["correct"].to_numpy(bool)
    frame = first[kept]
    rows = []
    named: dict[str, tuple[str, pd.DataFrame]] = {}
    for name, other in maps.items():
        if len(other) != len(first) or (other["index"].to_numpy() != first["index"].to_numpy()).any():
            raise ValueError(f"maps: {name!r} has other rows than {next(iter(maps))!r}")
        named[name] = ("map", hit_columns(other[kept], which))
    words = {"uniform": "two random points", "cells": "two random cells", "centre": "image centre"}
    if which != "both":
        words = {"uniform": "one random point", "cells": "one random cell", "centre": "image centre"}
    for kind, name in words.items():
        named[name] = ("chance", chance_columns(frame, areas, kind, grid, which))
    malignant = int((frame["label"] == 1).sum())
    counts = {"all": len(frame), "benign": len(frame) - malignant, "malignant": malignant}
    for name, (row_kind, hits) in named.items():
        found = rates(hits, frame, n, seed)
        rows += [{"row": name, "kind": row_kind, "class": k, "images": counts[k], **found[k]} for k in CLASSES]
    return pd.DataFrame(rows)


def abstention(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over the answered cases when the network may refuse to decide (paper, Discussion).

    Rules: answer only if an extreme of the map lies in a region (any; mass or ring; mass), and at the same coverages
    the most confident cases, ``|logit - threshold|``, and random ones (whose accuracy is that of all cases).

    Returns:
        Columns rule, coverage, accuracy, same_coverage_confident, random.
    """
    hits = hit_columns(frame)
    right = frame["correct"].to_numpy(bool)
    confident = np.argsort(-(frame["logit"] - frame["threshold"]).abs().to_numpy(), kind="stable")
    chosen = {
        "answer all": np.ones(len(frame), bool),
        "a point in any region": hits["any"].to_numpy() > 0,
        "a point in mass or ring": (hits["mass"] + hits["ring"]).to_numpy() > 0,
        "a point in the mass": hits["mass"].to_numpy() > 0,
    }
    rows = []
    for rule, answered in chosen.items():
        k = int(answered.sum())
        rows.append(
            {
                "rule": rule,
                "coverage": answered.mean(),
                "accuracy": right[answered].mean() if k else np.nan,
                "same_coverage_confident": right[confident[:k]].mean() if k else np.nan,
                "random": right.mean(),
            }
        )
    return pd.DataFrame(rows)


def confidence_curve(frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy against coverage when the least confident cases are refused first: coverage (n,), accuracy (n,)."""
    order = np.argsort(-(frame["logit"] - frame["threshold"]).abs().to_numpy(), kind="stable")
    right = frame["correct"].to_numpy(float)[order]
    answered = np.arange(1, len(right) + 1)
    return answered / len(right), np.cumsum(right) / answered
