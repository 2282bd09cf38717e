"""Study 2, the claims: the figures that decide 2.1 to 2.6, from the tables.

Usage::

    verdicts = judge(auc, iou, larger(...), maps, figures_of_2_4, insertion, Bootstrap(1000, 0))

The rules are in ``data/claims.yml``. Where a rule speaks of the best or worst of several methods, which one that is is
decided anew in every replicate of the bootstrap.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xai_lib import claims, statistics
from xai_lib.results import Estimate, Verdict
from xai_lib.statistics import exact_share
from xai_lib.studies.mammograms.maps import PLAIN_BOXES
from xai_lib.studies.mammograms.variants import CHEAP, THE_SEVEN

SHAP, LIME, IG, OCCLUSION = "kernel_shap", "lime", "integrated_gradients", "occlusion"
REST = tuple(name for name in THE_SEVEN if name not in (SHAP, LIME, IG, OCCLUSION))  # not named by claim 2.2
FEW_PASSES = tuple(name for name in THE_SEVEN if name in CHEAP)  # explained on all images of claim 2.4
GROUPS = ("top quarter", "middle half", "bottom quarter", "false negatives")
FEWEST = 10  # images, below which claims 2.4 and 2.6 are not decided
COST_LEVELS = {"Integrated Gradients / Occlusion": 1.0, "Occlusion / Grad-CAM": 10.0}


@dataclass(frozen=True)
class Bootstrap:
    """Means with intervals over patients."""

    replicates: int
    seed: int

    def means(self, frame: pd.DataFrame, columns: list[str]) -> dict[str, Estimate]:
        """Mean of each column, NaN left out."""
        return self.of(lambda f: f[columns].mean(), frame)

    def by(
        self, frame: pd.DataFrame, unit: str, by: list[str], values: list[str], shares: tuple[str, ...] = ()
    ) -> pd.DataFrame:
        """Means of several values in several groups, all from one resampling: a row of estimates per group.

        Args:
            frame: one row per unit (an image) and group, with `patient_id`.
            unit: column that names the rows that belong together.
            by: columns that make the groups, in the order of which they come.
            values: columns to average; NaN is left out.
            shares: those of `values` that are shares: one of exactly 0 or 1 gets the exact interval.
        """
        order = frame[by].drop_duplicates()
        wide = frame.pivot(index=[unit, "patient_id"], columns=by, values=values)
        names: list[object] = list(wide.columns)
        flat = wide.set_axis(list(range(len(names))), axis=1)
        flat = flat.assign(patient_id=flat.index.get_level_values("patient_id")).reset_index(drop=True)
        columns = list(range(len(names)))
        found = self.of(lambda f: f[columns].mean(), flat)
        patients = {i: flat.loc[flat[i].notna(), "patient_id"].nunique() for i in columns}
        rows = []
        for group in order.itertuples(index=False, name=None):
            row = dict(zip(by, group, strict=True))
            for value in values:
                i = names.index((value, *group))
                row[value] = exact_share(found[str(i)], max(patients[i], 1)) if value in shares else found[str(i)]
            rows.append(row)
        return pd.DataFrame(rows)

    def of(self, statistic: Callable[[pd.DataFrame], pd.Series], frame: pd.DataFrame) -> dict[str, Estimate]:
        """Several statistics of one frame."""
        return statistics.bootstrap_many(statistic, frame, n=self.replicates, seed=self.seed)


def at(boxes: pd.DataFrame, rule: str, settings: Mapping[str, float] | float) -> pd.DataFrame:
    """Rows of a rule at one setting for all, or at each variant's own; boxes of `PLAIN_BOXES` are always there."""
    wanted = boxes["variant"].map(settings) if isinstance(settings, Mapping) else settings
    return boxes[((boxes["rule"] == rule) & np.isclose(boxes["setting"], wanted)) | (boxes["rule"] == "box")]


def larger(boxes: pd.DataFrame, settings: Mapping[str, float], facts: pd.DataFrame) -> pd.DataFrame:
    """Per image the share of the seven methods' boxes that are larger than the annotated one (claim 2.3).

    NaN where no method found a box. `facts` has one row per image, with its patient.
    """
    found = at(boxes, "union", settings)
    found = found[found["variant"].isin(THE_SEVEN) & found["ratio"].notna()]
    return facts.join((found["ratio"] > 1).groupby(found["image"]).mean().rename("larger"))


def groups(
    maps: pd.DataFrame, boxes: pd.DataFrame, settings: Mapping[str, float], many: Bootstrap
) -> tuple[pd.DataFrame, dict[str, Estimate]]:
    """Claim 2.4: true positives by their score, and false negatives.

    Returns:
        One row per group and method, and the deciding differences, of the mean over `FEW_PASSES`.
    """
    score = maps.drop_duplicates("image").set_index("image")["score"]
    true = score[score > 0].sort_values(ascending=False).index
    quarter = len(true) // 4
    group = pd.Series("false negatives", index=score.index)
    group[true] = "middle half"
    group[true[:quarter]], group[true[len(true) - quarter :]] = "top quarter", "bottom quarter"
    union = at(boxes, "union", settings)[["image", "variant", "iou", "components"]]
    frame = maps[["image", "patient_id", "variant", "hit"]].merge(union, on=["image", "variant"])
    frame["group"] = frame["image"].map(group)
    chance = maps[maps["variant"] == PLAIN_BOXES[0]].set_index("image")["hit"]
    frame["chance"] = frame["image"].map(chance)
    order = {name: place for place, name in enumerate((*THE_SEVEN, "grad_cam"))}
    known = frame[frame["variant"].isin(order)].sort_values(
        ["variant", "group"], key=lambda c: c.map(order if c.name == "variant" else GROUPS.index)
    )
    values = ["hit", "chance", "components", "iou"]
    table = many.by(known, "image", ["variant", "group"], values, shares=("hit",)).rename(columns={"variant": "map"})
    sizes = known.groupby(["variant", "group"]).size()
    table.insert(2, "images", [sizes[pair] for pair in zip(table["map"], table["group"], strict=True)])
    cheap = frame[frame["variant"].isin(FEW_PASSES)]
    mean = cheap.groupby(["image", "patient_id", "group"])[["hit", "components", "iou"]].mean().reset_index()
    mean["gain"] = mean["hit"] - mean["image"].map(chance)
    return table, _weak_groups(mean, many)


