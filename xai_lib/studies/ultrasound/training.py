"""Study 3, the training: one network after another, in folds, each followed through its epochs.

Usage::

    run, model = train_run(backbone, images, parts, FitConfig(), runtime(), seed=0)
    runs = cross_validate(dataset, images, backbone, FitConfig(), runtime(), "runs", folds=5, seeds=range(5))

A training that was killed goes on from its last epoch, and a finished run is read from its file.

Reference: Byra et al. 2022, "Deep learning methods".
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from xai_lib import models, training
from xai_lib.attribution import cam
from xai_lib.config import Runtime, numpy_generator
from xai_lib.data import CaseDataset
from xai_lib.data.case import file_digest
from xai_lib.data.splits import fold_parts
from xai_lib.studies.ultrasound.cam import explain, measured_offset, other_maps, relative_points
from xai_lib.studies.ultrasound.controls import controls
from xai_lib.studies.ultrasound.runs import Backbone, Run, load_run, log_loss, save_arrays, save_run

KEY_SIZE = 224  # image size that the name of a cached run leaves unsaid


def train_run(
    backbone: Backbone,
    images: training.Stack,
    parts: Mapping[str, NDArray[np.int64]],
    config: training.FitConfig,
    runtime: Runtime,
    seed: int,
    fold: int = 0,
    shuffle_labels: bool = False,
    externals: Mapping[str, training.Stack] | None = None,
    state: str | Path | None = None,
    progress: bool = True,
    base: models.Classifier | None = None,
    extras: bool = True,
) -> tuple[Run, models.Classifier]:
    """Train one network on ``parts["train"]``, stop on ``parts["val"]``, follow ``parts["test"]`` through the epochs.

    Args:
        backbone: what to start from.
        images: the whole data set.
        parts: indices "train", "val" and "test".
        config: training settings.
        runtime: device and precision; logits and maps are always computed in float32.
        seed: of head, order, augmentation.
        fold: for the record.
        shuffle_labels: train on permuted labels (control).
        externals: further data sets, on which the kept network's logits and points are taken (``<name>``).
        state: base name of the files that let a killed training go on.
        progress: show bars.
        base: a trained network to start from (copied), instead of the backbone's weights.
        extras: also make the further maps and the control networks.

    Returns:
        The run and the kept network.
    """
    sets = {name: images.subset(parts[name]) for name in ("train", "val", "test")}
    if shuffle_labels:
        order = torch.from_numpy(numpy_generator(seed, "shuffle", fold).permutation(len(sets["train"])))
        sets["train"] = training.Stack(sets["train"].images, sets["train"].labels[order])
    model = backbone.build(seed) if base is None else _transferred(backbone, base, seed)
    seen = _Trajectory(sets["test"], runtime, Path(f"{state}.npz") if state else None)
    model_state = f"{state}.safetensors" if state else None
    result = training.fit(
        model, sets["train"], sets["val"], config, runtime, seed, model_state, on_epoch=seen, progress=progress
    )
    more: dict[str, NDArray[Any]] = {}
    if extras and not shuffle_labels:
        more |= other_maps(model, sets["test"], backbone.layer, runtime)
        more |= controls(backbone, sets["train"], sets["test"], seed, runtime)
        for name, external in (externals or {}).items():
            logits, maps = explain(model, external, runtime)
            more |= {name: relative_points(maps), f"logits_{name}": logits}
    logits, maps = (np.stack(values) for values in (seen.logits, seen.maps))
    run = Run(
        seed=seed,
        fold=fold,
        test=np.asarray(parts["test"]),
        logits=logits,
        maps=maps,
        val_loss=np.array([np.nan, *(h["loss"] for h in result.history)]),
        test_loss=np.array([log_loss(sets["test"].labels.numpy(), row) for row in logits]),
        offset=measured_offset(model, sets["train"], runtime),
        gap=np.array(max(seen.gaps)),
        extras=more,
    )
    seen.forget()
    return run, model


def _transferred(backbone: Backbone, base: models.Classifier, seed: int) -> models.Classifier:
    """A copy of `base` with a new head, prepared for the backbone's way of transfer."""
    model = replace(backbone, weights=None, transfer="all").build(seed)
    model.features.load_state_dict(base.features.state_dict())
    prepare = {"drs": models.add_representation_scaling, "head": models.freeze_backbone}
    return prepare[backbone.transfer](model) if backbone.transfer in prepare else model


