"""Study 4, the results: what a transfer of knowledge changes, as figures with intervals beside their controls.

Usage::

    result = summarise(Tables(folds, shift=shift), replicates=1000, seed=0)
    result.comparisons                                       # each method against fine-tuning, over the same folds
    records.make(..., figures=result.figures(), verdicts=result.verdicts, tables=result.tables())

How figures, seeds and intervals are made is said in `scores`.

Reference: Li et al. 2025, section 5, Tabs. 1 and 2, Figs. 4, 6, 7 and 9.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xai_lib import paired_tests
from xai_lib.results import Estimate, Figure, Verdict
from xai_lib.studies.figures import figure_of, frames_as_rows, named
from xai_lib.studies.resampling import mean_of, resampled
from xai_lib.studies.transfer.claims import judge
from xai_lib.studies.transfer.maps import cell_scores, group_steps, localisation
from xai_lib.studies.transfer.scores import (
    CONTROLS,
    FINE,
    MASKS,
    TRANSFER,
    comparisons,
    each,
    levels,
    of_cases,
    performance,
    reference,
)

BEST_RECIPE = "mass_centred"


@dataclass(frozen=True, eq=False)
class Tables:
    """One row per case, network and seed; only `folds` must be there.

    folds: start, method, seed, fold, case, patient_id, label, logit, inside, area, distance; with confounders also
    inside_<name> and area_<name>; where it was measured `disc`, what `inside` is for a centred disc. shift: test, and
    the same without fold. moved: as shift, for masses that lie elsewhere. betas: as shift, with beta and
    form. distances: network, case, patient_id, group, printed, mean_squared. cells: network, case, patient_id, the
    columns of `patch_replacement.cells`, calcifications, dense. recipes: recipe, seed, fold, case, patient_id, label,
    logit.
    """

    folds: pd.DataFrame
    shift: pd.DataFrame | None = None
    betas: pd.DataFrame | None = None
    distances: pd.DataFrame | None = None
    cells: pd.DataFrame | None = None
    recipes: pd.DataFrame | None = None
    moved: pd.DataFrame | None = None


# ---------------------------------------------------------------------------------------- further tables


def shift_performance(shift: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`levels` of every test and method, with the paired gains over its own fine-tuning; of every start, if any."""
    if "start" in shift:
        return each(shift, "start", lambda part: shift_performance(part.drop(columns="start"), n, seed))
    return each(shift, "test", lambda part: levels(part, ["method"], n, seed, reference))


