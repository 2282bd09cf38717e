"""Study 6, the results: image quality read by networks and what OMIG shows of them, as figures with intervals.

Usage::

    result = summarise(curves, discs, cells, interventions, paths, members, costs)
    result.discs                                             # scores per network, scenario, view, method and diameters
    records.make(..., figures=result.figures(), verdicts=result.verdicts, tables=result.tables())

The tables are made in `network_tables` and `map_tables`. Intervals of errors, coverage, interventions and
paths come from a bootstrap over images, those of scores from one over the cells of the phantom, those of stability from
one over members. What was not run has no row.

Reference: Amanova et al. 2022, section 2.2, Figs. 2 to 7, 12 to 14.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from xai_lib.results import Estimate, Figure, Verdict
from xai_lib.studies.figures import frames_as_rows
from xai_lib.studies.omig import map_tables as of_maps
from xai_lib.studies.omig import network_tables as of_networks
from xai_lib.studies.omig.claims import DISCS, FIRST, MAP, NETWORK, SEEN, judge, main_path
from xai_lib.studies.verdicts import find


@dataclass(frozen=True, eq=False)
class Summary:
    """All results, one frame each, empty where nothing of it was run, and the verdicts.

    Each frame is made by the function of its name with _of in `network_tables` or `map_tables`; `costs` is as
    given.
    """

    errors: pd.DataFrame
    coverage: pd.DataFrame
    interventions: pd.DataFrame
    slopes: pd.DataFrame
    discs: pd.DataFrame
    pairs: pd.DataFrame
    grid: pd.DataFrame
    fading: pd.DataFrame
    weights: pd.DataFrame
    ranks: pd.DataFrame
    paths: pd.DataFrame
    stability: pd.DataFrame
    costs: pd.DataFrame
    verdicts: dict[str, Verdict]

    def figures(self) -> dict[str, Figure]:
        """Headline figures of the network that decides the claims, with their baselines."""
        return self._of_networks() | self._of_maps() | self._of_paths()

    def _of_networks(self) -> dict[str, Figure]:
        """Errors, coverage and the causal check; other networks beside."""
        out = {}
        for scenario in _values(self.errors, "scenario"):
            where = {"network": NETWORK, "scenario": scenario}
            name = _plain(scenario)
            out[f"error_{name}"] = _figure(self.errors, "error", where, "um", ["network"])
            out[f"relative_error_{name}"] = _figure(self.errors, "relative", where, "share", ["network"])
            beside = {"exact labels": find(self.coverage, "exact", **where), "nominal": Estimate(0.95)}
            beside |= {"paper": Estimate(of_networks.PAPER.get(scenario, math.nan))}
            out[f"coverage_{name}"] = _figure(self.coverage, "drawn", where, "share of drawn labels", (), beside)
        for what in _values(self.slopes, "what"):
            where = {"network": NETWORK, "scenario": FIRST, "what": what}
            beside = {"reads it": Estimate(float(what != "grid"))}
            unit = "slope of ln predicted over that of ln " + ("factor" if what == "grid" else "true")
            out[f"slope_{what}"] = _figure(self.slopes, "slope", where, unit, ["network"], beside)
        return _defined(out)

    def _of_maps(self) -> dict[str, Figure]:
        """Scores of discs and grid; other networks and methods, and a phantom without discs beside."""
        out = {}
        for scenario in _values(self.discs, "scenario"):
            where, name = {**MAP, **DISCS, "scenario": scenario}, _plain(scenario)
            for column in ("score", "signed", "shown"):
                unit = "share of discs with z > 2" if column == "shown" else "sd of one visit"
                out[f"{column}_{name}"] = _figure(self.discs, column, where, unit, ["network", "method", "view"])
            grid = {**MAP, "scenario": scenario}
            out[f"grid_{name}"] = _figure(self.grid, "score", grid, "sd of one visit", ["network", "method", "view"])
        for method in _values(self.discs, "method"):
            where = {**MAP, **DISCS, "scenario": FIRST, "method": method}
            for column in ("auc", "auc_smooth"):
                figure = _figure(self.discs, column, where, "AUC", ["view"], {"chance": Estimate(0.5)})
                out[f"{column}_{_plain(method)}"] = figure
        for column in ("total", "mean"):
            where = {**MAP, "scenario": FIRST, "chosen": SEEN}
            out[f"rank_{column}"] = _figure(self.ranks, column, where, "rank correlation", ["network", "method"])
        rotated = {**MAP, **DISCS, "scenario": FIRST, "view": "rotated"}
        out["score_rotated"] = _figure(self.discs, "score", rotated, "sd of one visit", ["view"])
        return _defined(out)

    def _of_paths(self) -> dict[str, Figure]:
        """What a path does to the prediction, and how stable the map is."""
        path, where = main_path(self.paths), {"network": NETWORK, "scenario": FIRST}
        units = {"fall": "um", "relative_fall": "share", "fell": "share of images", "rms_grey": "grey levels"}
        out = {name: _figure(path, name, where, unit, ()) for name, unit in units.items()}
        out |= {name: _figure(path, name, where, "correlation", ()) for name in ("with_sensitivity", "with_clipped")}
        out["stability"] = _figure(self.stability, "correlation", where, "correlation", ["network"])
        return _defined(out)

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Every table that is there, as plain rows."""
        return frames_as_rows(self)


