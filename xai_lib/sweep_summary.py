"""What a sweep says: each headline figure of each cell over its seeds.

Usage::

    table = runs_table(runs)                     # a row per run and figure
    summary = summarise(table)                   # a row per cell and figure
    write_summary(runs, out)                     # OUT/summary.csv and OUT/summary.png

The interval of a cell is Student's, mean ± t(0.975, n - 1) sd / sqrt(n): how far the mean over seeds could move with
other seeds. The interval within a run (most often a bootstrap over its patients) answers another question, how far the
figure could move with other patients of the same network; its mean ends stand beside it for comparison. Where the first
is much narrower than the second, more seeds will not help; where it is wider, one run says too little.

Reference: Student 1908, The probable error of a mean, Biometrika 6:1-25.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from xai_lib import records
from xai_lib.results import Estimate
from xai_lib.sweep_grid import Run
from xai_lib.sweep_task import finished, write_in_place

_ABOUT = ("cell", "label", "notebook", "profile")


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Figures of the finished runs: cell, label, notebook, the cell's parameters, seed, figure, unit, value, low, high.

    `low` and `high` are the 95 % interval within the run, NaN where it has none. `baselines` has the chance levels of
    the run by name. A cell's parameters are columns ``parameter.<name>``, empty where a cell does not set it.
    """
    rows: list[dict[str, Any]] = []
    for run in filter(finished, runs):
        record = records.read(run.folder / f"{run.notebook}.record.json")
        given = {f"parameter.{name}": value for name, value in run.parameters.items() if name != "profile"}
        about = {"cell": run.cell, "label": run.label, "notebook": run.notebook, "profile": record.profile} | given
        for name, figure in record.figures.items():
            low, high = _interval(figure.estimate)
            rows.append(
                about
                | {"seed": run.seed, "figure": name, "unit": figure.unit, "value": figure.estimate.value}
                | {"low": low, "high": high}
                | {"baselines": {key: level.value for key, level in figure.baselines.items()}}
            )
    return pd.DataFrame(rows)


def _interval(estimate: Estimate) -> tuple[float, float]:
    """Ends of a 95 % interval; NaN where there is none, or where the ends are mean - sd and mean + sd."""
    if estimate.low is None or estimate.high is None or estimate.method.startswith("sd over"):
        return math.nan, math.nan
    return estimate.low, estimate.high


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds of each cell: n, mean, sd, the t interval (low, high), mean ends within a run, chance levels.

    A value that is NaN is not counted in `n`. There is no sd and no interval of one run.
    """
    if table.empty:
        return table
    about = [name for name in map(str, table) if name in _ABOUT or name.startswith("parameter.")]
    rows = []
    for _, part in table.groupby(["cell", "figure"], sort=False):
        values = part["value"].dropna()
        mean, sd, n = float(values.mean()), float(values.std(ddof=1)), len(values)
        reach = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n) if n > 1 else math.nan
        levels = pd.DataFrame(list(part["baselines"])).mean()
        rows.append(
            {name: part[name].iloc[0] for name in about}
            | {"figure": part["figure"].iloc[0], "unit": part["unit"].iloc[0], "n": n, "mean": mean, "sd": sd}
            | {"low": mean - reach, "high": mean + reach}
            | {"within_low": part["low"].mean(), "within_high": part["high"].mean()}
            | {"baselines": "; ".join(f"{name}: {level:.6g}" for name, level in levels.items())}
        )
    return pd.DataFrame(rows)


def write_summary(runs: Sequence[Run], out: str | Path) -> pd.DataFrame:
    """Write OUT/summary.csv and OUT/summary.png from what is finished, and return the table of the first.

    Without a finished run nothing is written, and the older files are removed.

    Raises:
        OSError: the files cannot be written (full disk, no permission).
    """
    out, table = Path(out), runs_table(runs)
    summary = summarise(table)
    if summary.empty:
        for name in ("summary.csv", "summary.png"):
            (out / name).unlink(missing_ok=True)
        return summary
    write_in_place(out / "summary.csv", lambda path: summary.to_csv(path, index=False, float_format="%.6g"))

    from matplotlib import pyplot as plt

    from xai_lib.plotting import sweep_figure  # both take seconds

    figure = sweep_figure(table, summary)
    write_in_place(out / "summary.png", lambda path: figure.savefig(path, dpi=120, format="png"))
    plt.close(figure)
    return summary
