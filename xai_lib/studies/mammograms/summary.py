"""Study 2, the results: everything the notebook shows and the record keeps, from the tables.

Usage::

    result = summarise(found, test, replicates=1000, seed=0)     # found: mammogram_tables.tables(...); test: see there
    result.methods, result.pairs, result.sweep, result.verdicts
    records.make(..., figures=result.figures(), verdicts=result.verdicts, tables=result.tables())

All figures of test images are means over images with 95 % intervals from resampling patients. Settings (a quantile, or
a share of the peak) are chosen on validation images, for each method and rule its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from xai_lib import estimate_tables, paired_tests, statistics
from xai_lib.box_scores import THRESHOLDS, tpr_curve
from xai_lib.results import Estimate, Figure, Verdict
from xai_lib.studies.figures import named
from xai_lib.studies.mammograms.claims import (
    IG,
    LIME,
    OCCLUSION,
    SHAP,
    Bootstrap,
    at,
    groups,
    judge,
    larger,
)
from xai_lib.studies.mammograms.maps import DEFAULT, PLAIN_BOXES
from xai_lib.studies.mammograms.tables import Tables
from xai_lib.studies.mammograms.variants import ABLATIONS, CHEAP, MAIN, THE_SEVEN, VARIANTS

RULES = ("union", "separate", "component", "peak")


@dataclass(frozen=True)
class Summary:
    """All results of one network.

    `settings`: variant -> setting, for each rule. `methods`: one row per map or box of the main test images. `iou`: IOU
    per image (rows) and row of `methods` (columns), by the thesis's rule at each method's own quantile. `pairs`:
    differences between the seven. `sweep`: mean IOU over rule and setting. `tpr`: share of images whose IOU reaches a
    threshold. `groups`: claim 2.4. `costs`, `displacement`, `ablations`, `inserted`: as they say.
    """

    auc: Estimate
    settings: dict[str, dict[str, float]]
    methods: pd.DataFrame
    iou: pd.DataFrame
    pairs: pd.DataFrame
    sweep: pd.DataFrame
    tpr: pd.DataFrame
    groups: pd.DataFrame
    costs: pd.DataFrame
    displacement: pd.DataFrame
    ablations: pd.DataFrame
    inserted: pd.DataFrame
    verdicts: dict[str, Verdict]

    def figures(self) -> dict[str, Figure]:
        """Headline figures with their baselines."""
        iou, component = (named(self.methods, "map", column) for column in ("iou", "component"))
        controls = {name: estimate for name, estimate in iou.items() if name not in (*THE_SEVEN, *CHEAP)}
        out = {"auc": Figure(self.auc, baselines={"chance": Estimate(0.5)})}
        for name in THE_SEVEN:
            note = f"thesis's rule, quantile {self.settings['union'][name]:g} chosen on validation images"
            out[f"iou_{name}"] = Figure(iou[name], "mean IOU", controls, note)
        for name in THE_SEVEN:
            out[f"component_{name}"] = Figure(component[name], "mean IOU", note="region of the largest sum")
        return out

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Every table as plain rows."""
        names = ("methods", "pairs", "sweep", "tpr", "groups", "costs", "displacement", "ablations", "inserted")
        settings = [
            {"rule": rule, "map": name, "setting": s} for rule, m in self.settings.items() for name, s in m.items()
        ]
        return {name: estimate_tables.as_rows(getattr(self, name)) for name in names} | {"settings": settings}


