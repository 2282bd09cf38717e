"""Figures of many groups of a long table at once, resampled together, so that one group can be set against another.

Usage::

    columns, means = averages(["error"])
    table(known(frame, ["error"]), ["network", "scenario"], "image", columns, lambda sums, _: means(sums), 1000, 0)

A figure is made from sums over the rows of its group. A replicate draws units (images, cells) with replacement, the
same for all groups: a unit that two groups share stays a pair, units of one group alone are independent of the others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import statistics

Array = NDArray[np.float64]
Sums = Mapping[str, Array]
Of = Callable[[Sums, pd.DataFrame], dict[str, Array]]


def table(
    frame: pd.DataFrame, by: Sequence[str], unit: str, columns: Sequence[str], of: Of, n: int, seed: int
) -> pd.DataFrame:
    """One row per group `by`, its number of units, and figures with intervals from a bootstrap over `unit`.

    All groups are resampled together, so that a figure may set one against another.

    Args:
        frame: long; may be empty.
        by: columns that name a group.
        unit: column of what is drawn with replacement.
        columns: to be summed over the rows of a group; NaN counts as 0.
        of: figures by name (G,) from the sums by column (G,), given the table of the G groups.
        n: replicates.
        seed: of the bootstrap.
    """
    if not len(frame):
        return pd.DataFrame()
    names = frame[list(by)].drop_duplicates().reset_index(drop=True)
    group = frame.groupby(list(by), sort=False).ngroup().to_numpy()
    code, units = pd.factorize(frame[unit], sort=True)
    sums, rows = np.zeros((len(units), len(names), len(columns))), np.zeros((len(units), len(names)))
    np.add.at(sums, (code, group), np.nan_to_num(frame[list(columns)].to_numpy(float)))
    np.add.at(rows, (code, group), 1)

    def figures(weights: Array) -> dict[str, Array]:
        total = np.tensordot(weights, sums, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return of(dict(zip(columns, total.T, strict=True)), names)

    def statistic(drawn: pd.DataFrame) -> pd.Series:
        weights = np.bincount(drawn["number"].to_numpy(), minlength=len(units)).astype(float)
        return pd.Series(np.concatenate(list(figures(weights).values())))

    every = pd.DataFrame({unit: units, "number": np.arange(len(units))})
    made = list(statistics.bootstrap_many(statistic, every, by=unit, n=n, seed=seed).values())
    asked, groups = list(figures(np.ones(len(units)))), len(names)
    heads = names.assign(**{f"{unit}s": (rows > 0).sum(0)}).to_dict("records")
    return pd.DataFrame([head | dict(zip(asked, made[k::groups], strict=True)) for k, head in enumerate(heads)])


def known(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """The frame with a column "n ..." beside each: 1 where it is defined, else 0."""
    return frame.assign(**{f"n {name}": frame[name].notna().astype(float) for name in columns})


def averages(columns: Sequence[str]) -> tuple[list[str], Callable[[Sums], dict[str, Array]]]:
    """Means over the rows where a column is defined: the columns to sum, after `known`, and what makes the means."""
    summed = [*columns, *(f"n {name}" for name in columns)]
    return summed, lambda sums: {name: sums[name] / sums[f"n {name}"] for name in columns}


def partner(values: Array, names: pd.DataFrame, **changed: str | float) -> Array:
    """Values (..., G) of the group that has these other names and is else the same; NaN where it is none, or itself."""
    place = {name: k for k, name in enumerate(names.itertuples(index=False, name=None))}
    at = [place.get(name, -1) for name in names.assign(**changed).itertuples(index=False, name=None)]
    return np.where((np.array(at) >= 0) & (np.array(at) != np.arange(len(at))), values[..., at], np.nan)


def shares(frame: pd.DataFrame, columns: Iterable[str], count: str) -> pd.DataFrame:
    """The frame with exact intervals where every unit or none has the property; `count` is the column of units."""
    if not len(frame):
        return frame
    exact = {
        name: [statistics.exact_share(e, units) for e, units in zip(frame[name], frame[count], strict=True)]
        for name in columns
    }
    for of in exact.values():
        of[:] = [replace(e, method=e.method.replace("patients", count)) for e in of]
    return frame.assign(**{name: pd.Series(of, dtype=object) for name, of in exact.items()})
