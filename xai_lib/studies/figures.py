"""What the studies' summaries share: headline figures from tables of estimates, and tables as rows of a record.

Usage::

    areas = named(auc, "tissue", "auc")                      # {"none": Estimate, "mass": Estimate, ...}
    figure = figure_of(areas, "mass", ["none", "twin"], {"chance": Estimate(0.5)})
    rows = frames_as_rows(summary)                           # every table of the summary that has a row
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import pandas as pd

from xai_lib.estimate_tables import as_rows
from xai_lib.results import Estimate, Figure


def named(rows: pd.DataFrame, by: str, column: str) -> dict[str, Estimate]:
    """The estimates of a column by the names in another; none where there is no row."""
    return dict(zip(rows[by], rows[column], strict=True)) if len(rows) else {}


def figure_of(
    rows: Mapping[str, Estimate],
    name: str,
    others: Iterable[str],
    given: Mapping[str, Estimate] | None = None,
    unit: str = "",
) -> Figure:
    """The estimate of one row; as its baselines the given ones, then the other rows that are there and defined."""
    there = {k: rows[k] for k in others if k in rows and k != name and not math.isnan(rows[k].value)}
    return Figure(rows[name], unit, {**(given or {}), **there})


def frames_as_rows(summary: Any) -> dict[str, list[dict[str, object]]]:
    """The frames of a summary (a dataclass of frames and `verdicts`) that have a row, as plain rows by field."""
    frames = {field.name: getattr(summary, field.name) for field in fields(summary) if field.name != "verdicts"}
    return {name: as_rows(frame) for name, frame in frames.items() if len(frame)}
