"""Study 4, the scores: networks that saw the same cases, compared over the same folds, with intervals over patients.

Usage::

    performance(folds)                        # Tab. 2 with what it lacks: a row per start and method
    comparisons(folds)                        # paired differences, and the tests over folds and cases

A case is called malignant where the log odds are above 0. All intervals are 95 % and come from resampling patients, one
replicate for all figures of a table, so they hold for the networks as trained. A case has a logit for each seed: every
figure is computed seed by seed and then averaged. The AUC compares cases of the same fold only, that is of the same
network, and is averaged over the folds.

Reference: Li et al. 2025, section 5.1.1, Tab. 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import paired_tests
from xai_lib.studies.resampling import Array, auc_of, resampled

FINE, TRANSFER, MASKS = "fine-tuning", "transfer", "masks"
CONTROLS = ("shuffled masks", "centred disc", "untrained teacher")
PAIRS = (*((name, FINE) for name in (TRANSFER, *CONTROLS, MASKS)), *((TRANSFER, name) for name in CONTROLS))
CLASSES = ("benign", "malignant")
FIGURES = ("accuracy", "auc", "bias", "sensitivity", "specificity", "excess")
GAINS = FIGURES[:3]


# ---------------------------------------------------------------------------------------- classification


@dataclass(frozen=True, eq=False)
class Scores:
    """Logits (N, C) of the same cases; column c is one seed of one network, `mean` (C, M) averages over the seeds."""

    facts: pd.DataFrame  # case, patient_id, label, fold
    names: pd.DataFrame  # of the M networks
    seeds: list[Any]  # of the C columns
    mean: Array
    logits: Array

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each case is called what it is, (N, C)."""
        return (self.logits > 0) == (self.facts["label"].to_numpy() == 1)[:, None]

    def fold_accuracy(self) -> Array:
        """Accuracy of each network in each fold, (folds, M)."""
        return pd.DataFrame(self.right @ self.mean).groupby(self.facts["fold"].to_numpy()).mean().to_numpy()

    def figures(self) -> Callable[[Array], Array]:
        """`FIGURES` of every column from weights, (6, C).

        Excess is the share called malignant minus the share that is malignant, and bias its size. A bootstrap of the
        size lies too high where the excess is near 0.
        """
        sick, called = self.facts["label"].to_numpy() == 1, self.logits > 0
        auc = auc_of(self.logits, sick, self.facts["fold"])

        def of(weights: Array) -> Array:
            malignant, benign = weights[sick].sum(), weights[~sick].sum()
            hits, alarms = weights[sick] @ called[sick], weights[~sick] @ called[~sick]
            excess = (hits + alarms - malignant) / (malignant + benign)
            accuracy = (hits + benign - alarms) / (malignant + benign)
            return np.stack([accuracy, auc(weights), np.abs(excess), hits / malignant, 1 - alarms / benign, excess])

        return of


def scores_of(part: pd.DataFrame, by: Sequence[str]) -> Scores:
    """Logits of the networks named by the columns `by`, for all cases.

    Raises:
        ValueError: a network was not given all cases.
    """
    part = part if "fold" in part else part.assign(fold=0)
    facts = ["case", "patient_id", "label", "fold"]
    wide = part.pivot(index=facts, columns=[*by, "seed"], values="logit")
    if wide.isna().any(axis=None):
        network = wide.columns[wide.isna().any()][0]
        raise ValueError(
            f"{', '.join(by)}, seed: {network} lacks {int(wide[network].isna().sum())} of {len(wide)} cases"
        )
    names = part[list(by)].drop_duplicates().reset_index(drop=True)
    place: dict[Any, int] = {name: i for i, name in enumerate(names.itertuples(index=False, name=None))}
    mean = np.eye(len(names))[[place[column[:-1]] for column in wide.columns]]
    return Scores(
        wide.index.to_frame(index=False),
        names,
        [column[-1] for column in wide.columns],
        mean / mean.sum(0),
        wide.to_numpy(float),
    )


def confusion(part: pd.DataFrame) -> pd.DataFrame:
    """Tab. 2's matrix of one network, summed over folds, mean over seeds; rows the truth, columns what it is called."""
    called = (part["logit"] > 0).astype(int)
    counts = pd.crosstab(part["label"], called).reindex(index=[0, 1], columns=[0, 1], fill_value=0)
    return (counts / part["seed"].nunique()).set_axis(CLASSES).set_axis(CLASSES, axis=1)