def summarise(found: Tables, test: pd.DataFrame, replicates: int = 1000, seed: int = 0) -> Summary:
    """Compute every table, interval and verdict of the study.

    Args:
        found: the tables.
        test: one row per test image of both classes: label, score (log odds of malignant), patient_id.
        replicates: of the bootstrap over patients.
        seed: of the bootstrap.
    """
    many = Bootstrap(replicates, seed)
    maps, boxes = found.maps[found.maps["stage"] == "test"], found.boxes[found.boxes["stage"] == "test"]
    settings = {rule: choose(found.boxes[found.boxes["stage"] == "val"], rule) for rule in RULES}
    main = maps.loc[maps["variant"] == IG, "image"]
    maps_main, boxes_main = maps[maps["image"].isin(main)], boxes[boxes["image"].isin(main)]
    facts = maps_main.drop_duplicates("image").set_index("image")[["patient_id", "score"]]
    shown = [name for name in (*MAIN, *PLAIN_BOXES) if (maps_main["variant"] == name).any()]
    iou = at(boxes_main, "union", settings["union"]).pivot(index="image", columns="variant", values="iou")[shown]
    area = statistics.bootstrap(lambda f: statistics.auc(f["label"], f["score"]), test, n=replicates, seed=seed)
    grouped, parts = groups(maps, boxes, settings["union"], many)
    after = inserted(found.insertion, many)
    return Summary(
        auc=area,
        settings=settings,
        methods=_methods(maps_main, boxes_main, settings, shown, many),
        iou=iou.join(facts),
        pairs=pairs(iou.join(facts), many),
        sweep=sweep(boxes_main),
        tpr=_tpr(iou),
        groups=grouped,
        costs=_costs(maps_main, many),
        displacement=displacement(maps[maps["score"] > 0]),
        ablations=ablations(maps, boxes, settings["union"], many),
        inserted=after,
        verdicts=judge(
            area, iou.join(facts), larger(boxes_main, settings["union"], facts), maps_main, parts, found.insertion, many
        ),
    )


# ---------------------------------------------------------------------------------------- settings and IOU


def choose(boxes: pd.DataFrame, rule: str) -> dict[str, float]:
    """Each variant's setting with the highest mean IOU on these (validation) images; of equal ones the lowest.

    Variants that were not run on them take the setting of their method.
    """
    mean = boxes[boxes["rule"] == rule].groupby(["variant", "setting"])["iou"].mean().unstack()
    best = mean.idxmax(axis=1)
    return {name: float(best[v.method]) for name, v in VARIANTS.items() if v.method in best.index} | {
        str(name): float(best[name]) for name in best.index
    }


def sweep(boxes: pd.DataFrame) -> pd.DataFrame:
    """Mean IOU over rule, setting and variant, and `place`: 1 for the best of the thesis's seven."""
    mean = boxes[boxes["rule"] != "box"].groupby(["rule", "setting", "variant"])["iou"].mean().reset_index()
    seven = mean[mean["variant"].isin(THE_SEVEN)]
    place = seven.groupby(["rule", "setting"])["iou"].rank(ascending=False, method="min")
    return mean.assign(place=place)


def pairs(iou: pd.DataFrame, many: Bootstrap) -> pd.DataFrame:
    """All pairs of the seven methods: mean difference, p by permutation of patients' means, p after Holm."""
    names = list(combinations(THE_SEVEN, 2))
    gaps = pd.DataFrame({f"{a} - {b}": iou[a] - iou[b] for a, b in names}).assign(patient_id=iou["patient_id"])
    found = many.means(gaps, [f"{a} - {b}" for a, b in names])
    by_patient = gaps.groupby("patient_id").mean()
    p = [paired_tests.paired_permutation(by_patient[c], 0 * by_patient[c], 2000, many.seed) for c in by_patient]
    rows = [{"first": a, "second": b, "difference": found[f"{a} - {b}"]} for a, b in names]
    return pd.DataFrame(rows).assign(p=p, p_holm=paired_tests.holm(p))


def _tpr(iou: pd.DataFrame) -> pd.DataFrame:
    """Fig. 6: one column per map, one row per IOU threshold."""
    curves = {name: tpr_curve(iou[name]) for name in iou if name != "random box"}  # that one is a mean of 100
    return pd.DataFrame({"threshold": THRESHOLDS, **curves})


def _methods(
    maps: pd.DataFrame,
    boxes: pd.DataFrame,
    settings: Mapping[str, Mapping[str, float]],
    shown: list[str],
    many: Bootstrap,
) -> pd.DataFrame:
    """One row per map: IOU by every rule at its own setting, and what needs no box."""
    index = ["image", "variant"]
    union = at(boxes, "union", settings["union"]).set_index(index)
    frame = union[["iou", "chance"]].assign(larger=(union["ratio"] > 1).astype(float).where(union["ratio"].notna()))
    frame["no box"] = union["ratio"].isna().astype(float)
    frame[f"iou at {DEFAULT}"] = at(boxes, "union", DEFAULT).set_index(index)["iou"]
    for rule in RULES[1:]:
        frame[rule] = at(boxes, rule, settings[rule]).set_index(index)["iou"]
    frame = frame.join(maps.set_index(index)[["hit", "energy", "patient_id"]])
    values = ["iou", f"iou at {DEFAULT}", *RULES[1:], "chance", "larger", "no box", "hit", "energy"]
    long = frame.reset_index()
    long = long[long["variant"].isin(shown)].sort_values("variant", key=lambda c: c.map(shown.index), kind="stable")
    out = many.by(long, "image", ["variant"], values, shares=("larger", "no box", "hit")).rename(
        columns={"variant": "map"}
    )
    out.insert(1, "quantile", [settings["union"].get(name, np.nan) for name in out["map"]])
    return out


