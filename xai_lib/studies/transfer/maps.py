"""Study 4, the maps: where activations lie, how far they are from those of a mask, and which content a cell stands for.

Usage::

    localisation(folds)                  # claim 4.6: share of the maps inside the mass, beside its share of the area
    group_steps(distances)               # claim 4.5
    cell_scores(cells)                   # claim 4.7

How seeds and intervals are handled is said in `scores`.

Reference: Li et al. 2025, sections 5.1.1, 5.1.2 and 5.2, Figs. 6, 7 and 9.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib.studies.resampling import Array, auc_of, mean_of, resampled
from xai_lib.studies.transfer.scores import each, of_cases, reference

PIXELS = "pixels alone"
CONFOUNDERS = ("calcifications", "dense")
COVERED, CLEAR = 0.25, 0.25  # a confounder's cell: covered by it to more than this, by the mass to less than that


# ---------------------------------------------------------------------------------------- activation maps


def localisation(table: pd.DataFrame, over: str = "start", n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Where the activation maps lie: a row for each value of `over` ("start" or "test"), region and method.

    Regions: mass, and where the table has them calcifications, dense, and confounders (both together). Only cases count
    that show the region. Columns: cases; inside, the share of the map in it; area, its share of the image, which is
    chance; above_area, the first minus the second; gain, inside minus that of fine-tuning. The method "disc" is a
    centred disc taken as a map.
    """
    table = table.assign(inside_mass=table["inside"], area_mass=table["area"])
    there = [name for name in CONFOUNDERS if f"inside_{name}" in table]
    for what in ("inside", "area") if there else ():
        table[f"{what}_confounders"] = table[[f"{what}_{name}" for name in there]].sum(axis=1, min_count=1)
    regions = ["mass", *there, *(["confounders"] if there else [])]

    def located(part: pd.DataFrame) -> pd.DataFrame:
        made = [_in_region(part, region) for region in regions]
        rows = pd.concat([frame for frame, _ in made], ignore_index=True)
        patients = of_cases(part, ["method"], "inside")[1]
        found = resampled(mean_of(np.concatenate([values for _, values in made], 2)), patients, n, seed)
        return rows.assign(**dict(zip(("inside", "area", "above_area", "gain"), found, strict=True)))

    return each(table, over, located)


def _in_region(part: pd.DataFrame, region: str) -> tuple[pd.DataFrame, Array]:
    """The rows of one region without their figures; and the figures of every case, (N, 4, methods)."""
    inside = of_cases(part, ["method"], f"inside_{region}")[0]
    area = of_cases(part, ["method"], f"area_{region}")[0].max(axis=1)
    if region == "mass" and "disc" in part:
        inside["disc"] = part.drop_duplicates("case").set_index("case")["disc"]
    inside = inside.where(area > 0, axis=0)
    nothing = inside.iloc[:, 0] * np.nan
    gain = pd.DataFrame({name: inside[name] - inside.get(reference(str(name)), nothing) for name in inside})
    chance = pd.DataFrame({name: area.where(inside[name].notna()) for name in inside})
    rows = {"region": region, "method": list(inside.columns), "cases": inside.notna().sum().to_numpy()}
    return pd.DataFrame(rows), np.stack([inside, chance, inside.sub(area, axis=0), gain], 1)


def group_steps(distances: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Claim 4.5: mean distance after each group, and its steps, paired: a row for each network, form and figure."""

    def steps(part: pd.DataFrame) -> pd.DataFrame:
        rows = []
        for form in ("printed", "mean_squared"):
            values, patients = of_cases(part, ["group"], form)
            names = sorted(map(str, values))
            wide = values[names].to_numpy(float)
            both = [*names, *(f"{b} - {a}" for a, b in pairwise(names))]
            made = resampled(mean_of(np.hstack([wide, np.diff(wide)])), patients, n, seed)
            rows += [{"form": form, "figure": k, "distance": e} for k, e in zip(both, made, strict=True)]
        return pd.DataFrame(rows)

    return each(distances, "network", steps)


# ---------------------------------------------------------------------------------------- cells


def cell_scores(cells: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Claim 4.7: a row per network, and for what is known without one, "centre" and "brightness".

    Columns: auc, of the score against `inside` over all cells; auc_gain, its difference to that of the pixels alone;
    activation_gap, mean activation of *Lesion* minus *Background* cells over that of all, averaged over images; and
    where the confounders are known, the shares of their cells, and of the other cells clear of the mass, that are
    labelled *Background*.
    """
    place = ["case", "row", "col"]
    names = list(dict.fromkeys(cells["network"]))
    wide = cells.pivot(index=place, columns="network", values=["score", "lesion", "activation"])
    facts = cells.drop_duplicates(place).set_index(place).reindex(wide.index)
    image, of_image = pd.factorize(wide.index.get_level_values("case"))
    patients = facts.groupby(level="case")["patient_id"].first().reindex(of_image)
    columns = [*(wide["score", name] for name in names), facts["centre"], facts["brightness"]]
    auc = auc_of(np.column_stack(columns), facts["inside"], np.zeros(len(facts)))
    lesion = wide["lesion"][names].to_numpy(float)
    gaps = mean_of(_gaps(wide["activation"][names].to_numpy(float), lesion, image))
    clear = (facts["share"] < CLEAR).to_numpy()
    sets = {}
    if set(CONFOUNDERS) <= set(cells):
        planted = (facts[list(CONFOUNDERS)] > COVERED).any(axis=1).to_numpy()
        sets = {"background_confounders": clear & planted, "background_elsewhere": clear & ~planted}
    labelled = [mean_of(np.where(chosen[:, None], 1 - lesion, np.nan)) for chosen in sets.values()]

    def statistic(weights: Array) -> Array:
        own, found = weights[image], auc(weights[image])
        first = found - found[names.index(PIXELS)] if PIXELS in names else found * np.nan
        rest = [gaps(weights), *(of(own) for of in labelled)]
        return np.stack([found, first, *(np.append(values, [np.nan, np.nan]) for values in rest)])

    made = resampled(statistic, patients, n, seed)
    out = pd.DataFrame(made.T, columns=["auc", "auc_gain", "activation_gap", *sets])
    out.insert(0, "network", [*names, "centre", "brightness"])
    return out


def _gaps(activation: Array, lesion: Array, image: NDArray[np.int64]) -> Array:
    """Activation of *Lesion* minus *Background* cells over the mean of all, (images, networks)."""
    of = lambda values: pd.DataFrame(values).groupby(image).sum().to_numpy()  # noqa: E731
    high, low, count, cells = of(activation * lesion), of(activation * (1 - lesion)), of(lesion), of(lesion * 0 + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (high / count - low / (cells - count)) / ((high + low) / cells)
