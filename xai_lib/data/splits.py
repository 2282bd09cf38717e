"""Splits that never put one patient on two sides.

Usage::

    parts = by_patient(cases, seed=0)                 # {"train": indices, "val": ..., "test": ...}
    for train, test in folds(cases, k=5, seed=0): ...
    check_disjoint(cases, train=parts["train"], test=parts["test"])
"""

from collections.abc import Mapping

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from xai_lib import config
from xai_lib.data.case import CaseDataset, DataError

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


def by_patient(
    dataset: CaseDataset, fractions: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Split into parts, stratified by label, with all cases of a patient in one part.

    Patients are taken in random order; each goes to the part that, relative to its share, lacks most of the
    patient's labels.

    Args:
        dataset: the cases.
        fractions: share of each part, by name; the default is train 0.6, val 0.2, test 0.2. They add to 1.
        seed: the same seed gives the same split.

    Returns:
        Sorted indices (int64) of each part.

    Raises:
        DataError: one class only, or a class has fewer patients than there are parts.
        ValueError: the fractions are not positive or do not add to 1.
    """
    shares = dict(fractions or FRACTIONS)
    if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"fractions: {shares} are not positive numbers that add to 1")
    classes, label_of = _classes(dataset, len(shares), "parts")
    patients, patient_of = np.unique(dataset.patient_ids, return_inverse=True)
    counts = np.zeros((len(patients), len(classes)))
    np.add.at(counts, (patient_of, label_of), 1)  # (patients, classes)
    want = np.outer(list(shares.values()), counts.sum(axis=0))  # (parts, classes)
    have = np.zeros_like(want)
    part_of = np.empty(len(patients), dtype=int)
    order = np.argsort([-share for share in shares.values()], kind="stable")  # ties go to the largest part
    for patient in config.numpy_generator(seed, "split").permutation(len(patients)):
        lack = ((want - have) / want) @ counts[patient]
        part_of[patient] = order[np.argmax(lack[order])]
        have[part_of[patient]] += counts[patient]
    return {name: np.flatnonzero(part_of[patient_of] == part) for part, name in enumerate(shares)}


def folds(dataset: CaseDataset, k: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation: `k` pairs of (train, test) indices, stratified by label, patients never separated.

    Raises:
        DataError: one class only, or a class has fewer patients than `k`.
        ValueError: `k` is below 2.
    """
    if k < 2:
        raise ValueError(f"k: {k} folds; at least 2 are needed")
    _, label_of = _classes(dataset, k, "folds")
    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(dataset)), label_of, dataset.patient_ids))


def fold_parts(dataset: CaseDataset, k: int = 5, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Train, validation and test indices of every fold: test is the fold, the rest is split 80:20, patients whole."""
    out = []
    for rest, test in folds(dataset, k, seed):
        inner = by_patient(dataset.subset(rest), {"train": 0.8, "val": 0.2}, seed)
        parts = {"train": rest[inner["train"]], "val": rest[inner["val"]], "test": test}
        check_disjoint(dataset, **parts)
        out.append(parts)
    return out


def check_disjoint(dataset: CaseDataset, **parts: np.ndarray) -> None:
    """Check that no patient is in two parts: ``check_disjoint(cases, train=train, test=test)``.

    Raises:
        DataError: a patient is; the message names the patient and the two parts.
    """
    seen: dict[str, str] = {}
    for name, indices in parts.items():
        for patient in np.unique(dataset.patient_ids[np.asarray(indices, dtype=int)]):
            if patient in seen:
                raise DataError(f"{dataset.name}: patient {patient} is in {seen[patient]!r} and in {name!r}")
            seen[str(patient)] = name


def _classes(dataset: CaseDataset, parts: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The classes and each case's class number; checks that every class has enough patients."""
    classes, label_of = np.unique(dataset.labels, return_inverse=True)
    if classes[0] < 0:
        raise DataError(f"{dataset.name}: {int((label_of == 0).sum())} cases have no label; a split needs all of them")
    if len(classes) < 2:
        raise DataError(f"{dataset.name}: only class {classes[0]} is there; a stratified split needs two or more")
    for number, label in enumerate(classes):
        patients = len(np.unique(dataset.patient_ids[label_of == number]))
        if patients < parts:
            raise DataError(f"{dataset.name}: class {label} has {patients} patients, fewer than the {parts} {what}")
    return classes, label_of
