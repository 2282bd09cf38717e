"""Study 6, tables of the networks: errors, coverage, the causal check, OMIG's paths, and what all cost.

Usage::

    errors_of(curves); coverage_of(curves)                   # 6.1, 6.2: per network and scenario
    slopes_of(interventions)                                 # 6.4: 1 reads the discs' contrast, 0 does not
    paths_of(paths); stability_of(members)                   # 6.8

The columns of the given tables are those of `summary.summarise`. Intervals are from a bootstrap over images, those
of stability from one over members. What was not run has no row.

Reference: Amanova et al. 2022, section 2.2, 2.3.1, Figs. 2, 13 and 14.
"""

from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import statistics
from xai_lib.studies.omig.claims import WORST
from xai_lib.studies.omig.grouped_bootstrap import Array, Sums, averages, known, partner, shares, table

PAPER = {"#1": 0.971, "#2": 0.991, "#3": 0.969, "#4": 0.61, "OOD": 0.987}  # coverage, section 2.2


def errors_of(curves: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.1, Fig. 2b: errors against the exact label per network and scenario.

    `error` and `bias` in um, `relative`; `error_inside` and `relative_inside` without labels that are extrapolated
    beyond the phantom's thicknesses; `ratio...`, that of scenario #4 over this one.
    """
    if not len(curves):
        return pd.DataFrame()
    bias = curves["predicted"] - curves["exact"]
    inside = ~curves["extrapolated"].astype(bool)
    frame = curves.assign(bias=bias, error=bias.abs(), relative=bias.abs() / curves["exact"])
    frame = frame.assign(error_inside=frame["error"].where(inside), relative_inside=frame["relative"].where(inside))
    measures = ["error", "relative", "error_inside", "relative_inside"]
    columns, means = averages([*measures, "bias"])

    def of(sums: Sums, names: pd.DataFrame) -> dict[str, Array]:
        found = means(sums)
        own = np.stack([found[name] for name in ("error", "relative", "error_inside")])
        ratios = partner(own, names, scenario=WORST) / own
        return found | dict(zip(("ratio", "ratio_relative", "ratio_inside"), ratios, strict=True))

    return table(known(frame, [*measures, "bias"]), ["network", "scenario"], "image", columns, of, n, seed)


def coverage_of(curves: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.2: share of labels within 1.96 total standard deviations, of `exact` and of `drawn` labels.

    `width` of the interval in um; `epistemic_share` of the total variance; `ratio`, epistemic over aleatoric standard
    deviation (root mean squares); `paper`, its coverage.
    """
    if not len(curves):
        return pd.DataFrame()
    variance = curves["epistemic"] ** 2 + curves["aleatoric"] ** 2
    reach = 1.96 * np.sqrt(variance)
    within = {
        name: ((curves[name] - curves["predicted"]).abs() <= reach).where(curves[name].notna()).astype(float)
        for name in ("exact", "drawn")
    }
    frame = curves.assign(**within, width=2 * reach, own=curves["epistemic"] ** 2, noise=curves["aleatoric"] ** 2)
    names = ["exact", "drawn", "width"]
    columns, means = averages(names)

    def of(sums: Sums, _: pd.DataFrame) -> dict[str, Array]:
        parts = sums["own"], sums["noise"]
        return means(sums) | {
            "epistemic_share": parts[0] / (parts[0] + parts[1]),
            "ratio": np.sqrt(parts[0] / parts[1]),
        }

    by = ["network", "scenario"]
    found = table(known(frame, names), by, "image", [*columns, "own", "noise"], of, n, seed)
    return shares(found, ["exact", "drawn"], "images").assign(paper=found["scenario"].map(PAPER))


def interventions_of(frame: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Mean predicted and true midpoint, in um, per network, scenario, what was changed, and its factor."""
    columns, means = averages(["predicted", "true"])
    by = ["network", "scenario", "what", "factor"]
    frame = known(frame, ["predicted", "true"]) if len(frame) else frame
    return table(frame, by, "image", columns, lambda sums, _: means(sums), n, seed)


def slopes_of(frame: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The causal check, 6.4: does the prediction follow the truth when one thing of the image is changed?

    `predicted` and `true` are slopes of the ln of the midpoint against the ln of the factor, by image and averaged;
    `slope` is their ratio: 1 reads what was changed, 0 does not. Changing the grid leaves the truth as it is, so there
    `slope` is that of the prediction. Factors of 0 and midpoints that are not positive are left out.
    """
    if not len(frame):
        return pd.DataFrame()
    by = ["network", "scenario", "what", "image"]
    rows = []
    for name, part in frame[frame["factor"] > 0].groupby(by, sort=False):
        row: dict[str, object] = dict(zip(by, name, strict=True))
        rows.append(row | {key: log_slope(part["factor"], part[key]) for key in ("predicted", "true")})
    columns, means = averages(["predicted", "true"])

    def of(sums: Sums, names: pd.DataFrame) -> dict[str, Array]:
        found = means(sums)
        ratio = np.where(found["true"] != 0, found["predicted"] / found["true"], np.nan)
        return found | {"slope": np.where(names["what"] == "grid", found["predicted"], ratio)}

    return table(known(pd.DataFrame(rows), ["predicted", "true"]), by[:-1], "image", columns, of, n, seed)


def log_slope(x: pd.Series, y: pd.Series) -> float:
    """Slope of ln y against ln x over positive y by least squares; NaN with fewer than two different x."""
    there = (y > 0).to_numpy()
    a, b = np.log(x.to_numpy(float)[there]), np.log(y.to_numpy(float)[there])
    spread = a - a.mean() if len(a) else a
    return float(spread @ b / (spread @ spread)) if spread.any() else np.nan


def paths_of(paths: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """6.8, Fig. 14: paths per c and number of steps, means over virtual images.

    `fall` of the midpoint in um and `relative_fall`; `fell`, the share of images where it fell; rms of the change,
    normalised and in grey levels; correlations of the map; `rise`, of the correlation with sensitivity from c = 1.
    """
    if not len(paths):
        return pd.DataFrame()
    fall = paths["start"] - paths["end"]
    frame = paths.assign(fall=fall, relative_fall=fall / paths["start"], fell=(fall > 0).astype(float))
    asked = ["fall", "relative_fall", "fell", "rms", "rms_grey", "with_sensitivity", "with_clipped", "with_reference",
             "clipped_share"]  # fmt: skip
    columns, means = averages(asked)

    def of(sums: Sums, names: pd.DataFrame) -> dict[str, Array]:
        found = means(sums)
        return found | {"rise": found["with_sensitivity"] - partner(found["with_sensitivity"], names, c=1.0)}

    by = ["network", "scenario", "c", "steps", "first_clipped"]
    return shares(table(known(frame, asked), by, "image", columns, of, n, seed), ["fell"], "images")


def stability_of(members: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Correlation of the maps of two members, or halves: mean over pairs, bootstrap over members; the lowest pair."""
    if not len(members):
        return pd.DataFrame()
    rows = []
    for (network, scenario), part in members.groupby(["network", "scenario"], sort=False):
        codes, those = pd.factorize(pd.concat([part["first"], part["second"]]))
        mean = partial(pair_mean, pairs=codes.reshape(2, -1), values=part["correlation"].to_numpy(float))
        every = pd.DataFrame({"member": those, "number": np.arange(len(those))})
        head = {"network": network, "scenario": scenario, "members": len(those), "pairs": len(part)}
        found = statistics.bootstrap(mean, every, "member", n, seed)
        rows.append(head | {"correlation": found, "lowest": float(part["correlation"].min())})
    return pd.DataFrame(rows)


def pair_mean(drawn: pd.DataFrame, pairs: NDArray[np.intp], values: Array) -> float:
    """Mean value (P,) of the pairs (2, P) of members, each as often as both were drawn; NaN where none was."""
    times = np.bincount(drawn["number"].to_numpy(), minlength=int(pairs.max()) + 1)
    weights = (times[pairs[0]] * times[pairs[1]]).astype(float)
    return float(weights @ values / weights.sum()) if weights.any() else np.nan
