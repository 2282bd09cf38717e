"""Study 4, the training: teachers on masks, students on images, in folds over patients or under a confounder shift.

Usage::

    chosen = Settings(Start("densenet121", "imagenet"))
    table = cross_validated(chosen, dataset, runtime())                       # one row per case, method and seed
    table = confounder_shift(chosen, train, {"reversed": cases}, runtime())

The data sets hold ROIs with masks. Of each network the last group and the classifier train; all other weights *and*
statistics stay as they were. Every training, the teacher's too, follows the same recipe, and keeps the epoch with the
lowest cross-entropy on the validation part. Fine-tuning is the same call with beta = 0. Three controls ask what a gain
comes from: their teacher looks at the mask of another case, at one centred disc for all, or has learned nothing.

Where a network's input is turned by quarter turns only (``augment="turn"``), or not at all, the frozen part is computed
once for each image and position, and shared by all methods, folds and (with given weights) seeds. With other
augmentations it runs anew in every epoch; it needs no gradient, so nothing is kept of it.

A finished training is read from the cache (`stored_tables`), a killed one goes on from its last epoch.

Reference: Li et al. 2025, sections 3.3, 4.1 and 5.1.1.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from xai_lib import knowledge_transfer as kt
from xai_lib import models, stored_tables, training
from xai_lib.augmentations import TURNS, turned
from xai_lib.config import Runtime, cache_dir, numpy_generator, torch_generator
from xai_lib.data import CaseDataset, splits
from xai_lib.data.case import DataError
from xai_lib.data.images import resize
from xai_lib.mammogram_folds import Start
from xai_lib.training import FitConfig, Stack

AUGMENTED = ("roi", "roi_gain", "turn", "none")
TEACHERS = ("masks", "shuffled", "disc", "untrained")

Region = Callable[[CaseDataset], Tensor]  # data set -> (N, size, size), bool


@dataclass(frozen=True)
class Settings:
    """What all methods share. `train_from` is the first group that trains, or "all"; `size` the side of the images.

    The paper gives no optimiser, rate, batch or number of epochs. Ours: Adam at 1e-4, usual for the end of a trained
    network; batches of 16; the epoch of the lowest validation loss, and an end after 8 epochs without a lower one.
    """

    start: Start = field(default_factory=lambda: Start("densenet121", "imagenet"))
    size: int = 224
    train_from: str = "group4"
    pre_norm: bool = False
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=40, batch_size=16, learning_rate=1e-4, patience=8, augment="roi")
    )

    def __post_init__(self) -> None:
        if self.fit.augment not in AUGMENTED:
            raise ValueError(f"augment: {self.fit.augment!r} does not suit masks, expected {', '.join(AUGMENTED)}")

    @property
    def cached(self) -> bool:
        """Whether the frozen part is computed once for each image."""
        return self.train_from != kt.ALL and self.fit.augment in ("turn", "none")


@dataclass(frozen=True)
class Method:
    """How a network is trained: what it reads ("image" | "mask"), equation 5's beta and groups, equation 4's form.

    `teacher` says what the teacher sees: "masks", each case's own; "shuffled", another training case's; "disc", the
    same centred disc; or "untrained": the own mask, but the teacher is the network before training.
    """

    beta: float = 0.0
    groups: tuple[str, ...] = ("group4",)
    form: str = "printed"
    teacher: str = "masks"
    reads: str = "image"

    def __post_init__(self) -> None:
        for name, known in (("form", kt.FORMS), ("teacher", TEACHERS), ("reads", kt.READS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        if not self.beta >= 0 or (self.beta > 0 and not self.groups):
            raise ValueError(f"beta: {self.beta} with groups {self.groups}; expected at least 0, with a group if above")
        if self.beta and self.reads == "mask":
            raise ValueError(f"beta: {self.beta} for a network that reads masks; nothing is transferred to it")

    @property
    def key(self) -> dict[str, Any]:
        """What the result depends on: without a transfer, nothing about it."""
        return asdict(self if self.beta else Method(reads=self.reads))


BETA = 10.0
METHODS = {
    "fine-tuning": Method(),
    "transfer": Method(BETA),
    "shuffled masks": Method(BETA, teacher="shuffled"),
    "centred disc": Method(BETA, teacher="disc"),
    "untrained teacher": Method(BETA, teacher="untrained"),
    "masks": Method(reads="mask"),
}


# ---------------------------------------------------------------------------------------- images with masks


def roi_stack(dataset: CaseDataset, size: int = 224, progress: bool = True) -> Stack:
    """Read every case: image (bilinear, antialiased) and mask (nearest) as two channels, (N, 2, size, size) uint8.

    Raises:
        ValueError: a case without a label or a mask, a mask that is not of the image's size, not binary, empty or full;
            the message names the case.
    """
    pairs, labels = [], []
    for i in tqdm(range(len(dataset)), desc="images", disable=not progress, leave=False):
        case = dataset[i]
        if case.label is None:
            raise ValueError(f"{case.source}: it has no label")
        mask = _binary(case.mask, case.image, case.source)
        small = nn.functional.interpolate(mask[None, None].float(), (size, size), mode="nearest-exact")[0]
        pairs.append((torch.cat((resize(case.image, size), small)) * 255).round().clamp(0, 255).to(torch.uint8))
        labels.append(case.label)
    return Stack(torch.stack(pairs), torch.tensor(labels))


def _binary(mask: Tensor | None, image: Tensor, source: str) -> Tensor:
    """The mask as bool (H, W), or a refusal."""
    if mask is None:
        raise ValueError(f"{source}: it has no mask; knowledge transfer needs one for every case")
    if mask.shape != image.shape[-2:]:
        raise ValueError(f"{source}: the mask has shape {tuple(mask.shape)}, the image {tuple(image.shape[-2:])}")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{source}: the mask is not binary, it has other values than 0 and 1")
    if not mask.any() or mask.all():
        raise ValueError(f"{source}: the mask is {'full' if mask.any() else 'empty'}")
    return mask.bool()


# ---------------------------------------------------------------------------------------- what networks get


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images, masks and one centred disc: pixels, uint8, or the frozen part's output in k positions, float16.

    `image` and `mask` (N, k, C, H, W), `disc` (1, k, C, H, W), `labels` (N).
    """

    image: Tensor
    mask: Tensor
    disc: Tensor
    labels: Tensor

    def first_position(self, index: NDArray[np.int64]) -> Stack:
        """Image and mask of the cases at `index`, as they are."""
        pair = torch.stack((self.image[index, :1], self.mask[index, :1]), 2)
        return Stack(pair.flatten(1, 3), self.labels[index])

    def guided(self, index: NDArray[np.int64], teacher: str, seed: int) -> Stack:
        """The cases at `index` in all positions, each with the mask that this kind of teacher looks at."""
        mask = self.mask[index]
        if teacher == "disc":
            mask = self.disc.expand_as(mask)
        if teacher == "shuffled":  # everybody gets the mask of the next one in a random ring: nobody keeps its own
            ring = torch.from_numpy(numpy_generator(seed, "shuffled masks").permutation(len(index)))
            mask = mask[ring.roll(1)[ring.argsort()]]
        return Stack(torch.stack((self.image[index], mask), 2).flatten(1, 3), self.labels[index])


