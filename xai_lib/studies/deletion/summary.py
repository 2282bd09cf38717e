"""Study 5, the results: inpainting and the smallest deletion region (SDR), as figures with intervals beside controls.

Usage::

    result = summarise(scores, masks, pixels, diagonal_px=math.hypot(320, 160))
    result.methods                                           # Tabs. 1 and 2, with every comparator and chance row
    records.make(..., figures=result.figures(), verdicts=result.verdicts, tables=result.tables())

Means are over images, intervals from a bootstrap over patients, comparisons paired on the same images. An empty result
mask has no D, H, A, components or share of anything: it is counted, and left out of the mean. Beside D and H stands
"D penalty" and "H penalty", where an empty mask takes the image's diagonal. A variant that was not run has no row.

Reference: Major et al. 2020, sections 3 and 4, Tabs. 1 and 2, Fig. 2.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xai_lib import statistics
from xai_lib.results import Estimate, Figure, Verdict
from xai_lib.studies.deletion import comparisons
from xai_lib.studies.deletion.claims import MAPS, OURS, judge
from xai_lib.studies.deletion.comparisons import ABLATED, CHANCE, patients, wide
from xai_lib.studies.figures import figure_of, frames_as_rows, named
from xai_lib.studies.resampling import Array, auc_of, mean_of, resampled
from xai_lib.studies.verdicts import find

TISSUES = ("none", "healthy", "mass", "twin")
COMPARATORS = ("RISE 90", "meaningful", "extremal")
SWEEP = "lambda2 "  # and the value
GRIDS = ("grid pixel", "grid 8", "grid 16")
STARTS = ("start 1", "start 2")
VARIANTS = (OURS, *MAPS, *COMPARATORS, ABLATED, *GRIDS, *STARTS, "printed", "soft", "rate 0.002", *CHANCE)
FILLS = ("original", "inpainting", "blur", "noise", "grey", "mean of the rim", "twin")
MEANS = (
    "D", "H", "D_mm", "H_mm", "D penalty", "H penalty", "A", "over", "components", "hit", "circumference", "shifted",
    "circumference gain", "O", "healthy after",
)  # fmt: skip
BAND = ["variant", "images", "empty", "circumference", "shifted", "gain"]


def _in_order(there: Iterable[str], order: Sequence[str]) -> list[str]:
    """Names in the given order, others behind."""
    return [name for name in order if name in set(there)] + sorted(set(there) - set(order))


def _sd(values: Array) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


# ---------------------------------------------------------------------------------------- tables


def areas(scores: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Fig. 2, claim 5.1: AUC by the tissue that was inpainted.

    AUC is averaged over the runs, `sd` is over the runs, `change` is against "none" on the same images. Where the mass
    is inpainted, or its twin shown, images without a mass keep their logit of "none".
    """
    before = scores[scores["tissue"] == "none"].set_index("case")
    rows = []
    for tissue in TISSUES:
        runs = scores[scores["tissue"] == tissue].pivot(index="case", columns="run", values="logit")
        logits = runs.reindex(before.index)
        if tissue in ("mass", "twin"):
            logits = logits.apply(lambda run: run.where(before["label"] == 1, before["logit"]))
        logits = logits.assign(before=before["logit"]).dropna()
        if not len(runs) or not len(logits):
            continue
        auc = auc_of(logits.to_numpy(float), before.loc[logits.index, "label"], np.zeros(len(logits)))

        def both(weights: Array, auc: Callable[[Array], Array] = auc) -> Array:
            *of_runs, reference = auc(weights)
            return np.array([np.mean(of_runs), np.mean(of_runs) - reference])

        area, change = resampled(both, before.loc[logits.index, "patient_id"], n, seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = _sd(auc(np.ones(len(logits)))[:-1])
        head = {"tissue": tissue, "images": len(logits), "runs": runs.shape[1]}
        rows.append(head | {"auc": area, "sd": spread, "change": change})
    return pd.DataFrame(rows)


def methods(masks: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Tabs. 1 and 2: a row for each variant with the means of `MEANS`; `masks` is `comparisons.prepared`.

    Counts: images, empty, skipped. Plain numbers: sd over images and median of D, H and A.
    """
    if not len(masks):
        return pd.DataFrame()
    names = _in_order(masks["variant"], VARIANTS)
    values = wide(masks, [(column, name) for column in MEANS for name in names]).to_numpy()
    found = resampled(mean_of(values), patients(masks), n, seed).reshape(len(MEANS), len(names))
    rows = []
    for k, name in enumerate(names):
        own = masks[masks["variant"] == name]
        row: dict[str, object] = {"variant": name, "images": len(own)}
        row |= {count: int(own[count].sum()) for count in ("empty", "skipped")}
        row |= dict(zip(MEANS, found[:, k], strict=True))
        called = own.loc[own["healthy after"].notna(), "patient_id"].nunique()
        row["healthy after"] = statistics.exact_share(found[MEANS.index("healthy after"), k], max(called, 1))
        for column in ("D", "H", "A"):
            known = own[column].dropna().to_numpy(float)
            row |= {f"{column}_sd": _sd(known), f"{column}_median": float(np.median(known)) if len(known) else math.nan}
        rows.append(row)
    return pd.DataFrame(rows)


def settings(masks: pd.DataFrame, names: Sequence[str], own: str, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`methods` of the variants `names`, with SDR in the place of `own`, over the images that all of them have."""
    there = set(masks["variant"]) & set(names)
    if not there:
        return pd.DataFrame()
    part = masks[masks["variant"].isin([*there, *({OURS} if own not in there else ())])]
    part = part.assign(variant=part["variant"].replace(OURS, own))
    every = part.groupby("case")["variant"].transform("size") == part["variant"].nunique()
    return methods(part[every], n, seed)


def filled(pixels: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """What fills a hole: a row for each hole and fill, the controls of the paper's first argument.

    `error` inside the hole; `signed_shift`, the logit minus that of the healthy twin, and `shift`, its absolute value;
    `distance` of the features and `distance_gain` over that of the original; `error_ratio`, the mean error of
    inpainting over this one.
    """
    if not len(pixels):
        return pd.DataFrame()
    references = {"twin": ("logit", "twin"), "real": ("distance", "original"), "ours": ("error", FILLS[1])}
    for name, (column, fill) in references.items():
        of_fill = pixels.loc[pixels["fill"] == fill, ["case", "hole", column]]
        pixels = pixels.merge(of_fill.rename(columns={column: name}), on=["case", "hole"], how="left")
    pixels["signed_shift"] = pixels["logit"] - pixels["twin"]
    pixels["shift"] = pixels["signed_shift"].abs()
    pixels["distance_gain"] = pixels["distance"] - pixels["real"]
    columns = ["error", "signed_shift", "shift", "distance", "distance_gain", "ours"]
    images = pixels.groupby(["hole", "fill"]).size()
    order = [(hole, fill) for hole in dict.fromkeys(pixels["hole"]) for fill in _in_order(pixels["fill"], FILLS)]
    groups = [group for group in order if group in images.index]
    values = pixels.pivot(index="case", columns=["hole", "fill"], values=columns).astype(float)
    of = [mean_of(values[[(column, *group) for group in groups]].to_numpy()) for column in columns]

    def figures(weights: Array) -> Array:
        *plain, ours = (mean(weights) for mean in of)
        return np.stack([*plain, np.where(plain[0] > 0, ours / plain[0], np.nan)])

    found = resampled(figures, patients(pixels), n, seed)
    heads = [{"hole": hole, "fill": fill, "images": int(images[hole, fill])} for hole, fill in groups]
    names = [*columns[:-1], "error_ratio"]
    return pd.DataFrame([head | dict(zip(names, found[:, k], strict=True)) for k, head in enumerate(heads)])


# ---------------------------------------------------------------------------------------- everything


@dataclass(frozen=True, eq=False)
class Summary:
    """All results, one frame each, empty where nothing of it was run, and the verdicts.

    `auc` is made by `areas`, `methods` by `methods`, `sweep` and `grids` by `settings`, `fills` by `filled`. By
    `comparisons`: `pairs`, the maps minus SDR; `overlaps`, SAL minus CAM in O; `ablation`, without the shape
    terms minus SDR; `starts`, other starts minus SDR in D, and their O; `chance`, SDR minus each chance row.
    `circumference` is the share of every mask around the contour, the same for the mask moved at random (`shifted`),
    and `gain`.
    """

    auc: pd.DataFrame
    methods: pd.DataFrame
    pairs: pd.DataFrame
    overlaps: pd.DataFrame
    ablation: pd.DataFrame
    sweep: pd.DataFrame
    grids: pd.DataFrame
    starts: pd.DataFrame
    chance: pd.DataFrame
    fills: pd.DataFrame
    circumference: pd.DataFrame
    verdicts: dict[str, Verdict]

    def figures(self) -> dict[str, Figure]:
        """Headline figures with their baselines."""
        out: dict[str, Figure] = {}
        areas, changes = (named(self.auc, "tissue", column) for column in ("auc", "change"))
        for name in areas:
            beside = {"chance": Estimate(0.5)} | {k: areas[k] for k in ("none", "twin") if k in areas and k != name}
            out[f"auc_{name}"] = Figure(areas[name], baselines=beside)
        for name in [name for name in changes if name != "none"]:
            out[f"change_{name}"] = figure_of(changes, name, ("healthy" if name != "healthy" else "mass", "twin"))
        return out | self._of_masks() | self._of_fills()

    def _of_masks(self) -> dict[str, Figure]:
        """Figures of SDR, with the comparators and chance rows."""
        out, others = {}, (*MAPS, *COMPARATORS, ABLATED, *CHANCE)
        units = {"D": "pixels", "H": "pixels", "A": "share of the breast", "hit": "share of the mask"}
        units |= {"D penalty": "pixels", "H penalty": "pixels", "healthy after": "share of images called a mass"}
        for column, unit in units.items():
            rows = named(self.methods, "variant", column)
            if OURS in rows:
                out[_plain(f"{column}_sdr")] = figure_of(rows, OURS, others, unit=unit)
        for own in self.methods.to_dict("records"):
            if own["variant"] == OURS:
                note = f"of {own['images']} images, {own['skipped']} of them not called a mass"
                out["empty_sdr"] = Figure(Estimate(float(own["empty"])), "masks", note=note)
        for _, row in self.overlaps.iterrows():
            beside = {"CAM": row["second_mean"], "SAL": row["first_mean"]}
            out[f"overlap_{row['percentile']}"] = Figure(row["difference"], "overlap coefficient, SAL - CAM", beside)
        gains = named(self.circumference, "variant", "gain")
        if OURS in gains:
            out["circumference_gain"] = figure_of(gains, OURS, (*MAPS, *COMPARATORS, *CHANCE))
        return out

    def _of_fills(self) -> dict[str, Figure]:
        """Figures of inpainting in the mass, with the other fills."""
        rows = self.fills[self.fills["hole"] == "mass"] if len(self.fills) else self.fills
        out, others = {}, [fill for fill in FILLS if fill not in (FILLS[1], "twin")]
        for name, column in {"oracle_gap": "shift", "error": "error", "distance_gain": "distance_gain"}.items():
            found = named(rows, "fill", column)
            if FILLS[1] in found:
                out[f"{name}_mass"] = figure_of(found, FILLS[1], others)
        ratios = named(rows, "fill", "error_ratio")
        if "blur" in ratios:
            out["error_ratio_blur"] = figure_of(ratios, "blur", FILLS[3:6], unit="inpainting / blur")
        return out

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Every table that is there, as plain rows."""
        return frames_as_rows(self)


def summarise(
    scores: pd.DataFrame,
    masks: pd.DataFrame,
    pixels: pd.DataFrame,
    diagonal_px: float,
    grid: str = "8",
    lambda2: float = 0.1,
    replicates: int = 1000,
    seed: int = 0,
) -> Summary:
    """Compute every figure, interval and verdict of the study.

    Args:
        scores: case, patient_id, label, tissue (`TISSUES`), run, logit.
        masks: case, patient_id, variant (`VARIANTS`), pixel_mm, score, after, skipped, `measures.measure`'s
            columns, over, O.
        pixels: case, patient_id, hole, fill (`FILLS`), error, logit, distance.
        diagonal_px: of the image, what an empty mask takes as its D and H where it is not left out.
        grid: side of SDR's mask cells, "pixel" or a number of pixels.
        lambda2: of SDR.
        replicates: of the bootstrap over patients.
        seed: of the bootstrap.
    """
    many = {"n": replicates, "seed": seed}
    masks = comparisons.prepared(masks, diagonal_px)
    auc, table, pairs = areas(scores, **many), methods(masks, **many), comparisons.against_maps(masks, **many)
    overlaps, ablation = comparisons.overlaps(masks, **many), comparisons.ablation(masks, **many)
    starts = comparisons.differences(masks, [("D", name, OURS) for name in STARTS], **many)
    around = table.rename(columns={"circumference gain": "gain"}).reindex(columns=BAND)
    swept = {name for name in masks["variant"] if name.startswith(SWEEP)} | {f"{SWEEP}{lambda2:g}"}
    values = sorted(swept, key=lambda name: float(name.removeprefix(SWEEP)))
    sweep = settings(masks, values, f"{SWEEP}{lambda2:g}", **many)
    grids = settings(masks, GRIDS, f"grid {grid}", **many)
    return Summary(
        auc=auc,
        methods=table,
        pairs=pairs,
        overlaps=overlaps,
        ablation=ablation,
        sweep=sweep.assign(lambda2=[float(name.split()[-1]) for name in sweep.get("variant", [])]),
        grids=grids.assign(grid=[name.split()[-1] for name in grids.get("variant", [])]),
        starts=starts.assign(O=pd.Series([find(table, "O", variant=name) for name in starts.get("first", [])])),
        chance=comparisons.against_chance(masks, **many),
        fills=filled(pixels, **many),
        circumference=around,
        verdicts=judge(auc, pairs, overlaps, ablation, around),
    )


def _plain(name: str) -> str:
    """A name as part of a figure's: ``D penalty_sdr`` -> ``d_penalty_sdr``."""
    return name.replace(" ", "_").lower()
