"""Study 5 on real mammograms: a classifier of masses in folds, an inpainter of normal breasts, and the search.

Usage::

    record, result = deletion_record(RealDeletion(), seed=0, runtime=runtime())      # mini-MIAS under XAI_DATA_DIR

Masses are circles, so H and the circumference are those of a circle around the mass. Every image is searched with the
classifier that has not seen its patient, and the inpainter learns from the normal breasts of patients without a mass.
Both start from the networks that learnt on synthetic mammograms. A healthy twin of a real breast cannot be had.

Reference: Major et al. 2020, section 3.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from xai_lib import checkpoints, data, records, training
from xai_lib.config import Runtime, cache_dir, repository_dir
from xai_lib.data import CaseDataset
from xai_lib.data.case import DataError, file_digest
from xai_lib.data.real_mammograms import prepared
from xai_lib.inpainting import PartialUNet
from xai_lib.studies.deletion import inpainting_training, searches, tables
from xai_lib.studies.deletion.inpainting_training import Settings
from xai_lib.studies.deletion.study import Ready, Sets, Study, relabelled, settings
from xai_lib.studies.deletion.summary import Summary, summarise
from xai_lib.studies.mammograms.folds import Start, cross_validate
from xai_lib.studies.real_record import record_of
from xai_lib.training import FitConfig

MASSES = ("CIRC", "SPIC", "MISC")  # of mini-MIAS: circumscribed, spiculated and other masses


@dataclass(frozen=True)
class RealDeletion:
    """Settings; `weights` and `inpainter` are files to start from, None for the shipped ones.

    `images` with a mass are searched, at most; `runs` of random holes.
    """

    dataset: str = "mini_mias"
    root: str | None = None
    weights: str | None = None
    inpainter: str | None = None
    folds: int = 5
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            8, 16, 5e-4, 0.01, "adamw", "onecycle", None, augment="mammogram", positive_weight=3.0
        )
    )
    inpainting: Settings = field(
        default_factory=lambda: Settings((16, 4), (1e-3, 3e-4), 4, share=0.2, rows=160, perceptual=0.0, style=0.0)
    )
    images: int = 60
    runs: int = 10
    replicates: int = 1000

    @property
    def files(self) -> dict[str, str]:
        """What classifier and inpainter start from."""
        shipped = repository_dir() / "data" / "checkpoints"
        return {
            "classifier": self.weights or str(shipped / "deletion_mobilenet_v1.safetensors.gz"),
            "inpainter": self.inpainter or str(shipped / "deletion_inpainter.safetensors.gz"),
        }


def with_masses(films: CaseDataset) -> CaseDataset:
    """Normal films and those with a located mass; the label is "a mass".

    Raises:
        DataError: the data set does not name its abnormalities, or one of the two kinds is missing.
    """
    table = films.table
    if "abnormality" not in table:
        raise DataError(f"{films.name}: its table has no column abnormality, expected a data set that names masses")
    mass = table["abnormality"].str.split("+").map(lambda kinds: any(kind in MASSES for kind in kinds))
    mass &= (table["boxes"].map(len) > 0) & table["located"]
    normal = table["class"] == "normal"
    if not mass.any() or not normal.any():
        raise DataError(f"{films.name}: {mass.sum()} films with a located mass and {normal.sum()} normal ones")
    kept = np.flatnonzero(mass | normal)
    return relabelled(films.subset(kept), mass.to_numpy()[kept])


def real_tables(
    real: RealDeletion, seed: int, runtime: Runtime, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame, CaseDataset]:
    """Train, score and search; returns the frames `scores` and `masks` of `tables`, and the images."""
    study = replace(settings("lab"), runs=real.runs, inpainting=real.inpainting, checkpoint=None)
    whole = prepared(with_masses(data.load(real.dataset, real.root)), study.size, aspect=True)
    stack = training.stack(whole, study.size, progress)
    start = Start(study.architecture, real.files["classifier"])
    folds = cross_validate(whole, stack, start, real.fit, seed, runtime, real.folds, progress)
    inpainter, card = _inpainter(real, whole, stack, seed, runtime, progress)
    found: dict[str, list[pd.DataFrame]] = {"scores": [], "masks": []}
    for fold, part in enumerate(tqdm(folds.parts, desc="searches", disable=not progress, leave=False)):
        model = folds.model(fold).to(runtime.device).requires_grad_(False)
        cards = {"classifier": {"sha256": file_digest(folds.files[fold])}, "inpainter": card}
        own = replace(study, roc=len(part["test"]), tested=-(-real.images // real.folds))
        ready = Ready(own, model, inpainter, cards, Sets(whole, whole, {"test": part["test"]}), seed)
        for name, frame in _searched(ready, progress).items():
            found[name].append(frame.assign(fold=fold))
    scores, masks = (pd.concat(frames, ignore_index=True) for frames in found.values())
    return scores, masks, whole


def _searched(ready: Ready, progress: bool) -> Mapping[str, pd.DataFrame]:
    """Scores and masks of the images that one classifier has not seen, without the twins that there are not."""
    scores = tables.scores(ready, progress)
    scenes = searches.with_mass(ready, count=ready.study.tested)
    config = ready.study.region
    holes = [
        frame
        for name in (searches.SDR, "no shape terms")
        for frame in searches.searched(ready, ready.classifier, scenes, name, searches.variants(config)[name], progress)
    ]
    masks = tables.masks(ready, pd.concat(holes, ignore_index=True), progress)
    return {"scores": scores[scores["tissue"] != "twin"], "masks": masks.assign(twin=np.nan)}


def _inpainter(
    real: RealDeletion, whole: CaseDataset, stack: training.Stack, seed: int, runtime: Runtime, progress: bool
) -> tuple[PartialUNet, dict[str, Any]]:
    """The inpainter of this data set, trained or from the cache, and its card."""
    what = [asdict(real.inpainting), file_digest(Path(real.files["inpainter"])), whole.fingerprint, seed]
    folder = cache_dir() / "inpainter" / sha256(dumps(what).encode()).hexdigest()[:16]
    file = folder / "inpainter.safetensors"
    if not file.is_file():
        model, _ = inpainting_training.load(real.files["inpainter"])
        healthy, held_out = (stack.subset(part) for part in _normal(whole, seed))
        state = folder / "part.safetensors"
        history = inpainting_training.train(
            model, healthy, held_out, real.inpainting, None, runtime, seed, state, progress=progress
        )
        inpainting_training.save(model, file, {"data": whole.fingerprint, "history": history}, "float32")
    model, card = inpainting_training.load(file)
    return model.to(runtime.device).requires_grad_(False), card


def _normal(whole: CaseDataset, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Normal images of patients without a mass: nine tenths to learn from, the rest to look at."""
    patients = whole.patient_ids
    free = np.flatnonzero(~np.isin(patients, patients[whole.labels == 1]))
    order = np.random.default_rng(seed).permutation(free)
    count = max(len(order) // 10, 1)
    return order[count:], order[:count]


def deletion_record(
    real: RealDeletion, seed: int, runtime: Runtime, command: str = "", progress: bool = True
) -> tuple[records.Record, Summary]:
    """Carry the study out and put what it says into a record."""
    started = time.perf_counter()
    scores, masks, whole = real_tables(real, seed, runtime, progress)
    study: Study = settings("lab")
    empty = pd.DataFrame(columns=["case", "patient_id", "hole", "fill", "error", "logit", "distance"])
    diagonal, region = float(np.hypot(*study.size)), study.region
    result = summarise(scores, masks, empty, diagonal, str(region.cell), region.lambda2, real.replicates, seed)
    record = record_of(
        result,
        whole,
        name=real.dataset,
        study="05_inpainting_sdr",
        title="The smallest deletion region on real mammograms",
        parameters={
            "backbone": study.architecture,
            "size": list(study.size),
            "epochs": real.fit.epochs,
            "region": searches.plain(region),
            **{name: asdict(real)[name] for name in ("folds", "images", "runs")},
        },
        seed=seed,
        started=started,
        command=command,
        checkpoint={
            "name": "deletion_mobilenet_v1",
            "sha256": str(checkpoints.read_card(real.files["classifier"])["sha256"]),
        },
    )
    return record, result