def reader(settings: Settings, seed: int, reads: str = "image") -> kt.Reader:
    """The network before training, in eval mode: the start's weights, and a head drawn from `seed`."""
    model = settings.start.build(seed)
    models.reset_head(model, torch_generator(seed, "head"))
    return kt.Reader(model, settings.train_from, settings.pre_norm, reads, settings.cached)


def inputs(network: kt.Reader, stack: Stack, settings: Settings, runtime: Runtime) -> Inputs:
    """What `network` and every network with the same frozen part get of a data set.

    The disc covers as much as the mean mask of the data set.
    """
    image, mask = stack.images.split(1, 1)
    disc = kt.centred_disc(mask.shape[-1], min(float((mask > 0).float().mean()), math.pi / 4))
    pixels = (image, mask, 255 * disc[None, None].to(torch.uint8))
    if settings.cached:
        network.to(runtime.device)
        positions = range(TURNS if settings.fit.augment == "turn" else 1)
        image, mask, disc = (_positions(network, part, positions, runtime) for part in pixels)
    else:
        image, mask, disc = (part[:, None] for part in pixels)
    return Inputs(image, mask, disc, stack.labels)


def _positions(network: kt.Reader, pixels: Tensor, positions: Iterable[int], runtime: Runtime) -> Tensor:
    """Frozen part's output for pixels (N, 1, S, S) in each position: (N, k, C, H, W), float16."""
    done = []
    with torch.no_grad():
        for part in pixels.split(32):
            x = part.to(runtime.device).float() / 255
            done.append(torch.stack([network.frozen_output(turned(x, n)).half().cpu() for n in positions], 1))
    return torch.cat(done)


