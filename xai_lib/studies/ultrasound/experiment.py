"""Study 3, put together: one call that trains and tests the networks, and what is read from them.

Usage::

    chosen = settings("lab")                                        # or settings("lab", dataset="busi", weights=path)
    done = carry_out(chosen, seed=0, runtime=runtime(), folder="outputs")
    frame = mark_correct(points(done.runs, done.areas, done.dataset))

On synthetic images one network is trained (or loaded: `lab` ships a checkpoint) and tested on masses it has not seen.
On a real data set there is no fixed test part, so folds and repetitions take its place.
"""

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from xai_lib import checkpoints, data, models, statistics, training
from xai_lib.config import Runtime, cache_dir
from xai_lib.data import CaseDataset, splits
from xai_lib.data.synthetic.ultrasound import CUES, planted
from xai_lib.studies.ultrasound import pointing_tables
from xai_lib.studies.ultrasound import training as ultrasound_training
from xai_lib.studies.ultrasound.cam import points, region_maps
from xai_lib.studies.ultrasound.controls import linear_runs
from xai_lib.studies.ultrasound.runs import Backbone, Run, load_run, save_run
from xai_lib.studies.ultrasound.settings import LAYERS, SYNTHETIC, Settings
from xai_lib.studies.ultrasound.settings import settings as settings  # asked for together with `carry_out`

NETWORK = "ultrasound_resnet10.safetensors"  # the shipped network of `lab`
SHUFFLED = "ultrasound_shuffled.npz"
OTHERS = {"busi": "breast", "breast": "busi"}  # a network trained on one is also tested on the other
CUE_PARTS = {"train": 0.50, "val": 0.15, "test": 0.35}
LENGTHS = (0, 1, 2, 4, 8, 16, 32)  # epochs at which the pointing game is looked at


