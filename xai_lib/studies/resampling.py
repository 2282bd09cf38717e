"""Figures of whole tables as functions of weights, resampled together: what studies 4 and 5 make their intervals with.

Usage::

    found = resampled(mean_of(values), patients, n=1000, seed=0)         # values (N, ...) -> Estimates of shape (...)
    areas = resampled(auc_of(logits, label, fold), patients, 1000, 0)    # logits (N, C) -> (C,)

A replicate draws patients with replacement; its weights say how often each row was drawn. One replicate serves all
figures of a table, so differences between them are paired.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from xai_lib import statistics

Array = NDArray[np.float64]


def resampled(of: Callable[[Array], Array], patients: ArrayLike, n: int, seed: int) -> NDArray[np.object_]:
    """Figures `of` weights (N,), how often each row is drawn, as an array of Estimates of the same shape."""
    rows = pd.DataFrame({"patient_id": np.asarray(patients), "row": np.arange(len(np.asarray(patients)))})

    def statistic(frame: pd.DataFrame) -> pd.Series:
        weights = np.bincount(frame["row"].to_numpy(), minlength=len(rows)).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return pd.Series(np.ravel(of(weights)))

    made = statistics.bootstrap_many(statistic, rows, n=n, seed=seed)
    found = np.empty(len(made), object)
    found[:] = list(made.values())
    with np.errstate(invalid="ignore", divide="ignore"):
        return found.reshape(of(np.ones(len(rows))).shape)


def mean_of(values: Array) -> Callable[[Array], Array]:
    """Weighted mean of values (N, ...) over the rows; NaN is left out."""
    known, filled = (~np.isnan(values)).astype(float), np.nan_to_num(values)
    return lambda weights: np.tensordot(weights, filled, 1) / np.tensordot(weights, known, 1)


def auc_of(scores: Array, label: ArrayLike, fold: ArrayLike) -> Callable[[Array], Array]:
    """Weighted AUC of every column of scores (N, C), within each fold, and averaged over the folds: (C,).

    It equals `statistics.auc` of the rows repeated as often as the weights say; NaN where a fold lacks a class.
    """
    sick, (number, folds) = np.asarray(label) == 1, pd.factorize(np.asarray(fold))
    key = number[:, None] * (len(sick) + 1) + stats.rankdata(scores, "dense", axis=0)
    order = np.argsort(key, axis=0)
    before = stats.rankdata(key, "min", axis=0).astype(int)[sick] - 1  # cases below, and up to, each malignant one
    upto = stats.rankdata(key, "max", axis=0).astype(int)[sick]
    member = np.eye(len(folds))[number]

    def auc(weights: Array) -> Array:
        well = weights * ~sick
        below = np.vstack([np.zeros(scores.shape[1]), well[order].cumsum(0)])
        benign, malignant = well @ member, (weights * sick) @ member
        earlier = (benign.cumsum() - benign)[number[sick], None]
        middle = (np.take_along_axis(below, before, 0) + np.take_along_axis(below, upto, 0)) / 2 - earlier
        pairs = member[sick].T @ (weights[sick, None] * middle)
        return (pairs / (benign * malignant)[:, None]).mean(0)

    return auc
