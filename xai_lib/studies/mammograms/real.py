"""Study 2 on real mammograms: boxes from the radiologist's circles in folds, and lesions put into normal breasts.

Usage::

    real = RealWhole()                                          # mini-MIAS under XAI_DATA_DIR, from the shipped network
    record = boxes_record(real, seed=0, runtime=runtime())      # trains five folds, explains the unseen malignant ones
    record = inserted_record("mini_mias", None, 20, runtime())  # the shipped network on normal films with a lesion

Every map is made by the network that has not seen the patient, and each method's setting in a fold is chosen on the
images of the other folds. A healthy twin of a real breast cannot be had.

Reference: Sam-Millan et al. 2023, sections 3.2.3, 3.2.5 and 4.3.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from xai_lib import claims, config, data, estimate_tables, models, records, statistics, stored_tables, training
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.data.real_mammograms import prepared
from xai_lib.records import Record
from xai_lib.results import Estimate, Figure, Verdict
from xai_lib.studies.figures import named
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms.claims import (
    SHAP,
    Bootstrap,
    at,
    change,
    full_contrast,
    highlighted,
    judge_boxes,
    larger,
)
from xai_lib.studies.mammograms.folds import Start, cross_validate
from xai_lib.studies.mammograms.maps import PLAIN_BOXES, measure
from xai_lib.studies.mammograms.study import network, plain, profile_settings, study_of
from xai_lib.studies.mammograms.summary import choose, inserted
from xai_lib.studies.mammograms.tables import real_rows
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.mammograms.variants import CONTROLS, MAIN, THE_SEVEN, Scene, as_seen, few_samples
from xai_lib.studies.real_record import record_of
from xai_lib.training import FitConfig

ARCHITECTURE = "efficientnet_b0"
VERSION = 1  # of the rows; part of every key


@dataclass(frozen=True)
class RealWhole:
    """Settings. `weights`: None for the network trained on synthetic mammograms; `fit` is 3.2.3's but for its length.

    `images`: malignant images with a box that are explained, at most.
    """

    dataset: str = "mini_mias"
    root: str | None = None
    weights: str | None = None
    size: tuple[int, int] = (512, 256)
    folds: int = 5
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            10, 8, 0.01, 1e-4, "sgd", "warm_restarts", None, augment="mammogram", loss="focal", positive_weight=2.0
        )
    )
    setup: Setup = field(default_factory=lambda: Setup(window=30, stride=15))
    images: int = 24
    precision: str = "float32"
    replicates: int = 1000


@dataclass(frozen=True, eq=False)
class RealResult:
    """`auc` over folds, `methods`: one row per map or box, `verdicts` on 2.1 to 2.3, and how many images were used."""

    auc: Estimate
    methods: pd.DataFrame
    verdicts: dict[str, Verdict]
    images: int

    def figures(self) -> dict[str, Figure]:
        """The AUC, then the IOU of the seven methods with the controls as baselines."""
        chance = "chance level" if self.auc.low is None or self.auc.low <= 0.5 else ""
        out = {"auc": Figure(self.auc, baselines={"chance": Estimate(0.5)}, note=chance)}
        iou = named(self.methods, "map", "iou")
        controls = {name: iou[name] for name in iou if name in (*PLAIN_BOXES, *CONTROLS)}
        note = "quantile chosen on the other folds" + ("; of a network at chance level" if chance else "")
        return out | {f"iou_{name}": Figure(iou[name], "mean IOU", controls, note) for name in THE_SEVEN}

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """The table of methods as plain rows."""
        return {"methods": estimate_tables.as_rows(self.methods)}


def boxes_tables(
    real: RealWhole, seed: int, runtime: Runtime, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame, CaseDataset]:
    """Train in folds, score every image, and measure the boxes of malignant images with an annotation.

    Returns:
        One row per image (label, score, patient_id, fold); the rows of `maps.measure` with image, patient_id
        and fold; and the images.
    """
    whole = prepared(data.load(real.dataset, real.root), real.size)
    stack = training.stack(whole, real.size, progress)
    shipped = config.repository_dir() / "data" / "checkpoints" / f"mammogram_{ARCHITECTURE}.safetensors.gz"
    start = Start(ARCHITECTURE, real.weights or str(shipped))
    folds = cross_validate(whole, stack, start, real.fit, seed, runtime, real.folds, progress)
    facts = whole.table[["label", "patient_id"]].assign(score=folds.scores, fold=folds.fold_of)
    rows = []
    for index in tqdm(_located(whole, real.images), desc="maps", disable=not progress, leave=False):
        fold = int(folds.fold_of[index])
        key = {"version": VERSION, "data": whole.fingerprint, "image": whole.table.iloc[index]["source"], "seed": seed}
        key |= {"folds": folds.files[fold].parent.name, "fold": fold, "variants": plain(MAIN)}
        key |= {"setup": asdict(real.setup), "precision": real.precision}

        def compute(index: int = index, fold: int = fold) -> pd.DataFrame:
            return _explain(real, whole, index, folds.model(fold).to(runtime.device), seed)

        table = stored_tables.table("mammogram_real_image", key, compute)
        rows.append(table.assign(image=index, patient_id=whole.table.iloc[index]["patient_id"], fold=fold))
    return facts, pd.concat(rows, ignore_index=True), whole


def _located(whole: CaseDataset, count: int) -> NDArray[np.int64]:
    """Malignant images with a box, as many as wanted, in the data set's order.

    Raises:
        ValueError: there is none.
    """
    boxed = whole.table["boxes"].map(len).to_numpy() > 0
    found = np.flatnonzero(boxed & (whole.labels == 1))[:count]
    if not len(found):
        raise ValueError(f"{whole.name}: no malignant image has a box to measure by")
    return found


def _explain(real: RealWhole, whole: CaseDataset, index: int, model: models.Classifier, seed: int) -> pd.DataFrame:
    """`measure` for one real image: the breast is what is not black."""
    case = whole[index]
    scene = Scene(replace(case, image=as_seen(case.image)), None, case.image[0].numpy() > 0)
    untrained = mn.fresh(ARCHITECTURE, None, seed + 1).eval().to(next(model.parameters()).device)
    with few_samples():
        networks = {"trained": model.eval(), "untrained": untrained}
        return measure(scene, MAIN, networks, real.setup, real.precision, seed)[0]


def summarise_boxes(facts: pd.DataFrame, rows: pd.DataFrame, replicates: int = 1000, seed: int = 0) -> RealResult:
    """Means over images with intervals over patients, from the tables of `boxes_tables`."""
    many = Bootstrap(replicates, seed)
    area = statistics.bootstrap(lambda f: statistics.auc(f["label"], f["score"]), facts, n=replicates, seed=seed)
    union, ratios = [], []
    for fold, mine in rows.groupby("fold"):
        others = rows[rows["fold"] != fold]
        settings = choose(others if len(others) else mine, "union")
        union.append(at(mine, "union", settings))
        of_images = mine.drop_duplicates("image").set_index("image")[["patient_id"]]
        ratios.append(larger(mine, settings, of_images))
    found = pd.concat(union, ignore_index=True)
    names = [name for name in (*MAIN, *PLAIN_BOXES) if (found["variant"] == name).any()]
    found = found.sort_values("variant", key=lambda c: c.map(names.index), kind="stable")
    methods = many.by(found, "image", ["variant"], ["iou", "chance", "hit", "energy"], shares=("hit",))
    patients = found.drop_duplicates("image").set_index("image")["patient_id"]
    iou = found.pivot(index="image", columns="variant", values="iou").join(patients)
    return RealResult(
        area, methods.rename(columns={"variant": "map"}), judge_boxes(area, iou, pd.concat(ratios), many), len(iou)
    )


def boxes_record(
    real: RealWhole, seed: int, runtime: Runtime, command: str = "", progress: bool = True
) -> tuple[Record, RealResult]:
    """Carry the study out and put what it says into a record."""
    started = time.perf_counter()
    facts, rows, whole = boxes_tables(real, seed, runtime, progress)
    result = summarise_boxes(facts, rows, real.replicates, seed)
    known: dict[str, Any] = asdict(real)
    record = record_of(
        result,
        whole,
        name=real.dataset,
        study="02_whole_mammogram_iou",
        title="Whole mammograms: boxes from maps against the radiologist's circles",
        parameters={"backbone": ARCHITECTURE, "epochs": real.fit.epochs, "explained": result.images}
        | {name: known[name] for name in ("size", "folds", "precision")},
        seed=seed,
        started=started,
        command=command,
    )
    return record, result


def inserted_record(
    dataset: str,
    root: str | None,
    count: int,
    runtime: Runtime,
    precision: str = "float32",
    command: str = "",
    progress: bool = True,
) -> Record:
    """Put lesions into `count` real normal mammograms of different patients, and follow the shipped network (2.6)."""
    started = time.perf_counter()
    films = data.load(dataset, root)
    normal = films.subset(np.flatnonzero((films.table["class"] == "normal").to_numpy()))
    chosen, setup, counts = profile_settings("lab")
    model, card = network(chosen, "lab", 0, runtime, "")
    if card is None:
        raise ValueError("the shipped network has no card")
    study = study_of(chosen, model, card, setup, counts, precision, int(card["seed"]))
    whole = prepared(normal, chosen.size)
    rows = real_rows(study, whole, count, progress)
    return insertion_record(
        rows,
        {"name": dataset, "fingerprint": whole.fingerprint, "cases": int(rows["source"].nunique()), "skipped": 0},
        {"name": f"mammogram_{ARCHITECTURE}", "sha256": card["sha256"]},
        {"contrasts": list(counts.contrasts), "precision": precision},
        started,
        seed=study.seed,
        command=command,
    )


def insertion_record(
    insertion: pd.DataFrame,
    data: Mapping[str, Any],
    checkpoint: Mapping[str, Any] | None,
    parameters: Mapping[str, Any],
    started: float,
    replicates: int = 1000,
    seed: int = 0,
    command: str = "",
) -> Record:
    """Record of lesions inserted into real mammograms (`tables.real_rows`).

    Args:
        insertion: the rows.
        data: name and fingerprint of the mammograms.
        checkpoint: name and sha256 of the network.
        parameters: of the run.
        started: `time.perf_counter()` at its start.
        replicates: of the bootstrap over patients.
        seed: of the bootstrap.
        command: that repeats the run.
    """
    many, contrast = Bootstrap(replicates, seed), full_contrast(insertion)
    table = inserted(insertion, many)
    at_contrast = table[table["contrast"] == contrast].set_index("map")
    before = table[table["contrast"] == 0].set_index("map")
    rise = many.means(change(insertion, contrast, "score")[[SHAP, "patient_id"]], [SHAP])[SHAP]
    figures = {"score_rise": Figure(rise, "log odds of malignant", note=f"contrast {contrast:g}")}
    for name in at_contrast.index:
        gain, was = at_contrast.loc[name, "gain"], before.loc[name, "energy"]
        figures[f"gain_{name}"] = Figure(
            gain, "share of the map in the lesion's box", {"before": was}, "after minus before"
        )
    return records.make(
        study="02_whole_mammogram_iou",
        title="Lesions inserted into real mammograms",
        profile="lab",
        parameters=parameters,
        seed=seed,
        data=data,
        checkpoint=checkpoint,
        figures=figures,
        verdicts={"2.6": claims.decide(claims.load()["2.6"], highlighted(insertion, many))},
        tables={"inserted": estimate_tables.as_rows(table)},
        started=started,
        command=command,
    )