# ---------------------------------------------------------------------------------------- groups, costs, displacement


def _costs(maps: pd.DataFrame, many: Bootstrap) -> pd.DataFrame:
    """Claim 2.5: passes and seconds of every method on one image."""
    wide = maps.pivot(index="image", columns="variant", values="seconds").join(
        maps.drop_duplicates("image").set_index("image")["patient_id"]
    )
    names = [name for name in (THE_SEVEN | CHEAP) if name in wide]
    seconds = many.means(wide, names)
    passes = maps.groupby("variant")[["forward", "backward"]].mean()
    rows = [{"map": n, **passes.loc[n].to_dict(), "seconds": seconds[n]} for n in names]
    return pd.DataFrame(rows)


def displacement(maps: pd.DataFrame) -> pd.DataFrame:
    """Median place of the peak minus the lesion's centre, rows and columns in pixels, of images called malignant.

    A displaced map has its median off zero and a small spread (median distance from the median), a lost one a large
    spread.
    """
    rows = []
    for name in [n for n in MAIN if (maps["variant"] == n).any()]:
        part = maps[maps["variant"] == name].dropna(subset=["off_row"])
        if not len(part):
            continue
        middle = part[["off_row", "off_col"]].median()
        spread = (part[["off_row", "off_col"]] - middle).abs().median()
        facts = {"map": name, "images": len(part), "rows": middle["off_row"], "cols": middle["off_col"]}
        rows.append(facts | {"spread_rows": spread["off_row"], "spread_cols": spread["off_col"]})
    return pd.DataFrame(rows)


def ablations(maps: pd.DataFrame, boxes: pd.DataFrame, settings: Mapping[str, float], many: Bootstrap) -> pd.DataFrame:
    """Fills of occlusion, segments, seeds and samples beside the thesis's choice, on the same images.

    `iou` is at the quantile of the method's thesis variant, "best iou" at the best quantile on these images themselves:
    too good by construction, but the same for all.
    """
    images = maps.loc[maps["variant"] == next(iter(ABLATIONS)), "image"]
    if not len(images):
        return pd.DataFrame()
    mine = maps[maps["image"].isin(images)]
    union = at(boxes[boxes["image"].isin(images)], "union", settings)
    names = [OCCLUSION, *(n for n, v in ABLATIONS.items() if v.method == OCCLUSION)]
    names += [n for m in (LIME, SHAP) for n in (m, *(k for k, v in ABLATIONS.items() if v.method == m))]
    frame = mine.merge(union[["image", "variant", "iou"]], on=["image", "variant"])
    frame = frame[frame["variant"].isin(names)].sort_values("variant", key=lambda c: c.map(names.index), kind="stable")
    table = many.by(frame, "image", ["variant"], ["iou", "hit", "energy", "like"]).rename(columns={"variant": "map"})
    best = boxes[boxes["image"].isin(images) & (boxes["rule"] == "union")].groupby(["variant", "setting"])["iou"].mean()
    table.insert(2, "best iou", [best[name].max() for name in table["map"]])
    return table.assign(images=len(images), compared_with=[VARIANTS[name].reference for name in table["map"]])


# ---------------------------------------------------------------------------------------- the inserted lesion, claims


def inserted(insertion: pd.DataFrame, many: Bootstrap) -> pd.DataFrame:
    """One row per variant and contrast (0: before): score, share of the map in the box, rank, and the gain of share."""
    before = insertion[insertion["contrast"] == 0].set_index(["source", "variant"])["energy"].rename("before")
    frame = insertion.join(before, on=["source", "variant"])
    frame["gain"] = (frame["energy"] - frame["before"]).where(frame["contrast"] > 0)
    values = ["score", "energy", "gain", "rank", "hit"]
    return many.by(frame, "source", ["contrast", "variant"], values).rename(columns={"variant": "map"})
