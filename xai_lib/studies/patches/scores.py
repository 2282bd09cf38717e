"""Study 1, the networks: which classifies better (claim 1.1), and what their scores do when the lesion is changed.

Usage::

    table, difference = compare(tables.scores)
    difference["accuracy, normal"]                 # first network minus second, paired, with its interval
    intervention(tables.scores)                    # shifted lesions, healthy twins, benign masses

A patch is called malignant where the log odds are above 0 (the softmax above 0.5).

Reference: Sam-Millan et al. 2023, section 3.2.2.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import statistics
from xai_lib.results import Estimate

AGAINST = ("normal", "benign")


def compare(scores: pd.DataFrame, n: int = 1000, seed: int = 0) -> tuple[pd.DataFrame, dict[str, Estimate]]:
    """Claim 1.1: AUC, accuracy, sensitivity and specificity of every network on the same patches.

    Args:
        scores: columns network, set, index, patient_id, label, kind, score; the sets "centred" and "benign" are used.
        n: replicates.
        seed: of the bootstrap.

    Returns:
        A row per network and kind of negatives (`AGAINST`): malignant against normal patches, as in the thesis, and
        against the same normal patches with a benign mass in them; "one class" is the accuracy of always naming the
        larger class. And the first network minus the second, "accuracy, normal" and so on, paired; NaN for one network.
    """
    benign = scores[scores["set"] == "benign"].assign(kind="benign")
    used = pd.concat([scores[(scores["set"] == "centred") & (scores["kind"] != "benign")], benign])
    facts = ["index", "patient_id", "label", "kind"]
    wide = used.pivot(index=facts, columns="network", values="score").reset_index()
    networks = list(dict.fromkeys(scores["network"]))[:2]

    def statistic(frame: pd.DataFrame) -> pd.Series:
        label, kind = frame["label"].to_numpy(), frame["kind"].to_numpy()
        found: dict[str, float] = {}
        for against in AGAINST:
            rows = (label == 1) | (kind == against)
            for name in networks:
                figures = _classified(label[rows], frame[name].to_numpy()[rows])
                found |= {f"{key}, {against}, {name}": value for key, value in figures.items()}
            for key in ("accuracy", "auc"):
                own = [found[f"{key}, {against}, {name}"] for name in networks]
                found[f"{key}, {against}"] = own[0] - own[1] if len(own) == 2 else np.nan
        return pd.Series(found)

    made = statistics.bootstrap_many(statistic, wide, n=n, seed=seed)
    rows = []
    for against in AGAINST:
        label = wide["label"][(wide["label"] == 1) | (wide["kind"] == against)]
        larger = Estimate(max(label.mean(), 1 - label.mean()), method="always the larger class")
        for name in networks:
            found = {key: made[f"{key}, {against}, {name}"] for key in _classified(np.array([]), np.array([]))}
            rows.append({"network": name, "against": against, "patches": len(label), **found, "one class": larger})
    return pd.DataFrame(rows), {f"{key}, {a}": made[f"{key}, {a}"] for key in ("accuracy", "auc") for a in AGAINST}


def _classified(label: NDArray[np.int64], score: NDArray[np.float64]) -> dict[str, float]:
    """AUC, accuracy, sensitivity and specificity; NaN where a class is missing."""
    right, sick = (score > 0) == (label == 1), label == 1
    both = 0 < sick.sum() < len(sick)
    return {
        "auc": statistics.auc(label, score) if both else np.nan,
        "accuracy": _mean(right) if both else np.nan,
        "sensitivity": _mean(right[sick]),
        "specificity": _mean(right[~sick]),
    }


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else np.nan


def intervention(scores: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """What each network does where the lesion is moved, or gone, or a benign mass put in: a row per network.

    Columns: `called_centred`, `called_shifted`, `called_twin`, the share of the malignant patches that is called
    malignant; `called_normal`, `called_benign`, that of the normal patches, as they are and with a benign mass;
    `lost_shifted`, `lost_twin`, `gained_benign`, the paired differences; `higher_than_twin`, the share of malignant
    patches with a higher score than their twin (chance one half); `auc_centred`, `auc_shifted`.
    """
    rows = []
    for name, part in scores[scores["kind"] != "benign"].groupby("network", sort=False):
        wide = part.pivot(index=["index", "patient_id", "label"], columns="set", values="score")
        wide = wide.reindex(columns=["centred", "shifted", "twin", "benign"]).reset_index()
        rows.append({"network": name, **statistics.bootstrap_many(_followed, wide, n=n, seed=seed)})
    return pd.DataFrame(rows)


def _followed(frame: pd.DataFrame) -> pd.Series:
    label, centred = frame["label"].to_numpy(), frame["centred"].to_numpy()
    sick = {f"called_{name}": frame[name].to_numpy()[label == 1] for name in ("centred", "shifted", "twin")}
    well = {"called_normal": centred[label == 0], "called_benign": frame["benign"].to_numpy()[label == 0]}
    twin = sick["called_twin"]
    called = {name: _mean(score > 0) if np.isfinite(score).all() else np.nan for name, score in (sick | well).items()}
    return pd.Series(
        {
            **called,
            "lost_shifted": called["called_centred"] - called["called_shifted"],
            "lost_twin": called["called_centred"] - called["called_twin"],
            "gained_benign": called["called_benign"] - called["called_normal"],
            "higher_than_twin": _mean(sick["called_centred"] > twin) if np.isfinite(twin).all() else np.nan,
            "auc_centred": _classified(label, centred)["auc"],
            "auc_shifted": _classified(label, frame["shifted"].to_numpy())["auc"],
        }
    )