@dataclass(frozen=True)
class Done:
    """What `carry_out` leaves.

    The tested cases and their regions, the runs, one network to look into and its card; `shuffled` holds runs that
    learnt permuted labels, `externals` further data sets (cases, regions) that the networks never trained on.
    """

    dataset: CaseDataset
    areas: list[NDArray[np.uint8]]
    runs: list[Run]
    model: models.Classifier
    card: dict[str, Any]
    shuffled: list[Run] = field(default_factory=list)
    externals: dict[str, tuple[CaseDataset, list[NDArray[np.uint8]]]] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the class activation map (rows, columns)."""
        rows, cols = self.runs[0].maps.shape[2:]
        return rows, cols


def carry_out(
    chosen: Settings, seed: int, runtime: Runtime, folder: str | Path, retrain: bool = False, progress: bool = True
) -> Done:
    """Do the study's training and testing.

    Args:
        chosen: from `settings`.
        seed: of data, network and training.
        runtime: device and precision.
        folder: where a new checkpoint goes. Finished folds, and the state that a killed training goes on from, lie in
            `config.cache_dir` under a key of everything that determines them.
        retrain: train anew although a checkpoint is shipped.
        progress: show bars.
    """
    if chosen.synthetic:
        done = _synthetic(chosen, seed, runtime, Path(folder), retrain, progress)
    else:
        done = _real(chosen, seed, runtime, progress)
    done.model.requires_grad_(False)  # it is looked into from here on, not trained
    return done


def _real(chosen: Settings, seed: int, runtime: Runtime, progress: bool) -> Done:
    """A real data set: the shipped network as it is, a linear head in folds, or DRS in folds with its controls."""
    dataset = data.load(chosen.dataset, chosen.data_root)
    images = training.stack(dataset, chosen.size, progress)
    areas = region_maps(dataset, progress, **chosen.regions)
    model, card = checkpoints.load(Path(str(chosen.checkpoint)) / NETWORK)
    seeds = range(seed, seed + chosen.repetitions)
    if chosen.transfer == "none":
        name = str(model.spec["architecture"])
        shipped = Backbone(name, transfer="all", layer=LAYERS[name])
        run = ultrasound_training.tested_run(model.to(runtime.device), shipped, images, runtime, seed)
        return Done(dataset, areas, [run], model, card)
    if chosen.transfer == "linear":
        runs = linear_runs(dataset, images, chosen.backbone, runtime, chosen.folds, seeds)
        return Done(dataset, areas, runs, model, card)
    externals = _externals(chosen, progress)
    stacks = {name: training.stack(cases, chosen.size, progress) for name, (cases, _) in externals.items()}
    validate = partial(
        ultrasound_training.cross_validate,
        dataset,
        images,
        chosen.backbone,
        chosen.fit,
        runtime,
        cache_dir() / "ultrasound",
        chosen.folds,
        externals=stacks,
        progress=progress,
    )
    runs, shuffled = validate(seeds=seeds), validate(seeds=seeds[:1], shuffle_labels=True)
    return Done(dataset, areas, runs, model, card, shuffled, externals)


def _externals(chosen: Settings, progress: bool) -> dict[str, tuple[CaseDataset, list[NDArray[np.uint8]]]]:
    """The other real data set, where both lie under XAI_DATA_DIR."""
    other = OTHERS.get(chosen.dataset)
    if other is None or chosen.data_root is not None:
        return {}
    try:
        cases = data.load(other)
    except data.DataError as error:
        logging.getLogger(__name__).warning("not tested on %s: %s", other, error)
        return {}
    return {other: (cases, region_maps(cases, progress, **replace(chosen, dataset=other).regions))}


def _synthetic(chosen: Settings, seed: int, runtime: Runtime, folder: Path, retrain: bool, progress: bool) -> Done:
    """One network on generated masses: trained anew, or the shipped one (tested on the masses it was made for)."""
    shipped = None if retrain or chosen.checkpoint is None else Path(chosen.checkpoint) / NETWORK
    card = checkpoints.read_card(shipped) if shipped else {"seed": seed}
    dataset = data.load(SYNTHETIC, seed=card["seed"], masses=chosen.masses, size=chosen.size)
    parts = splits.by_patient(dataset, dict(zip(("train", "val", "test"), chosen.parts, strict=True)), card["seed"])
    splits.check_disjoint(dataset, **parts)
    tested = dataset.subset(parts["test"])
    areas = region_maps(tested, progress, **chosen.regions)
    if shipped is None:
        run, shuffled, model = _train_synthetic(chosen, seed, runtime, folder, dataset, parts, retrain, progress)
        card = {"profile": chosen.profile, "seed": seed, "data": dataset.fingerprint, "kept_epoch": run.epoch()}
        card["parts"] = list(chosen.parts)
        checkpoints.save(model, folder / NETWORK, card, precision="float16")
        model, card = checkpoints.load(folder / NETWORK)  # float16 as shipped: the cues' scales are tied to it
        return Done(tested, areas, [run], model.to(runtime.device), card, [shuffled])
    if card.get("data") != dataset.fingerprint or card.get("parts") != list(chosen.parts):
        raise checkpoints.CheckpointError(f"{shipped}: made for other images, or another split; retrain=True")
    model, card = checkpoints.load(shipped, expect={"architecture": chosen.backbone.name})
    images = training.stack(tested, chosen.size, progress)
    live = ultrasound_training.tested_run(model.to(runtime.device), chosen.backbone, images, runtime, seed)
    stored = load_run(shipped.with_suffix(".npz"))
    kept = stored.epoch()
    logits, maps = stored.logits.copy(), stored.maps.astype(np.float32)
    logits[kept], maps[kept] = live.logits[0], live.maps[0]
    run = replace(live, logits=logits, maps=maps, val_loss=stored.val_loss, test_loss=stored.test_loss)
    shuffled = load_run(shipped.with_name(SHUFFLED))
    return Done(tested, areas, [run], model, card, [shuffled])


def _train_synthetic(
    chosen: Settings,
    seed: int,
    runtime: Runtime,
    folder: Path,
    dataset: CaseDataset,
    parts: Mapping[str, NDArray[np.int64]],
    retrain: bool,
    progress: bool,
) -> tuple[Run, Run, models.Classifier]:
    """Train the network, and for a quarter of the epochs one on shuffled labels; store both runs beside it.

    Both are kept in the cache, so that the same settings train once, unless `retrain`.
    """
    own = np.arange(len(parts["test"]))
    key = sha256(repr((chosen, seed, dataset.fingerprint, runtime.bf16)).encode()).hexdigest()[:12]
    state = cache_dir() / "ultrasound" / key
    finished = state / NETWORK
    if retrain or not finished.is_file():
        images = training.stack(dataset, chosen.size, progress)
        fit = replace(chosen.fit, epochs=max(1, chosen.fit.epochs // 4))
        for name, config, shuffle in (("training", chosen.fit, False), ("shuffled", fit, True)):
            run, model = ultrasound_training.train_run(
                chosen.backbone, images, parts, config, runtime, seed, 0, shuffle, None, state / name, progress
            )
            save_run(run, state / f"{name}.run.npz")
            if not shuffle:
                kept = model
        checkpoints.save(kept, finished, {"seed": seed})
    run, shuffled = (load_run(state / f"{name}.run.npz") for name in ("training", "shuffled"))
    model, _ = checkpoints.load(finished)
    small = replace(run, test=own, maps=run.maps.astype(np.float16))
    last = replace(
        shuffled,
        test=own,
        logits=shuffled.logits[-1:],
        maps=shuffled.maps[-1:].astype(np.float16),
        val_loss=shuffled.val_loss[-1:],
        test_loss=shuffled.test_loss[-1:],
    )
    save_run(small, (folder / NETWORK).with_suffix(".npz"))
    save_run(last, folder / SHUFFLED)
    return replace(run, test=own), last, model


def training_length(done: Done) -> pd.DataFrame:
    """AUC and hit rates (over correctly classified images) after 0, 1, 2, 4, ... epochs of training."""
    rows = []
    longest = max(len(run.logits) for run in done.runs) - 1
    for epoch in sorted({e for e in LENGTHS if e < longest} | {longest}):
        frame = pointing_tables.mark_correct(points(done.runs, done.areas, done.dataset, epoch=epoch))
        hits = pointing_tables.hit_columns(frame[frame["correct"]]).mean()
        rows.append({"epoch": epoch, "auc": pointing_tables.mean_auc(frame), **hits.to_dict()})
    return pd.DataFrame(rows)


def stopping(done: Done, repeats: int = 20) -> pd.DataFrame:
    """What stopping on the test set is worth: patients are halved; one half chooses the epoch, both are scored.

    Returns:
        Columns stopping ("validation", "test"), epoch (mean), auc_same (the half that chose), auc_fresh (the other).
    """
    rows = []
    for run in done.runs:
        part = done.dataset.subset(run.test)
        for k in range(repeats):
            halves = splits.by_patient(part, {"a": 0.5, "b": 0.5}, k)
            rows += [_stopped(run, part.labels, halves[a], halves[b]) for a, b in ("ab", "ba")]
    means = pd.DataFrame(rows).mean()
    return pd.DataFrame(
        [
            {"stopping": how, **{c: means[f"{how}_{c}"] for c in ("epoch", "auc_same", "auc_fresh")}}
            for how in ("validation", "test")
        ]
    )


def _stopped(run: Run, labels: NDArray[Any], chooser: NDArray[Any], fresh: NDArray[Any]) -> dict[str, float]:
    """Epoch and AUC when `chooser` picks the epoch, against the validation set's epoch."""
    loss = np.logaddexp(0, run.logits[:, chooser].astype(float)) - labels[chooser] * run.logits[:, chooser]
    epochs = {"validation": run.epoch(), "test": replace(run, test_loss=loss.mean(1)).epoch("test")}
    out: dict[str, float] = {}
    for how, epoch in epochs.items():
        out[f"{how}_epoch"] = epoch
        for name, rows in (("same", chooser), ("fresh", fresh)):
            out[f"{how}_auc_{name}"] = statistics.auc(labels[rows], run.logits[epoch, rows])
    return out


