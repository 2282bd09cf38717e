"""Study 1, the results: both networks compared, and claims 1.1 to 1.4 as numbers with intervals and chance levels.

Usage::

    result = summarise(build_tables(ready, runtime()), replicates=1000, seed=0)
    result.maps["overlap"]["median of methods"]      # top decile inside the lesion minus the lesion's share of the area
    records.make(..., figures=result.figures(), verdicts=result.verdicts, tables=result.tables())

A patch is called malignant where the log odds are above 0 (the softmax above 0.5). True negatives are normal patches,
as in the thesis, whose negative class has no lesions. "Most methods" is read as the median over methods, taken in every
replicate of the bootstrap. All intervals are 95 % and come from resampling patients.

Reference: Sam-Millan et al. 2023, sections 3.2.2, 4.1 and 5.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import claims, estimate_tables, statistics
from xai_lib.results import Estimate, Figure, Verdict
from xai_lib.studies.patches.maps import Tables
from xai_lib.studies.patches.scores import AGAINST, compare, intervention
from xai_lib.studies.verdicts import negative, shifted

Array = NDArray[np.float64]
Estimates = dict[str, dict[str, Estimate]]  # by figure, then by method (or pair) and over all of them
MEDIAN, MEAN = "median of methods", "mean of pairs"
SPREAD = ("entropy", "gini", "effective_area")
ALIKE = ("correlation", "rank_correlation", "absolute_rank_correlation", "top_overlap")
CENTRAL = Estimate(0.25, method="area of the central quarter")

GROUPS = {  # group of patches, set
    "tp": ("TP", "centred"),
    "tn": ("TN", "centred"),
    "twin": ("TP", "twin"),
    "untrained_tp": ("TP", "untrained"),
    "untrained_tn": ("TN", "untrained"),
}
LEVELS: dict[str, tuple[str, str, str]] = {  # figure: group of patches, set, measure
    "area": ("TP", "centred", "area"),
    "top": ("TP", "centred", "top_lesion"),
    "top_twin": ("TP", "twin", "top_lesion"),
    "top_untrained": ("TP", "untrained", "top_lesion"),
    "energy": ("TP", "centred", "energy_lesion"),
    "energy_twin": ("TP", "twin", "energy_lesion"),
    "energy_untrained": ("TP", "untrained", "energy_lesion"),
    **{f"{m}_{name}": (*where, m) for m in SPREAD for name, where in GROUPS.items()},
    **{
        f"{m}{name}": (*where, m)
        for m in ("central", "peak_centre", "peak_lesion")
        for name, where in {
            "": ("malignant", "centred"),
            "_twin": ("malignant", "twin"),
            "_shifted": ("malignant", "shifted"),
            "_untrained": ("malignant", "untrained"),
            "_tn": ("TN", "centred"),
        }.items()
    },
    "shifted_lesion": ("malignant", "shifted", "top_lesion"),
    "shifted_middle": ("malignant", "shifted", "top_middle"),
}
DIFFERENCES: dict[str, tuple[str, str]] = {  # the first minus the second, patch by patch where both have the same group
    "overlap": ("top", "area"),
    "overlap_untrained": ("top_untrained", "area"),
    "overlap_over_twin": ("top", "top_twin"),
    "energy_over_area": ("energy", "area"),
    **{f"{m}_tn-tp": (f"{m}_tn", f"{m}_tp") for m in SPREAD},
    **{f"{m}_twin-tp": (f"{m}_twin", f"{m}_tp") for m in SPREAD},
    **{f"{m}_untrained_tn-tp": (f"{m}_untrained_tn", f"{m}_untrained_tp") for m in SPREAD},
    "central_over_twin": ("central", "central_twin"),
    "follows": ("shifted_lesion", "shifted_middle"),
}
PAIR_LEVELS = {f"{m}_{name}": (*where, m) for m in ALIKE for name, where in GROUPS.items()}
PAIR_DIFFERENCES = {
    f"{m}_{name}": (f"{m}_{a}", f"{m}_{b}")
    for m in ALIKE
    for name, (a, b) in {
        "tp-tn": ("tp", "tn"),
        "tp-twin": ("tp", "twin"),
        "untrained_tp-tn": ("untrained_tp", "untrained_tn"),
    }.items()
}


@dataclass(frozen=True)
class Summary:
    """All results. `networks` has one row per network and kind of negatives, `difference` their paired differences.

    `intervention` says what the networks do with shifted lesions and healthy twins, `maps` and `pairs` hold the figures
    of `LEVELS`, `DIFFERENCES` and their like for pairs, by method and over all. `gaps` is the incompleteness of IG and
    DeepLIFT, `sanity` the cascading randomisation, `counts` the measured patches by group and the maps without mass.
    """

    networks: pd.DataFrame
    difference: dict[str, Estimate]
    intervention: pd.DataFrame
    maps: Estimates
    pairs: Estimates
    gaps: pd.DataFrame
    sanity: pd.DataFrame
    counts: dict[str, int]
    verdicts: dict[str, Verdict]

    def figures(self) -> dict[str, Figure]:
        """Headline figures with their baselines."""
        out = {}
        for _, row in self.networks[self.networks["against"] == "normal"].iterrows():
            out[f"auc_{row['network']}"] = Figure(row["auc"], baselines={"chance": Estimate(0.5)})
            out[f"accuracy_{row['network']}"] = Figure(row["accuracy"], baselines={"one class": row["one class"]})
        for against in AGAINST:
            name = "accuracy_difference" + ("" if against == "normal" else f"_{against}")
            out[name] = Figure(self.difference[f"accuracy, {against}"], note=f"against {against} negatives, paired")
        maps = {name: found[MEDIAN] for name, found in self.maps.items()}
        beside = {"healthy twin": "twin", "untrained network": "untrained"}
        for name in ("top", "energy"):
            levels = {key: maps[f"{name}_{end}"] for key, end in beside.items()}
            out[f"{name}_in_lesion"] = Figure(maps[name], MEDIAN, {"area of the lesion": maps["area"], **levels})
        out["entropy_tn_minus_tp"] = Figure(
            maps["entropy_tn-tp"], MEDIAN, {"untrained network": maps["entropy_untrained_tn-tp"]}
        )
        out["entropy_twin_minus_tp"] = Figure(maps["entropy_twin-tp"], MEDIAN)
        pairs = {name: found[MEAN] for name, found in self.pairs.items()}
        for group in ("tp", "tn"):
            level = {"untrained network": pairs[f"correlation_untrained_{group}"]}
            out[f"correlation_{group}"] = Figure(pairs[f"correlation_{group}"], MEAN, level)
        levels = {key: maps[f"central_{end}"] for key, end in {**beside, "shifted lesion": "shifted"}.items()}
        out["central_share"] = Figure(maps["central"], MEDIAN, {"even map": CENTRAL, **levels})
        out["shifted_top_in_lesion"] = Figure(
            maps["shifted_lesion"], MEDIAN, {"same area in the middle": maps["shifted_middle"]}
        )
        return out

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Every table as plain rows."""
        frames = {name: getattr(self, name) for name in ("networks", "intervention", "gaps", "sanity")}
        frames["difference"] = pd.DataFrame([{"figure": k, "difference": e} for k, e in self.difference.items()])
        frames["maps"] = as_frame(self.maps).rename_axis("method").reset_index()
        frames["pairs"] = as_frame(self.pairs).rename_axis("pair").reset_index()
        out = {name: estimate_tables.as_rows(frame) for name, frame in frames.items()}
        return {**out, "counts": [dict(self.counts)]}


