"""Study 4, the training: teachers on masks, students on images, in folds over patients or under a confounder shift.

Usage::

    chosen = Settings(Start("densenet121", "imagenet"))
    table = cross_validated(chosen, dataset, runtime())                       # one row per case, method and seed
    table = confounder_shift(chosen, train, {"reversed": cases}, runtime())

The data sets hold ROIs with masks. Of each network the last group and the classifier train; all other weights *and*
statistics stay as they were. Every training, the teacher's too, follows the same recipe, and keeps the epoch with the
lowest cross-entropy on the validation part. Fine-tuning is the same call with beta = 0. Three controls ask what a gain
comes from: their teacher looks at the mask of another case, at one centred disc for all, or has learned nothing.

A finished training is read from the cache (`stored_tables`), a killed one goes on from its last epoch.

Reference: Li et al. 2025, sections 3.3, 4.1 and 5.1.1.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from xai_lib import knowledge_transfer as kt
from xai_lib import models, stored_tables, training
from xai_lib.config import Runtime, cache_dir
from xai_lib.data import CaseDataset, splits
from xai_lib.data.case import DataError
from xai_lib.studies.transfer.inputs import METHODS, Inputs, Method, Settings, inputs, reader, roi_stack

Region = Callable[[CaseDataset], Tensor]  # data set -> (N, size, size), bool


def cross_validated(
    settings: Settings,
    dataset: CaseDataset,
    runtime: Runtime,
    methods: Mapping[str, Method] | None = None,
    seeds: Iterable[int] = (0,),
    folds: int = 5,
    split_seed: int = 0,
    regions: Mapping[str, Region] | None = None,
    distances: bool = False,
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
        distances: also measure the distance to the teacher's map, which needs a teacher for fine-tuning too.
        progress: show bars.

    Returns:
        One row per case, method and seed: case, patient_id, label, fold, method, seed, logit (log odds of malignant),
        `inside` (share of the last group's activation map inside the mask), `area` (the mask's share of the image:
        chance level of `inside`), for each further region ``inside_<name>`` and ``area_<name>``, and if wanted
        `distance`, equation 4 as printed between the last group's maps of the mask, by a network trained on masks, and
        of the image (NaN for a network that reads masks).

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
    study = _Study(settings, {"train": dataset}, runtime, regions or {}, distances, progress)
    return study.table(todo, METHODS if methods is None else methods, seeds).drop(columns="test")


def confounder_shift(
    settings: Settings,
    train: CaseDataset,
    tests: Mapping[str, CaseDataset],
    runtime: Runtime,
    methods: Mapping[str, Method] | None = None,
    seeds: Iterable[int] = (0,),
    regions: Mapping[str, Region] | None = None,
    distances: bool = False,
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
    study = _Study(settings, {"train": train, **tests}, runtime, regions or {}, distances, progress)
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
    study = _Study(settings, {"train": train}, runtime, {}, False, progress)
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
        distances: bool,
        progress: bool,
    ) -> None:
        self.settings, self.sets, self.runtime, self.regions = settings, sets, runtime, regions
        self.distances, self.progress = distances, progress
        self.stack = lru_cache(None)(lambda name: roi_stack(sets[name], settings.size, progress))
        self.region = lru_cache(None)(lambda name, which: regions[which](sets[name]))
        self.inputs = lru_cache(len(sets))(self._inputs)
        self.trained = lru_cache(3)(self._trained)  # the teacher is asked for again

    def _inputs(self, name: str, seed: int) -> Inputs:
        return inputs(reader(self.settings, seed), self.stack(name), self.settings, self.runtime, name == "train")

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
        key |= {"distances": True} if self.distances else {}
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
        wanted = self.distances and method.reads == "image"
        teacher = self.trained(fold, Method(reads="mask"), seed) if wanted else None
        tests = enumerate(fold.tests.items())
        return pd.concat(
            [self._tested(network, teacher, name, index, seed).assign(test=i) for i, (name, index) in tests]
        )

    def _tested(
        self, network: kt.Reader, teacher: kt.Reader | None, name: str, index: NDArray[np.int64], seed: int
    ) -> pd.DataFrame:
        """Logits of test cases, where their activation maps lie, and how far from the teacher's."""
        last = list(network.groups)[-1]
        logits, maps, apart = [], [], []
        with torch.inference_mode():
            for x, _ in self.get(name, seed).first_position(index).batches(32, self.runtime):
                out, found = network.read(x, [last])
                logits.append(out.float().cpu())
                maps.append(kt.activation_map(found[last]).cpu())
                if teacher:
                    aim = kt.activation_map(teacher.read(x, [last])[1][last]).cpu()
                    apart.append(kt.transfer_distance(aim, maps[-1], layer=last))
        values = torch.cat(logits).numpy()
        columns = {"row": index, "logit": training.scores(values[:, 0] if values.shape[1] == 1 else values)}
        places = {"": self.stack(name).images[index, 1] > 0}
        places |= {f"_{which}": self.region(name, which)[index].bool() for which in self.regions}
        for which, region in places.items():
            columns[f"inside{which}"] = kt.share_inside(torch.cat(maps), region).numpy()
            columns[f"area{which}"] = region.float().mean((1, 2)).numpy()
        if self.distances:
            columns["distance"] = torch.cat(apart).numpy() if apart else np.full(len(index), np.nan)
        return pd.DataFrame(columns)