# ---------------------------------------------------------------------------------------- studies


def cross_validated(
    settings: Settings,
    dataset: CaseDataset,
    runtime: Runtime,
    methods: Mapping[str, Method] | None = None,
    seeds: Iterable[int] = (0,),
    folds: int = 5,
    split_seed: int = 0,
    regions: Mapping[str, Region] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Every case by the network that has not seen its patient, for every method and seed, over the same folds.

    Args:
        settings: network and recipe.
        dataset: ROIs with masks. Where its table has a column `copy` (as in `data.rois`), all copies of a lesion
            train, and only copy 0 is used to stop and to test.
        runtime: device and precision of the training; frozen parts and figures are computed in float32.
        methods: by name; None: `METHODS`.
        seeds: of heads, order and augmentation.
        folds: how many; of the other patients 80 % train and 20 % stop.
        split_seed: of the folds.
        regions: further regions by name (calcifications, say), each a function of the data set.
        progress: show bars.

    Returns:
        One row per case, method and seed: case, patient_id, label, fold, method, seed, logit (log odds of malignant),
        `inside` (share of the last group's activation map inside the mask), `area` (the mask's share of the image:
        chance level of `inside`), and for each further region ``inside_<name>`` and ``area_<name>``.

    Raises:
        DataError: fewer patients of a class than folds, or a part of a fold with one class only.
        ValueError: as `roi_stack`, `Reader`, `objective`.
    """
    todo, first = [], _first_copies(dataset)
    for number, parts in enumerate(splits.fold_parts(dataset.subset(first), folds, split_seed)):
        parts = {part: first[index] for part, index in parts.items()}
        for part, index in parts.items():
            _check_classes(dataset, index, f"fold {number}: {part}")
        train = _with_copies(dataset, parts["train"])
        todo.append(_Fold(number, train, parts["val"], {"train": parts["test"]}))
    study = _Study(settings, {"train": dataset}, runtime, regions or {}, progress)
    return study.table(todo, METHODS if methods is None else methods, seeds).drop(columns="test")


def confounder_shift(
    settings: Settings,
    train: CaseDataset,
    tests: Mapping[str, CaseDataset],
    runtime: Runtime,
    methods: Mapping[str, Method] | None = None,
    seeds: Iterable[int] = (0,),
    regions: Mapping[str, Region] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train on one data set (80 % of its patients; 20 % stop) and test on others, whose confounders are different.

    Returns:
        The columns of `cross_validated`, and `test`, the name in `tests`.

    Raises:
        DataError: a data set with one class only.
        ValueError: `tests` is empty or has a set named "train"; as `cross_validated`.
    """
    if not tests or "train" in tests:
        raise ValueError(f"tests: {', '.join(tests) or 'none'}; expected at least one, none of them named 'train'")
    indices = {name: _first_copies(cases) for name, cases in tests.items()}
    for name, index in indices.items():
        _check_classes(tests[name], index, name)
    study = _Study(settings, {"train": train, **tests}, runtime, regions or {}, progress)
    return study.table([_shifted(train, indices)], METHODS if methods is None else methods, seeds)


def networks(
    settings: Settings,
    train: CaseDataset,
    runtime: Runtime,
    methods: Mapping[str, Method] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, models.Classifier]:
    """The networks of `confounder_shift` themselves, by method, in eval mode: to be looked at, or stored."""
    study = _Study(settings, {"train": train}, runtime, {}, progress)
    fold = _shifted(train, {})
    chosen = METHODS if methods is None else methods
    return {name: study.trained(fold, method, seed).model for name, method in chosen.items()}


@dataclass(frozen=True, eq=False)
class _Fold:
    """Indices into the data set "train", and those to test by name of the data set."""

    number: int
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    tests: Mapping[str, NDArray[np.int64]]


def _shifted(train: CaseDataset, tests: Mapping[str, NDArray[np.int64]]) -> _Fold:
    """80 % of the patients to train, 20 % to stop."""
    first = _first_copies(train)
    parts = splits.by_patient(train.subset(first), {"train": 0.8, "val": 0.2})
    for name, index in parts.items():
        _check_classes(train, first[index], name)
    return _Fold(0, _with_copies(train, first[parts["train"]]), first[parts["val"]], tests)


def _first_copies(dataset: CaseDataset) -> NDArray[np.int64]:
    """One ROI of each lesion."""
    table = dataset.table
    return np.flatnonzero(table["copy"] == 0) if "copy" in table else np.arange(len(table))


def _with_copies(dataset: CaseDataset, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """All ROIs of the patients at `index`."""
    return np.flatnonzero(np.isin(dataset.patient_ids, dataset.patient_ids[index]))


def _cases(dataset: CaseDataset, index: NDArray[np.int64]) -> str:
    """Hash of the cases at `index`, in their order."""
    return sha256("\n".join(dataset.table["source"].iloc[index].astype(str)).encode()).hexdigest()


def _check_classes(dataset: CaseDataset, index: NDArray[np.int64], what: str) -> None:
    found = np.unique(dataset.labels[index])
    if len(found) < 2:
        raise DataError(f"{dataset.name}: {what}: all {len(index)} cases are of class {found}, expected both classes")


class _Study:
    """Reads data and trains networks only when a result is not stored."""

    def __init__(
        self,
        settings: Settings,
        sets: Mapping[str, CaseDataset],
        runtime: Runtime,
        regions: Mapping[str, Region],
        progress: bool,
    ) -> None:
        self.settings, self.sets, self.runtime, self.regions = settings, sets, runtime, regions
        self.progress = progress
        self.stack = lru_cache(None)(lambda name: roi_stack(sets[name], settings.size, progress))
        self.region = lru_cache(None)(lambda name, which: regions[which](sets[name]))
        self.inputs = lru_cache(len(sets))(self._inputs)
        self.trained = lru_cache(3)(self._trained)  # the teacher is asked for again

    def _inputs(self, name: str, seed: int) -> Inputs:
        return inputs(reader(self.settings, seed), self.stack(name), self.settings, self.runtime)

    def get(self, name: str, seed: int) -> Inputs:
        """Inputs of a data set; random weights are drawn from the seed, given ones are the same for all seeds."""
        return self.inputs(name, seed if self.settings.start.weights is None else 0)

    def key(self, fold: _Fold, method: Method, seed: int) -> dict[str, Any]:
        """All that a network depends on."""
        chosen = asdict(self.settings) | {"start": self.settings.start.key}
        parts = [_cases(self.sets["train"], index) for index in (fold.train, fold.val)]
        own = {"method": method.key, "seed": seed, "bf16": self.runtime.bf16}
        return {"settings": chosen, "parts": parts, "data": self.sets["train"].fingerprint, **own}

    def _trained(self, fold: _Fold, method: Method, seed: int) -> kt.Reader:
        """The network of one method, trained, in eval mode."""
        settings, where = self.settings, self.runtime
        found, step = reader(settings, seed, method.reads), None
        if method.beta:
            own = method.teacher == "untrained"
            teacher = reader(settings, seed, "mask") if own else self.trained(fold, Method(reads="mask"), seed)
            teacher.to(where.device)
            step = kt.transfer_objective(teacher, found, method.groups, method.beta, method.form)
        data = self.get("train", seed)
        train = data.guided(fold.train, method.teacher if method.beta else "masks", seed)
        config = replace(settings.fit, augment="version") if data.image.shape[1] > 1 else settings.fit
        state = cache_dir() / "knowledge_transfer" / f"{stored_tables.digest(self.key(fold, method, seed))}.safetensors"
        val = data.first_position(fold.val)
        training.fit(found, train, val, config, where, seed, state, progress=self.progress, objective=step)
        return found.eval()

    def table(self, folds: Iterable[_Fold], methods: Mapping[str, Method], seeds: Iterable[int]) -> pd.DataFrame:
        """Rows of all test cases, for every method and seed."""
        jobs = [(seed, fold, name) for seed in seeds for fold in folds for name in methods]
        return pd.concat(
            [
                self._rows(fold, methods[name], seed).assign(fold=fold.number, method=name, seed=seed)
                for seed, fold, name in tqdm(jobs, desc="networks", disable=not self.progress)
            ],
            ignore_index=True,
        )

    def _rows(self, fold: _Fold, method: Method, seed: int) -> pd.DataFrame:
        names = list(fold.tests)
        tests = [[self.sets[name].fingerprint, _cases(self.sets[name], fold.tests[name])] for name in names]
        key = self.key(fold, method, seed) | {"tests": tests, "regions": sorted(self.regions)}
        stored = stored_tables.table("knowledge_transfer", key, lambda: self._computed(fold, method, seed))
        rows = []
        for number, name in enumerate(names):  # names and cases are not stored: a CSV would read "01" as 1
            part = stored[stored["test"] == number]
            cases = self.sets[name].table.iloc[part["row"]].reset_index(drop=True)
            known = cases[["patient_id", "label"]].astype({"label": int}).assign(test=name)
            figures = part.drop(columns=["test", "row"]).reset_index(drop=True)
            rows.append(pd.concat([cases["source"].rename("case"), known, figures], axis=1))
        return pd.concat(rows, ignore_index=True)

    def _computed(self, fold: _Fold, method: Method, seed: int) -> pd.DataFrame:
        network = self.trained(fold, method, seed)
        tests = enumerate(fold.tests.items())
        return pd.concat([self._tested(network, name, index, seed).assign(test=i) for i, (name, index) in tests])

    def _tested(self, network: kt.Reader, name: str, index: NDArray[np.int64], seed: int) -> pd.DataFrame:
        """Logits of test cases, and where their activation maps lie."""
        last = list(network.groups)[-1]
        logits, maps = [], []
        with torch.inference_mode():
            for x, _ in self.get(name, seed).first_position(index).batches(32, self.runtime):
                out, found = network.read(x, [last])
                logits.append(out.float().cpu())
                maps.append(kt.activation_map(found[last]).cpu())
        values = torch.cat(logits).numpy()
        columns = {"row": index, "logit": training.scores(values[:, 0] if values.shape[1] == 1 else values)}
        places = {"": self.stack(name).images[index, 1] > 0}
        places |= {f"_{which}": self.region(name, which)[index].bool() for which in self.regions}
        for which, region in places.items():
            columns[f"inside{which}"] = kt.share_inside(torch.cat(maps), region).numpy()
            columns[f"area{which}"] = region.float().mean((1, 2)).numpy()
        return pd.DataFrame(columns)