def summarise(tables: Tables, replicates: int = 1000, seed: int = 0) -> Summary:
    """Compute every figure, interval and verdict of the study.

    Args:
        tables: from `maps.build_tables`.
        replicates: of the bootstrap over patients.
        seed: of the bootstrap.
    """
    networks, difference = compare(tables.scores, replicates, seed)
    pairs = tables.pairs.assign(pair=tables.pairs["first"] + " / " + tables.pairs["second"])
    unsigned = (pairs["first"] == "saliency") | (pairs["second"] == "saliency")
    pairs["correlation"] = pairs["absolute_rank_correlation"].where(unsigned, pairs["rank_correlation"])
    called = calls(tables.maps)
    of_maps = estimates(tables.maps, "method", called, LEVELS, DIFFERENCES, (MEDIAN, np.nanmedian), replicates, seed)
    of_pairs = estimates(pairs, "pair", called, PAIR_LEVELS, PAIR_DIFFERENCES, (MEAN, np.nanmean), replicates, seed)
    return Summary(
        networks=networks,
        difference=difference,
        intervention=intervention(tables.scores, replicates, seed),
        maps=of_maps,
        pairs=of_pairs,
        gaps=_gaps(tables.maps),
        sanity=tables.sanity.groupby(["method", "step", "layer"], sort=True).mean(numeric_only=True).reset_index(),
        counts=_counts(tables.maps, called),
        verdicts=judge(difference, of_maps, of_pairs),
    )


def as_frame(found: Estimates, names: Sequence[str] = ()) -> pd.DataFrame:
    """Estimates as a table: a row per method (or pair), a column per figure; all figures where `names` is empty."""
    return pd.DataFrame({name: pd.Series(found[name], dtype=object) for name in names or found})


def calls(maps: pd.DataFrame) -> pd.Series:
    """Group of every centred patch by its index: TP, TN (normal), TN benign, FN or FP."""
    centred = maps[maps["set"] == "centred"].drop_duplicates("index").set_index("index")
    sick, called = centred["label"] == 1, centred["score"] > 0
    names = np.select([sick & called, sick, called], ["TP", "FN", "FP"], "TN")
    return pd.Series(names, centred.index).where((names != "TN") | (centred["kind"] != "benign"), "TN benign")


