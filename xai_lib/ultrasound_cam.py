"""Study 3, the experiment: train a breast-mass classifier, and keep its logits and class activation maps.

Usage::

    areas = region_maps(dataset)                                  # the paper's regions, one array per image
    runs = cross_validate(dataset, images, backbone, FitConfig(), runtime(), folds=5, seeds=range(5), folder="runs")
    frame = points(runs, areas, dataset)                          # one row per test image, run and map: what was hit

One `Run` is one network and its test images. It keeps the logits and the (small) activation maps of every epoch, so
that both ways of early stopping, the pointing game against training length, and every table are read from the same
training. Tables, intervals and verdicts are in `pointing_tables`.

Reference: Byra et al. 2022, "Deep learning methods" and "Evaluations".
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm.auto import tqdm

from xai_lib import localization, models, training
from xai_lib.attribution import alignment, cam
from xai_lib.config import Runtime, numpy_generator, torch_generator
from xai_lib.data import CaseDataset, splits
from xai_lib.data.case import file_digest

OFFSET_IMAGES = 12  # as many as the offset check needs
UNTRAINED = ("random_network", "linear_head")  # control networks in `Run.extras`, the same at every epoch
OTHER_CELLS = ("layer_cam", "cameras", "random_network")  # maps whose cells the measured offset says nothing about


@dataclass(frozen=True)
class Backbone:
    """A network to start from: the arguments of `models.build`, and what trains (drs | head | all)."""

    name: str = "squeezenet1_1"
    weights: str | None = None
    padding: str = "torchvision"
    transfer: str = "drs"
    layer: str = "features"  # for LayerCAM

    def build(self, seed: int, pretrained: bool = True) -> models.Classifier:
        """A fresh network whose head (and, without weights, everything) is drawn from `seed`."""
        if self.transfer not in ("drs", "head", "all"):
            raise ValueError(f"transfer: {self.transfer!r} is not 'drs', 'head' or 'all'")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(numpy_generator(seed, "weights").integers(2**62)))  # torchvision draws globally
            weights = self.weights if pretrained else None
            model = models.build(self.name, weights=weights, padding=self.padding)
        models.reset_head(model, torch_generator(seed, "head"))
        if self.transfer == "drs":
            models.add_representation_scaling(model)
        elif self.transfer == "head":
            models.freeze_backbone(model)
        return model


@dataclass(frozen=True)
class Run:
    """One trained network and what it says about its test images.

    `logits` (E, N) and `maps` (E, N, h, w) run over epochs, 0 being the untrained network, as do `test_loss` (E,) and
    `val_loss` (E,; NaN at 0). `offset` is the measured offset of a cell as a share of the image (rows, columns), `gap`
    the largest deviation from ``logit = mean(map) + bias``. `extras` holds, by name, the extreme points (N, 2, 2) of
    further maps as shares of the image (maximum and minimum; row and column), and ``logits_<name>`` where a map comes
    from another network.
    """

    seed: int
    fold: int
    test: NDArray[np.int64]
    logits: NDArray[np.float32]
    maps: NDArray[np.float32]
    val_loss: NDArray[np.float64]
    test_loss: NDArray[np.float64]
    offset: NDArray[np.float64]
    gap: NDArray[np.float64]
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def epoch(self, early_stopping: str = "validation", patience: int | None = None) -> int:
        """Epoch that early stopping keeps: on the validation loss, or, as in the paper, on the test loss.

        Of the epochs that were trained the one with the lowest loss, which on the validation loss is the kept network;
        with `patience`, as if training had ended after so many epochs without a lower loss.
        """
        if early_stopping not in ("validation", "test"):
            raise ValueError(f"early_stopping: {early_stopping!r} is not 'validation' or 'test'")
        losses = (self.val_loss if early_stopping == "validation" else self.test_loss)[1:]
        if not len(losses):
            return 0
        best = 0
        for e, loss in enumerate(losses):
            if loss < losses[best]:
                best = e
            elif patience is not None and e - best >= patience:
                break
        return best + 1


def region_maps(dataset: CaseDataset, progress: bool = True, **options: Any) -> list[NDArray[np.uint8]]:
    """The regions of every image at its own resolution; `options` go to `localization.regions`."""
    out = []
    for i in tqdm(range(len(dataset)), desc="regions", disable=not progress, leave=False):
        case = dataset[i]
        if case.mask is None:
            raise ValueError(f"{case.source}: it has no mask, so there are no regions")
        try:
            out.append(localization.regions(case.mask.numpy(), case.pixel_mm, **options))
        except ValueError as error:
            raise ValueError(f"{case.source}: {error}") from error
    return out


def explain(
    model: models.Classifier, images: training.Stack, runtime: Runtime, batch_size: int = 32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N,) and signed class activation maps (N, h, w), in float32."""
    model.eval()
    parts = [cam.class_activation_map(model, x) for x, _ in images.batches(batch_size, runtime)]
    return tuple(torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))  # type: ignore[return-value]


