"""Study 1 on real mammograms: one network, five folds, every map by the network that has not seen the patient.

Usage::

    real = RealStudy(weights="mobilenet_v2.pth", padding="tensorflow")
    record = real_record(real, seed=0, runtime=runtime())             # mini-MIAS under XAI_DATA_DIR

What cannot be had: healthy twins. What can: shifted patches (cut beside the lesion), untrained networks, and patches
with a benign lesion. mini-MIAS gives circles, so a "mask" is the disc that a radiologist drew around the lesion.

Reference: Sam-Millan et al. 2023, sections 3.2.2 and 4.1.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from xai_lib import data, records, training
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.data.real_mammograms import with_centres
from xai_lib.data.synthetic.mammogram_patches import patches
from xai_lib.studies.mammograms.folds import Folds, Start, cross_validate
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.patches.maps import Tables, all_maps
from xai_lib.studies.patches.study import Ready, Study, Trained, choose
from xai_lib.studies.patches.summary import Summary, summarise
from xai_lib.studies.real_record import record_of
from xai_lib.training import FitConfig

NETWORK = "mobilenet_v2"


@dataclass(frozen=True)
class RealStudy:
    """Settings. `fit` is 3.2.2's; `malignant` and `others` count the patches whose maps are measured at most."""

    dataset: str = "mini_mias"
    root: str | None = None
    weights: str | None = "imagenet"
    padding: str = "torchvision"
    folds: int = 5
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=20, batch_size=32, learning_rate=1e-3, schedule="plateau", patience=None, augment="patch"
        )
    )
    setup: Setup = field(default_factory=Setup)
    size: int = 224
    malignant: int = 100
    others: int = 50
    shift: float = 50 / 224
    precision: str = "float32"
    replicates: int = 1000


def real_patches(real: RealStudy, seed: int, progress: bool = True) -> dict[str, CaseDataset]:
    """The sets "centred" and "shifted": malignant lesions and normal places; and "benign": the benign lesions."""
    films = data.load(real.dataset, real.root)
    centred = with_centres(films, seed, progress=progress)
    benign = with_centres(films, seed, ("benign",), progress=progress)
    return {
        "centred": patches(centred, real.size),
        "shifted": patches(centred, real.size, shift_px=real.shift * real.size, seed=seed),
        "benign": patches(benign, real.size),
    }


def real_tables(real: RealStudy, seed: int, runtime: Runtime, progress: bool = True) -> tuple[Tables, CaseDataset]:
    """Train in folds, score every patch, and measure the maps of the chosen ones.

    Returns:
        Scores, maps and pairs as `maps.build_tables` makes them, and the patches; no randomisation. A benign
        lesion is scored by the network that has not seen its patient.
    """
    sets = real_patches(real, seed, progress)
    centred = sets["centred"]
    images = {name: training.stack(sets[name], real.size, progress) for name in ("centred", "shifted")}
    start = Start(NETWORK, real.weights, real.padding)
    folds = cross_validate(centred, images["centred"], start, real.fit, seed, runtime, real.folds, progress)
    known = dict(zip(centred.patient_ids, folds.fold_of, strict=True))
    benign = sets["benign"]
    unseen = np.flatnonzero([patient in known for patient in benign.patient_ids])
    if len(unseen):
        sets["benign"] = benign.subset(unseen)
        images["benign"] = training.stack(sets["benign"], real.size, progress)
    scores = pd.concat(
        [_scores(folds, known, name, sets[name], images[name], runtime) for name in images], ignore_index=True
    )
    chosen = choose(centred, np.arange(len(centred)), real.malignant, real.others, seed)
    base = {"data": centred.fingerprint, "seed": seed, "setup": asdict(real.setup), "precision": real.precision}
    found = []
    for fold in range(real.folds):
        model = folds.model(fold).to(runtime.device).requires_grad_(False)
        study = Study("real", setup=real.setup, precision=real.precision)
        trained = Trained(model, {"sha256": folds.files[fold].parent.name + str(fold)})
        ready = Ready(
            study, {NETWORK: trained}, {k: sets[k] for k in ("centred", "shifted")}, folds.parts[fold]["test"], seed
        )
        key = base | {"folds": folds.files[fold].parent.name, "fold": fold, "shift": real.shift}
        mine = chosen[folds.fold_of[chosen] == fold]
        if len(mine):
            found.append(all_maps(ready, mine, key, progress=progress))
    maps, pairs = (pd.concat(frames, ignore_index=True) for frames in zip(*found, strict=True))
    empty = pd.DataFrame(columns=["method", "step", "layer", "image", "rank_correlation"])
    return Tables(scores, maps, pairs, empty), centred


def _scores(
    folds: Folds, known: Mapping[str, int], name: str, dataset: CaseDataset, images: training.Stack, runtime: Runtime
) -> pd.DataFrame:
    """Scores of one set, every patch by the network that has not seen its patient (`known`: its fold)."""
    logits, mine = np.full((len(images), 2), np.nan, np.float32), np.array([known[p] for p in dataset.patient_ids])
    for fold in np.unique(mine):
        model = folds.model(fold).to(runtime.device)
        logits[mine == fold] = training.predict(model, images.subset(mine == fold), replace(runtime, bf16=False))
    facts = dataset.table[["patient_id", "label", "kind"]].assign(index=np.arange(len(dataset)))
    facts = facts.assign(network=NETWORK, set=name, score=training.scores(logits))
    return facts.assign(logit_0=logits[:, 0], logit_1=logits[:, 1])


def real_record(
    real: RealStudy, seed: int, runtime: Runtime, command: str = "", progress: bool = True
) -> tuple[records.Record, Summary]:
    """Carry the study out and put what it says into a record."""
    started = time.perf_counter()
    tables, dataset = real_tables(real, seed, runtime, progress)
    result = summarise(tables, real.replicates, seed)
    chosen: Mapping[str, Any] = asdict(real)
    record = record_of(
        result,
        dataset,
        name=real.dataset,
        study="01_patch_xai",
        title="Mammography patches: where do seven explanation methods look?",
        profile="paper" if real.weights == "imagenet" else "lab",
        parameters={
            "backbone": NETWORK,
            "transfer": "all weights",
            **{name: chosen[name] for name in ("padding", "folds", "shift", "malignant", "others", "precision")},
            "epochs": real.fit.epochs,
        },
        seed=seed,
        started=started,
        command=command,
        checkpoint={"name": NETWORK, "sha256": ""},
        skipped=0,
    )
    return record, result