def estimates(
    table: pd.DataFrame,
    by: str,
    called: pd.Series,
    levels: Mapping[str, tuple[str, str, str]],
    differences: Mapping[str, tuple[str, str]],
    over: tuple[str, Callable[..., Array]],
    n: int = 1000,
    seed: int = 0,
) -> Estimates:
    """Means of measures over groups of patches, their differences, and both over all methods.

    Args:
        table: a row per patch (index, patient_id), set and `by`, with the measures as columns.
        by: "method" or "pair".
        called: from `calls`; the group "malignant" is TP and FN.
        levels: by name of the figure, group of patches, set and measure.
        differences: by name, two levels: first minus second, within each patch where the groups are the same.
        over: name and function of the figure over all methods.
        n: replicates.
        seed: of the bootstrap.

    Returns:
        By figure and method. NaN values (a map without mass) are left out; a figure without any is NaN.
    """
    names, (whole, reduce) = list(dict.fromkeys(table[by])), over
    patients = table.drop_duplicates("index").set_index("index")["patient_id"].reindex(called.index)
    values = {name: _level(table, by, names, called, level) for name, level in levels.items()}
    paired = [name for name, (a, b) in differences.items() if levels[a][0] == levels[b][0]]
    values |= {name: values[differences[name][0]] - values[differences[name][1]] for name in paired}
    stack = np.stack(list(values.values()), axis=1)  # (patches, figures, methods)
    known, filled, place = ~np.isnan(stack), np.nan_to_num(stack), {name: k for k, name in enumerate(values)}
    unpaired = [name for name in differences if name not in paired]
    pick = np.array([[place[a] for a in differences[name]] for name in unpaired], int).reshape(-1, 2)

    def statistic(frame: pd.DataFrame) -> pd.Series:
        rows = frame["row"].to_numpy()
        with np.errstate(invalid="ignore"):
            means = filled[rows].sum(0) / known[rows].sum(0)  # (figures, methods)
        means = np.concatenate([means, means[pick[:, 0]] - means[pick[:, 1]]])
        return pd.Series(np.column_stack([means, reduce(means, axis=1)]).ravel())

    frame = pd.DataFrame({"patient_id": patients.to_numpy(), "row": np.arange(len(called))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a figure without any value is NaN
        made = list(statistics.bootstrap_many(statistic, frame, n=n, seed=seed).values())
    figures, width = [*values, *unpaired], len(names) + 1
    return {
        figure: dict(zip([*names, whole], made[k * width : (k + 1) * width], strict=True))
        for k, figure in enumerate(figures)
    }


def _level(table: pd.DataFrame, by: str, names: Sequence[str], called: pd.Series, level: tuple[str, str, str]) -> Array:
    """Values (patches, methods) of one level, NaN outside its group."""
    group, which, measure = level
    part = table[table["set"] == which].pivot(index="index", columns=by, values=measure)
    inside = called.isin(["TP", "FN"]) if group == "malignant" else called == group
    return part.reindex(index=called.index, columns=list(names)).where(inside, axis=0).to_numpy(float)


def _gaps(maps: pd.DataFrame) -> pd.DataFrame:
    """Median, 90 % quantile and largest completeness gap of the methods that promise it, on centred patches."""
    part = maps[(maps["set"] == "centred") & maps["gap"].notna()]
    known = {name: rows["gap"].to_numpy() for name, rows in part.groupby("method", sort=False)}
    shares = {"median": 0.5, "90 %": 0.9, "largest": 1.0}
    return pd.DataFrame(
        [{"method": name, **{k: float(np.quantile(gap, q)) for k, q in shares.items()}} for name, gap in known.items()]
    )


def _counts(maps: pd.DataFrame, called: pd.Series) -> dict[str, int]:
    """Patches of each group, and maps without mass."""
    groups = {name: int((called == name).sum()) for name in ("TP", "FN", "TN", "TN benign", "FP")}
    return {**groups, "maps": len(maps), "maps without mass": int(maps["central"].isna().sum())}


def judge(difference: Mapping[str, Estimate], maps: Estimates, pairs: Estimates) -> dict[str, Verdict]:
    """Verdicts on claims 1.1 to 1.4, by the rules of ``data/claims.yml``."""
    known = claims.load()
    low = {name: shifted(negative(pairs[f"correlation_{name}tp"][MEAN]), 0.5) for name in ("", "untrained_")}
    drop = {name: pairs[f"correlation_{name}tp-tn"][MEAN] for name in ("", "untrained_")}
    return {
        "1.1": claims.decide(known["1.1"], {"accuracy": difference["accuracy, normal"]}),
        "1.2": claims.decide(
            known["1.2"],
            {"overlap - area": maps["overlap"][MEDIAN], "entropy TN - TP": maps["entropy_tn-tp"][MEDIAN]},
            {
                "overlap - area": maps["overlap_untrained"][MEDIAN],
                "entropy TN - TP": maps["entropy_untrained_tn-tp"][MEDIAN],
            },
        ),
        "1.3": claims.decide(
            known["1.3"],
            {"0.5 - correlation on TP": low[""], "correlation TP - TN": drop[""]},
            {"0.5 - correlation on TP": low["untrained_"], "correlation TP - TN": drop["untrained_"]},
        ),
        "1.4": claims.decide(known["1.4"], {"central share": maps["central"][MEDIAN]}, {"central share": CENTRAL}),
    }