def tested_run(
    model: models.Classifier,
    backbone: Backbone,
    images: training.Stack,
    runtime: Runtime,
    seed: int,
    extras: bool = True,
) -> Run:
    """The `Run` of a network that is already trained: one epoch, all `images` tested."""
    logits, maps = explain(model, images, runtime)
    more = {}
    if extras:
        unfitted = replace(backbone, weights=None)  # there are no training images for a linear head
        more = other_maps(model, images, backbone.layer, runtime) | controls(unfitted, images, images, seed, runtime)
    return Run(
        seed=seed,
        fold=0,
        test=np.arange(len(images)),
        logits=logits[None],
        maps=maps[None],
        val_loss=np.array([np.nan]),
        test_loss=np.array([log_loss(images.labels.numpy(), logits)]),
        offset=measured_offset(model, images, runtime),
        gap=np.array(cam.identity_gap(model, torch.from_numpy(logits), torch.from_numpy(maps))),
        extras=more,
    )


class _Trajectory:
    """Collects logits and maps of the test images after every epoch; survives a kill beside the training's state."""

    def __init__(self, test: training.Stack, runtime: Runtime, path: Path | None) -> None:
        self.test, self.runtime, self.path = test, runtime, path
        self.logits: list[NDArray[np.float32]] = []
        self.maps: list[NDArray[np.float32]] = []
        self.gaps = [0.0]
        if path and path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                self.logits, self.maps = list(stored["logits"]), list(stored["maps"])
                self.gaps = list(stored["gaps"]) if "gaps" in stored else [0.0]

    def __call__(self, epoch: int, model: torch.nn.Module) -> None:
        if len(self.logits) < epoch:
            raise ValueError(
                f"state: {self.path} holds {len(self.logits)} of the {epoch} epochs before this one; delete it and the "
                "training's .safetensors of the same name"
            )
        del self.logits[epoch:], self.maps[epoch:]  # an epoch that was cut off is seen again
        logits, maps = explain(model, self.test, self.runtime)  # type: ignore[arg-type]
        self.gaps.append(cam.identity_gap(model, torch.from_numpy(logits), torch.from_numpy(maps)))  # type: ignore[arg-type]
        self.logits.append(logits)
        self.maps.append(maps)
        if self.path:
            arrays = {"logits": np.stack(self.logits), "maps": np.stack(self.maps), "gaps": np.array(self.gaps)}
            save_arrays(self.path, arrays)

    def forget(self) -> None:
        if self.path:
            self.path.unlink(missing_ok=True)


def cross_validate(
    dataset: CaseDataset,
    images: training.Stack,
    backbone: Backbone,
    config: training.FitConfig,
    runtime: Runtime,
    folder: str | Path,
    folds: int = 5,
    seeds: Iterable[int] = range(5),
    shuffle_labels: bool = False,
    externals: Mapping[str, training.Stack] | None = None,
    progress: bool = True,
) -> list[Run]:
    """Grouped, stratified cross-validation, `folds` networks for each seed. Finished runs are read from `folder`.

    The folder's name for a run depends on backbone, settings, data set and image size, so several processes may share
    it (each with its own seeds). It does not depend on the order of the cases.
    """
    start = file_digest(Path(backbone.weights)) if backbone.weights and Path(backbone.weights).is_file() else None
    what: list[object] = [replace(backbone, weights=start or backbone.weights), _named(config), dataset.fingerprint]
    what += [folds, shuffle_labels, runtime.bf16, sorted(externals or {})]
    size = images.images.shape[-1]
    what += [size] if size != KEY_SIZE else []
    key = sha256(json.dumps(what, default=str).encode()).hexdigest()[:12]
    runs = []
    todo = [(seed, fold) for seed in seeds for fold in range(folds)]
    for seed, fold in tqdm(todo, desc="networks", disable=not progress):
        base = Path(folder) / key / f"seed{seed}-fold{fold}"
        done = base.with_suffix(".npz")
        if not done.is_file():
            parts = fold_parts(dataset, folds, seed)[fold]
            state = base.with_name(base.name + "-part")
            run, _ = train_run(
                backbone, images, parts, config, runtime, seed, fold, shuffle_labels, externals, state, progress
            )
            save_run(run, done)
        runs.append(load_run(done))
    return runs


def _named(config: training.FitConfig) -> str:
    """Settings as the names of cached runs say them: what was added to them later goes unsaid at its default."""
    text = str(config).replace("augment='ultrasound'", "augment=True").replace("augment='none'", "augment=False")
    return text.replace(", loss='cross_entropy', positive_weight=1.0, group=1)", ")")