def summarise(
    curves: pd.DataFrame,
    discs: pd.DataFrame,
    cells: pd.DataFrame,
    interventions: pd.DataFrame,
    paths: pd.DataFrame,
    members: pd.DataFrame,
    costs: pd.DataFrame,
    replicates: int = 1000,
    seed: int = 0,
) -> Summary:
    """Compute every figure, interval and verdict of the study; a table of which nothing was run may be empty.

    Args:
        curves: network, scenario, image, diameter_mm, predicted, epistemic, aleatoric, exact, drawn (um), extrapolated.
        discs: network, scenario, view, method and the columns of `scores.score_discs`.
        cells: network, scenario, view, method and the columns of `scores.score_cells`.
        interventions: network, scenario, image, what, factor, predicted, true (midpoints, um).
        paths: network, scenario, image (a virtual one), c, steps, first_clipped, start, end (midpoints, um), rms,
            rms_grey, with_sensitivity, with_clipped, with_reference (correlations), clipped_share.
        members: network, scenario, first, second, correlation.
        costs: what, virtual_images, steps, members, gradients, seconds, device.
        replicates: of each bootstrap.
        seed: of each bootstrap.
    """
    many = (replicates, seed)
    discs, cells = of_maps.prepared(discs), of_maps.prepared_cells(cells)
    deciding = {
        "errors": of_networks.errors_of(curves, *many),
        "coverage": of_networks.coverage_of(curves, *many),
        "slopes": of_networks.slopes_of(interventions, *many),
        "discs": of_maps.discs_of(discs, *many),
        "pairs": of_maps.pairs_of(discs, *many),
        "grid": of_maps.grid_of(cells, *many),
        "fading": of_maps.fading_of(discs, cells, *many),
        "ranks": of_maps.ranks_of(discs, *many),
        "paths": of_networks.paths_of(paths, *many),
        "costs": costs,
    }
    return Summary(
        **deciding,
        interventions=of_networks.interventions_of(interventions, *many),
        weights=of_maps.weights_of(discs, *many),
        stability=of_networks.stability_of(members, *many),
        verdicts=judge(**deciding),
    )


def _values(frame: pd.DataFrame, column: str) -> list[str]:
    """The values of a column in their order; none where there is no row."""
    return list(dict.fromkeys(frame[column])) if len(frame) else []


def _figure(
    frame: pd.DataFrame,
    column: str,
    where: Mapping[str, str],
    unit: str,
    others: tuple[()] | list[str],
    beside: Mapping[str, Estimate] | None = None,
) -> Figure:
    """The figure of one row; as its baselines the rows that differ in one of the names `others`, and those given."""
    levels = dict(beside or {})
    for other in others:
        for name in _values(frame, other):
            if name != where[other]:
                levels[name] = find(frame, column, **{**where, other: name})
    there = {name: e for name, e in levels.items() if not math.isnan(e.value)}
    return Figure(find(frame, column, **where), unit, there)


def _defined(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name: figure for name, figure in figures.items() if not math.isnan(figure.estimate.value)}


def _plain(name: str) -> str:
    """A name as part of a figure's: ``#4`` -> ``4``, ``clipped sensitivity`` -> ``clipped_sensitivity``."""
    return name.removeprefix("#").replace(" ", "_").lower()