def relative_points(maps: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Centres of the largest and smallest cell of maps (N, h, w), as shares of height and width: (N, 2, 2)."""
    out = []
    for m in np.asarray(maps):
        found = localization.extremes(m, m.shape)
        out.append([(np.array(p) + 0.5) / m.shape for p in (found.maximum, found.minimum)])
    return np.array(out)


def first_points(maps: NDArray[Any] | Tensor, size: int = 224) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Naive reading: first extreme pixel of each map resized to `size`, (N, 2, 2), and whether it was tied, (N, 2)."""
    resized = cam.resize_map(torch.as_tensor(np.asarray(maps)), (size, size)).numpy()
    found = [localization.extremes(m, (size, size)) for m in resized]
    where = np.array([[f.maximum, f.minimum] for f in found])
    return (where + 0.5) / size, np.array([f.ties for f in found]) > 1


def measured_offset(model: models.Classifier, images: training.Stack, runtime: Runtime) -> NDArray[np.float64]:
    """Offset of a cell as a share of the image, measured on the first images; no label is used."""
    x, _ = next(images.batches(OFFSET_IMAGES, runtime))
    found = alignment.cell_offset(model, x)
    return np.array([found.rows / x.shape[2], found.cols / x.shape[3]])


def other_maps(
    model: models.Classifier, images: training.Stack, layer: str, runtime: Runtime
) -> dict[str, NDArray[Any]]:
    """Extreme points of the maps that the paper's discussion asks for: Grad-CAM, LayerCAM at `layer`, CAMERAS."""
    found: dict[str, list[NDArray[Any]]] = {"grad_cam": [], "layer_cam": [], "cameras": []}
    model.eval()
    for x, _ in images.batches(8, runtime):
        found["grad_cam"].append(relative_points(cam.grad_cam(model, x).cpu()))
        found["layer_cam"].append(relative_points(cam.layer_cam(model, x, layer).cpu()))
        found["cameras"].append(relative_points(cam.cameras(model, x).cpu()))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def linear_head(model: models.Classifier, train: training.Stack, runtime: Runtime) -> models.Classifier:
    """Set the head to a logistic regression on the pooled features of `train` (standardised, C = 0.01), in place."""
    with torch.inference_mode():
        pooled = torch.cat([model.feature_maps(x).mean((2, 3)).cpu() for x, _ in train.batches(32, runtime)]).numpy()
    weight, bias = _regression(pooled, train.labels.numpy())
    with torch.no_grad():
        model.head.weight.copy_(torch.as_tensor(weight)[None])
        model.head.bias.fill_(bias)
    return model


def _regression(pooled: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Weights (K,) and bias of a logistic regression on pooled features (N, K), in the features' own units."""
    mean, sd = pooled.mean(0), pooled.std(0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=1000).fit((pooled - mean) / sd, labels)
    weight = fit.coef_[0] / sd
    return weight, float(fit.intercept_[0] - weight @ mean)


def _controls(
    backbone: Backbone, train: training.Stack, test: training.Stack, seed: int, runtime: Runtime
) -> dict[str, NDArray[Any]]:
    """Points and logits of networks that learnt nothing (random weights), or only a linear head."""
    out: dict[str, NDArray[Any]] = {}
    untrained = backbone.build(seed, pretrained=False).to(runtime.device)
    logits, maps = explain(untrained, test, runtime)
    out |= {"random_network": relative_points(maps), "logits_random_network": logits}
    if backbone.weights:
        plain = (
            Backbone(backbone.name, backbone.weights, backbone.padding, "head").build(seed).to(runtime.device).eval()
        )
        logits, maps = explain(linear_head(plain, train, runtime), test, runtime)
        out |= {"linear_head": relative_points(maps), "logits_linear_head": logits}
    return out


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
        more |= _controls(backbone, sets["train"], sets["test"], seed, runtime)
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
        test_loss=np.array([_log_loss(sets["test"].labels.numpy(), row) for row in logits]),
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
        more = other_maps(model, images, backbone.layer, runtime) | _controls(unfitted, images, images, seed, runtime)
    return Run(
        seed=seed,
        fold=0,
        test=np.arange(len(images)),
        logits=logits[None],
        maps=maps[None],
        val_loss=np.array([np.nan]),
        test_loss=np.array([_log_loss(images.labels.numpy(), logits)]),
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


def _log_loss(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    """Mean binary cross-entropy of logits."""
    return float(np.mean(np.logaddexp(0, logits.astype(float)) - labels * logits))


def fold_parts(dataset: CaseDataset, folds: int, seed: int) -> list[dict[str, NDArray[np.int64]]]:
    """Train, validation and test indices of every fold: test is the fold, the rest is split 80:20, patients whole."""
    out = []
    for rest, test in splits.folds(dataset, folds, seed):
        inner = splits.by_patient(dataset.subset(rest), {"train": 0.8, "val": 0.2}, seed)
        parts = {"train": rest[inner["train"]], "val": rest[inner["val"]], "test": test}
        splits.check_disjoint(dataset, **parts)
        out.append(parts)
    return out


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

    The folder's name for a run depends on backbone, settings and data set, so several processes may share it (each
    with its own seeds). It does not depend on the size of `images` nor on the order of the cases.
    """
    start = file_digest(Path(backbone.weights)) if backbone.weights and Path(backbone.weights).is_file() else None
    what: list[object] = [replace(backbone, weights=start or backbone.weights), config, dataset.fingerprint]
    what += [folds, shuffle_labels, runtime.bf16, sorted(externals or {})]
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


def linear_runs(
    dataset: CaseDataset,
    images: training.Stack,
    backbone: Backbone,
    runtime: Runtime,
    folds: int = 5,
    seeds: Iterable[int] = range(5),
) -> list[Run]:
    """Cross-validation with a linear head only: the frozen features of every image are computed once.

    The head is the logistic regression of `linear_head`; nothing is stopped early, so it learns from the training and
    the validation part. Fast enough to compare backbones.
    """
    model = replace(backbone, transfer="head").build(0).to(runtime.device).eval()
    with torch.inference_mode():
        features = torch.cat([model.feature_maps(x).float().cpu() for x, _ in images.batches(32, runtime)])
    pooled, labels = features.mean((2, 3)).numpy(), images.labels.numpy()
    offset = measured_offset(model, images, runtime)
    runs = []
    for seed in seeds:
        for fold, parts in enumerate(fold_parts(dataset, folds, seed)):
            train = np.concatenate([parts["train"], parts["val"]])
            weight, bias = _regression(pooled[train], labels[train])
            maps = torch.einsum("k,nkhw->nhw", torch.from_numpy(weight).float(), features[parts["test"]]).numpy()
            logits = (pooled[parts["test"]] @ weight + bias).astype(np.float32)
            gap = np.abs(logits - maps.mean((1, 2)) - bias) / np.maximum(1, np.abs(logits))
            loss = np.array([_log_loss(labels[parts["test"]], logits)])
            nothing = np.array([np.nan])
            runs.append(Run(seed, fold, parts["test"], logits[None], maps[None], nothing, loss, offset, gap.max()))
    return runs


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an .npz whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp.npz")
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def save_run(run: Run, path: Path) -> None:
    """Store a run as .npz."""
    names = ("test", "logits", "maps", "val_loss", "test_loss", "offset", "gap")
    arrays = {name: getattr(run, name) for name in names} | {"run": np.array([run.seed, run.fold])}
    save_arrays(path, arrays | {f"extra/{name}": value for name, value in run.extras.items()})


def load_run(path: Path) -> Run:
    """Read a run."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    extras = {name.removeprefix("extra/"): arrays.pop(name) for name in list(arrays) if name.startswith("extra/")}
    seed, fold = (int(v) for v in arrays.pop("run"))
    return Run(seed=seed, fold=fold, extras=extras, **arrays)


def points(
    runs: Sequence[Run],
    areas: Sequence[NDArray[np.uint8]],
    dataset: CaseDataset,
    which: str = "cam",
    early_stopping: str = "validation",
    epoch: int | None = None,
    align: str = "resize",
) -> pd.DataFrame:
    """One row per run and test image: its logit, its label, and which region each extreme point hit.

    Args:
        runs: from `train_run` or `cross_validate`.
        areas: from `region_maps`, for the whole data set.
        dataset: the whole data set; with `which` an external one, that one, and runs whose `test` counts its images.
        which: "cam", "cam_first" (first pixel of the resized map), or a key of `Run.extras`.
        early_stopping: "validation" or "test".
        epoch: look at this epoch (or the last before it) instead.
        align: "resize" draws the map as the paper does; "measured" adds the network's offset to its points.

    Returns:
        Columns seed, fold, index, source, patient_id, label, logit, and ``max_mass ... min_any`` (bool).

    Raises:
        ValueError: no run, an unknown option, or a combination that the runs cannot answer.
    """
    if align not in ("resize", "measured"):
        raise ValueError(f"align: {align!r} is not 'resize' or 'measured'")
    if align == "measured" and which in OTHER_CELLS:
        raise ValueError(f"align: the offset was measured on the last layer of the trained network, not on {which!r}")
    if which not in ("cam", "cam_first", *UNTRAINED) and (early_stopping != "validation" or epoch is not None):
        raise ValueError(f"which: {which!r} is known for the network that validation stopping keeps, and no other")
    if not runs:
        raise ValueError("runs: there is none")
    if len(areas) != len(dataset):
        raise ValueError(f"areas: {len(areas)} for the {len(dataset)} cases of {dataset.name}")
    rows = []
    for run in runs:
        e = run.epoch(early_stopping) if epoch is None else min(epoch, len(run.logits) - 1)
        logits = run.extras.get(f"logits_{which}", run.logits[e])
        where = _points_of(run, which, e) + (run.offset if align == "measured" else 0)
        if not len(where) == len(logits) == len(run.test):
            raise ValueError(f"which: {which!r} has points on {len(where)} images, the run tested {len(run.test)}")
        for i, index in enumerate(run.test):
            area = areas[index]
            row = {"seed": run.seed, "fold": run.fold, "index": int(index), "logit": float(logits[i])}
            for name, place in zip(("max", "min"), where[i], strict=True):
                pixel = np.clip(place * area.shape - 0.5, 0, np.array(area.shape) - 1)
                hits = localization.region_hits(tuple(pixel), area)
                row |= {f"{name}_{region}": hit for region, hit in hits.items()}
                row[f"{name}_any"] = any(hits.values())
            rows.append(row)
    frame = pd.DataFrame(rows)
    facts = dataset.table.reset_index(drop=True)[["source", "patient_id", "label"]]
    return frame.join(facts, on="index")


def _points_of(run: Run, which: str, epoch: int) -> NDArray[Any]:
    if which == "cam":
        return relative_points(run.maps[epoch])
    if which == "cam_first":
        return first_points(run.maps[epoch])[0]
    known = [name for name in run.extras if not name.startswith("logits_")]
    if which not in known:
        raise ValueError(f"which: {which!r} is unknown, expected one of {', '.join(['cam', 'cam_first', *known])}")
    return run.extras[which]