def _weak_groups(mean: pd.DataFrame, many: Bootstrap) -> dict[str, Estimate]:
    """The six figures of claim 2.4."""
    weak = {"bottom quarter": "low true positives", "false negatives": "false negatives"}

    def differences(f: pd.DataFrame) -> pd.Series:
        by = f.groupby("group")[["gain", "components", "iou"]].mean().reindex(GROUPS).to_dict("index")
        top, out = by["top quarter"], dict[str, float]()
        for which, name in weak.items():
            rest = by[which]
            out[f"hit - chance, {name}"] = rest["gain"]
            out[f"boxes, {name} - top"] = rest["components"] - top["components"]
            out[f"IOU, top - {name}"] = top["iou"] - rest["iou"]
        return pd.Series(out)

    found = many.of(differences, mean)
    missed = int((mean["group"] == "false negatives").sum())
    if missed < FEWEST:
        why = Estimate(np.nan, method=f"{missed} false negatives, at least {FEWEST} are asked for")
        found |= {name: why for name in found if "false negatives" in name}
    return found


def change(insertion: pd.DataFrame, contrast: float, value: str = "energy") -> pd.DataFrame:
    """After minus before, one row per image, one column per variant that was run at this contrast."""
    wide = {
        c: insertion[insertion["contrast"] == c].pivot(index="source", columns="variant", values=value)
        for c in (0.0, contrast)
    }
    gained = (wide[contrast] - wide[0.0]).dropna(axis=1, how="all")
    return gained.join(insertion.drop_duplicates("source").set_index("source")["patient_id"])


def judge(
    auc: Estimate,
    iou: pd.DataFrame,
    larger: pd.DataFrame,
    maps: pd.DataFrame,
    weak: Mapping[str, Estimate],
    insertion: pd.DataFrame,
    many: Bootstrap,
) -> dict[str, Verdict]:
    """Verdicts on claims 2.1 to 2.6, by the rules of ``data/claims.yml``.

    Args:
        auc: of the network.
        iou: per image and method, by the thesis's rule at each method's own quantile.
        larger: from the function of that name.
        maps: of the main test images, for the seconds.
        weak: the figures of claim 2.4, from `groups`.
        insertion: from `insertion.follow`.
        many: the bootstrap.
    """
    known = claims.load()

    def cost(f: pd.DataFrame) -> pd.Series:
        s = f[[IG, OCCLUSION, "grad_cam"]].mean()
        return pd.Series(dict(zip(COST_LEVELS, (s[IG] / s[OCCLUSION], s[OCCLUSION] / s["grad_cam"]), strict=True)))

    seconds = maps.pivot(index="image", columns="variant", values="seconds").join(
        maps.drop_duplicates("image").set_index("image")["patient_id"]
    )
    return judge_boxes(auc, iou, larger, many) | {
        "2.4": claims.decide(known["2.4"], weak),
        "2.5": claims.decide(known["2.5"], many.of(cost, seconds), COST_LEVELS),
        "2.6": claims.decide(known["2.6"], highlighted(insertion, many)),
    }


def judge_boxes(auc: Estimate, iou: pd.DataFrame, larger: pd.DataFrame, many: Bootstrap) -> dict[str, Verdict]:
    """Verdicts on claims 2.1 to 2.3, which any images with boxes can answer; arguments as for `judge`."""
    known = claims.load()

    def order(f: pd.DataFrame) -> pd.Series:
        mean = f[list(THE_SEVEN)].mean()
        best, worst, rest = mean[[IG, OCCLUSION]].min(), mean[[LIME, SHAP]].max(), mean[list(REST)]
        return pd.Series({"best two - rest": best - rest.max(), "rest - worst two": rest.min() - worst})

    share = exact_share(many.means(larger, ["larger"])["larger"], larger["patient_id"].nunique())
    return {
        "2.1": claims.decide(known["2.1"], {"auc": auc}),
        "2.2": claims.decide(known["2.2"], many.of(order, iou)),
        "2.3": claims.decide(known["2.3"], {"larger": share}, {"larger": 0.5}),
    }


def full_contrast(insertion: pd.DataFrame) -> float:
    """The highest contrast at which all methods were run."""
    return float(insertion.loc[(insertion["variant"] == SHAP) & (insertion["contrast"] > 0), "contrast"].max())


def highlighted(insertion: pd.DataFrame, many: Bootstrap) -> dict[str, Estimate]:
    """The figures of claim 2.6, at the highest contrast at which all methods were run.

    "most methods" is the third lowest of the six other methods' mean gains: above 0 where at least four of them are.
    """
    gained = change(insertion, full_contrast(insertion))
    others = [name for name in THE_SEVEN if name != SHAP]

    def most(f: pd.DataFrame) -> pd.Series:
        mean = f[others].mean().sort_values()
        return pd.Series({"most methods": mean.iloc[2], "most methods - SHAP": mean.iloc[2] - f[SHAP].mean()})

    if len(gained) < FEWEST:
        why = Estimate(np.nan, method=f"{len(gained)} images, at least {FEWEST} are asked for")
        return {"most methods": why, "most methods - SHAP": why}
    return many.of(most, gained)