def levels(
    part: pd.DataFrame, by: Sequence[str], n: int, seed: int, against: Callable[[str], str] | None = None
) -> pd.DataFrame:
    """One row per network: `FIGURES` as Estimates, mean and sd of accuracy over folds, sd over seeds, confusion matrix.

    With `against`, the name of the network that each (by its first column) is compared with, also the paired
    differences to it, as accuracy_gain and so on for `GAINS`.
    """
    s = scores_of(part, by)
    of, keys = s.figures(), list(s.names[by[0]])
    other = [keys.index(against(key)) for key in keys] if against else []

    def statistic(weights: Array) -> Array:
        found = of(weights) @ s.mean
        return np.vstack([found, found[: len(GAINS)] - found[: len(GAINS), other]]) if against else found

    made = resampled(statistic, s.facts["patient_id"], n, seed)
    names = [*FIGURES, *(f"{name}_gain" for name in GAINS)][: len(made)]
    accuracy, sick = s.fold_accuracy(), (s.facts["label"] == 1).to_numpy()
    rows = []
    for m, key in enumerate(s.names.to_dict("records")):
        own = s.mean[:, m] > 0
        of_seeds = s.right[:, own].mean(0)
        hits, alarms = ((s.logits[rows_][:, own] > 0).sum(0).mean() for rows_ in (sick, ~sick))
        row = {**key, "seeds": int(own.sum()), "folds_mean": accuracy[:, m].mean(), "folds_sd": _sd(accuracy[:, m])}
        row |= {"seeds_sd": _sd(of_seeds), **dict(zip(names, made[:, m], strict=True))}
        row |= {"tn": (~sick).sum() - alarms, "fp": alarms, "fn": sick.sum() - hits, "tp": hits}
        rows.append(row)
    return pd.DataFrame(rows)


def _sd(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def each(table: pd.DataFrame, column: str, of: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """A frame for each value of a column, below each other."""
    made = [(name, of(part)) for name, part in table.groupby(column, sort=False)]
    return pd.concat([frame.assign(**{column: name})[[column, *frame]] for name, frame in made], ignore_index=True)


def reference(method: str) -> str:
    """The fine-tuning that a method is compared with: that of the same groups."""
    _, _, groups = method.partition(", ")
    return f"{FINE}, {groups}" if groups else FINE


def of_cases(part: pd.DataFrame, by: list[str], value: str) -> tuple[pd.DataFrame, pd.Series]:
    """A value averaged over seeds, one row per case and one column per network; and the cases' patients."""
    wide = part.groupby([*by, "case"], sort=False)[value].mean().unstack(by)
    wide = wide.sort_index()
    return wide, part.drop_duplicates("case").set_index("case")["patient_id"].reindex(wide.index)


def performance(folds: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Tab. 2 with what it lacks: `levels` of every start and method."""
    return each(folds, "start", lambda part: levels(part, ["method"], n, seed))


def comparisons(folds: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Paired differences of the `PAIRS` that are there, for each start: first minus second.

    Columns: `GAINS`, as Estimates; p of the paired t-test over folds (`t_test`) and Nadeau and Bengio's
    (`corrected`, with 1 / (folds - 1) as test over training), both on accuracies averaged over seeds; `mcnemar`, exact,
    over cases, seed by seed, and the median of the seeds' p; `holm`, the corrected p after Holm within its family:
    against fine-tuning, and transfer against the controls.
    """

    def compared(part: pd.DataFrame) -> pd.DataFrame:
        s = scores_of(part, ["method"])
        names, of = list(s.names["method"]), s.figures()
        pairs = [pair for pair in PAIRS if set(pair) <= set(names)]
        a, b = ([names.index(pair[k]) for pair in pairs] for k in (0, 1))

        def differences(weights: Array) -> Array:
            found = (of(weights) @ s.mean)[: len(GAINS)]
            return found[:, a] - found[:, b]

        made, accuracy = resampled(differences, s.facts["patient_id"], n, seed), s.fold_accuracy()
        rows = []
        for k, (first, second) in enumerate(pairs):
            gap = accuracy[:, a[k]], accuracy[:, b[k]]
            tests = {"t_test": _ttest(*gap, 0), "corrected": _ttest(*gap, 1 / max(len(accuracy) - 1, 1))}
            family = "against fine-tuning" if second == FINE else "transfer against controls"
            row = {"first": first, "second": second, "family": family, **dict(zip(GAINS, made[:, k], strict=True))}
            rows.append({**row, **tests, "mcnemar": _mcnemar(s, a[k], b[k])})
        frame = pd.DataFrame(rows, columns=["first", "second", "family", *GAINS, "t_test", "corrected", "mcnemar"])
        return frame.assign(holm=frame.groupby("family")["corrected"].transform(_holm))

    return each(folds, "start", compared)


def _ttest(a: Array, b: Array, ratio: float) -> float:
    return paired_tests.corrected_ttest(a, b, ratio) if len(a) > 1 else np.nan


def _holm(p: pd.Series) -> Array:
    return paired_tests.holm(list(p)) if p.notna().all() else np.full(len(p), np.nan)


def _mcnemar(s: Scores, a: int, b: int) -> float:
    """Median over the seeds that both networks have."""
    of = [{s.seeds[c]: s.right[:, c] for c in np.flatnonzero(s.mean[:, m])} for m in (a, b)]
    shared = [seed for seed in of[0] if seed in of[1]]
    return float(np.median([paired_tests.mcnemar(of[0][k], of[1][k]) for k in shared])) if shared else np.nan