def planted_cues(
    chosen: Settings, base: models.Classifier, seed: int, runtime: Runtime, folder: str | Path, retrain: bool = False
) -> dict[str, Done]:
    """The control: for each cue, images in which it alone separates the classes, and a network transferred to them.

    The network is `base` with deep representation scaling (frozen backbone, scales and head train), the paper's own
    way of transfer. `lab` loads the shipped scales.
    """
    out = {}
    for cue in tqdm(CUES, desc="cues"):
        strength: Mapping[str, tuple[float, float]] = planted(cue)
        dataset = data.load(SYNTHETIC, seed=seed + 1, masses=chosen.cue_masses, size=chosen.size, strength=strength)
        parts = splits.by_patient(dataset, CUE_PARTS, seed)
        tested = dataset.subset(parts["test"])
        areas = region_maps(tested, False, **chosen.regions)
        name = f"ultrasound_cue_{cue}.safetensors"
        if chosen.checkpoint and not retrain:
            model, card = checkpoints.load(Path(chosen.checkpoint) / name, base=deepcopy(base).cpu())
            images = training.stack(tested, chosen.size, False)
            run = ultrasound_training.tested_run(
                model.to(runtime.device), chosen.backbone, images, runtime, seed, extras=False
            )
        else:
            images = training.stack(dataset, chosen.size, False)
            start = replace(chosen.backbone, transfer="drs")
            run, model = ultrasound_training.train_run(
                start, images, parts, chosen.cue_fit, runtime, seed, base=base, progress=False, extras=False
            )
            run = replace(run, test=np.arange(len(tested)))
            card = {"profile": chosen.profile, "seed": seed, "data": dataset.fingerprint, "cue": cue}
            card = checkpoints.save(model, Path(folder) / name, card, trainable_only=True)
        out[cue] = Done(tested, areas, [run], model, card)
    return out