def shift_localisation(shift: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`localisation` by test; of every start, if any."""
    if "start" in shift:
        return each(shift, "start", lambda part: shift_localisation(part.drop(columns="start"), n, seed))
    return localisation(shift, "test", n, seed)


def beta_curve(betas: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`levels` of every test, form and beta, with the means of distance and inside."""

    def curve(part: pd.DataFrame) -> pd.DataFrame:
        by = ["form", "beta"]
        found = levels(part, by, n, seed)
        for name in ("distance", "inside"):
            values, patients = of_cases(part, by, name)
            made = dict(zip(values, resampled(mean_of(values.to_numpy(float)), patients, n, seed), strict=True))
            found[name] = [made[key] for key in zip(found["form"], found["beta"], strict=True)]
        return found

    return each(betas, "test", curve)


def recipe_scores(recipes: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Claim 4.8: `levels` of the recipes, their gains over `BEST_RECIPE`, and p by signs of patients, after Holm."""
    found = levels(recipes, ["recipe"], n, seed, lambda _: BEST_RECIPE)
    right = recipes.assign(right=((recipes["logit"] > 0) == (recipes["label"] == 1)).astype(float))
    wide = (
        right.groupby(["patient_id", "recipe"])["right"].agg("sum").unstack()
        / right.groupby("recipe")["seed"].nunique()
    )
    others = [name for name in found["recipe"] if name != BEST_RECIPE]
    p = [paired_tests.paired_permutation(wide[name], wide[BEST_RECIPE], seed=seed) for name in others]
    both = {name: pair for name, *pair in zip(others, p, paired_tests.holm(p), strict=True)}
    for k, column in enumerate(("p", "holm")):
        found[column] = [both[name][k] if name in both else np.nan for name in found["recipe"]]
    return found


# ---------------------------------------------------------------------------------------- everything


@dataclass(frozen=True, eq=False)
class Summary:
    """All results: one frame for each function of that name, empty where its table is missing, and the verdicts."""

    performance: pd.DataFrame
    comparisons: pd.DataFrame
    localisation: pd.DataFrame
    shift: pd.DataFrame
    shift_localisation: pd.DataFrame
    moved: pd.DataFrame
    moved_localisation: pd.DataFrame
    betas: pd.DataFrame
    groups: pd.DataFrame
    cells: pd.DataFrame
    recipes: pd.DataFrame
    verdicts: dict[str, Verdict]

    def figures(self) -> dict[str, Figure]:
        """Headline figures with their baselines."""
        out: dict[str, Figure] = {}
        for start in dict.fromkeys(self.performance["start"]):
            out |= {f"{name}_{_plain(start)}": figure for name, figure in self._of_start(start).items()}
        by = [name for name in ("start", "test") if name in self.shift]
        for place, part in self.shift.groupby(by, sort=False) if by else ():
            rows = named(part, "method", "auc_gain")
            for name in [name for name in rows if name.startswith(TRANSFER)]:
                beside = {control: rows[control] for control in CONTROLS if control in rows}
                where = "_".join(_plain(str(part)) for part in (name, *reversed(place)))
                out[f"shift_auc_gain_{where}"] = Figure(rows[name], baselines=beside)
        for _, row in self.groups.iterrows():
            if row["form"] == "printed":
                name = f"distance_{_plain(row['network'])}_{_plain(row['figure'])}"
                out[name] = Figure(row["distance"], "equation 4 as printed")
        for column in ("auc", "activation_gap") if len(self.cells) else ():
            rows = named(self.cells, "network", column)
            out[f"cells_{column}"] = figure_of(rows, TRANSFER, rows)
        if len(self.recipes):
            rows = named(self.recipes, "recipe", "accuracy")
            out["accuracy_recipe"] = figure_of(rows, BEST_RECIPE, rows)
        return out

    def _of_start(self, start: str) -> dict[str, Figure]:
        """Figures of one start."""
        rows, pairs, maps = (f[f["start"] == start] for f in (self.performance, self.comparisons, self.localisation))
        benign, malignant = (rows[list(columns)].iloc[0].sum() for columns in (("tn", "fp"), ("fn", "tp")))
        larger = Estimate(max(benign, malignant) / (benign + malignant), method="always the larger class")
        out = {}
        for column, chance in {"accuracy": {"one class": larger}, "auc": {"chance": Estimate(0.5)}}.items():
            found = named(rows, "method", column)
            out[f"{column}_fine_tuning"] = Figure(found[FINE], baselines=chance)
            if TRANSFER in found:
                out[f"{column}_transfer"] = figure_of(found, TRANSFER, (FINE, *CONTROLS, MASKS), chance)
                gains = named(pairs[pairs["second"] == FINE], "first", column)
                out[f"{column}_gain"] = figure_of(gains, TRANSFER, (*CONTROLS, MASKS))
        excess = named(rows, "method", "excess")
        out["excess_fine_tuning"] = figure_of(excess, FINE, (TRANSFER, *CONTROLS, MASKS))
        maps = maps[maps["region"] == "mass"]
        inside = named(maps, "method", "inside")
        if TRANSFER in inside:
            area = {"area": named(maps, "method", "area")[TRANSFER]}
            out["inside_transfer"] = figure_of(inside, TRANSFER, (FINE, *CONTROLS, "disc"), area)
        return out

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Every table that is there, as plain rows."""
        return frames_as_rows(self)


def summarise(tables: Tables, replicates: int = 1000, seed: int = 0) -> Summary:
    """Compute every figure, interval and verdict of the study.

    Args:
        tables: what was measured.
        replicates: of the bootstrap over patients.
        seed: of the bootstrap.
    """

    def made(of: Callable[..., pd.DataFrame], table: pd.DataFrame | None, *options: str) -> pd.DataFrame:
        return pd.DataFrame() if table is None else of(table, *options, n=replicates, seed=seed)

    scored, compared = made(performance, tables.folds), made(comparisons, tables.folds)
    located, steps = made(localisation, tables.folds, "start"), made(group_steps, tables.distances)
    of_cells, of_recipes = made(cell_scores, tables.cells), made(recipe_scores, tables.recipes)
    return Summary(
        performance=scored,
        comparisons=compared,
        localisation=located,
        shift=made(shift_performance, tables.shift),
        shift_localisation=made(shift_localisation, tables.shift),
        moved=made(shift_performance, tables.moved),
        moved_localisation=made(shift_localisation, tables.moved),
        betas=made(beta_curve, tables.betas),
        groups=steps,
        cells=of_cells,
        recipes=of_recipes,
        verdicts=judge(scored, compared, located, steps, of_cells, of_recipes),
    )


def _plain(name: str) -> str:
    """A name as part of a figure's: ``fine-tuning, groups 3 and 4`` -> ``fine_tuning_groups_3_and_4``."""
    return re.sub(r"\W+", "_", name).lower()
