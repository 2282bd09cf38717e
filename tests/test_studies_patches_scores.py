import math

import numpy as np
import pandas as pd
import pytest

from xai_lib import statistics
from xai_lib.studies.patches.scores import compare, intervention


def scores_table(first, second, kinds, sets=("centred",)):
    rows = []
    for network, values in {"resnet50": first, "mobilenet_v2": second}.items():
        for which in sets:
            for i, (score, kind) in enumerate(zip(values, kinds, strict=True)):
                if kind != {"twin": "malignant", "benign": "normal"}.get(which, kind):
                    continue
                row = {"network": network, "set": which, "index": i, "patient_id": f"p{i // 2}", "kind": kind}
                moved = {"centred": score, "shifted": score / 2, "twin": score - 3, "benign": score + 1.5}[which]
                rows.append({**row, "label": int(kind == "malignant"), "score": moved})
    return pd.DataFrame(rows)


KINDS = ["malignant", "malignant", "malignant", "malignant", "normal", "normal", "normal", "normal"]
FIRST = [2.0, 1.0, 1.0, -1.0, -1.0, -2.0, -1.0, 1.0]  # 6 of 8 right
SECOND = [1.0, -1.0, 1.0, -1.0, 0.5, -2.0, -1.0, -1.0]  # 5 of 8 right
SETS_SCORED = ("centred", "twin", "shifted", "benign")


def test_networks_by_hand():
    table, difference = compare(scores_table(FIRST, SECOND, KINDS, SETS_SCORED), n=50)
    rows = table.set_index(["network", "against"])
    assert rows["accuracy"]["resnet50", "normal"].value == 6 / 8
    assert rows["accuracy"]["mobilenet_v2", "normal"].value == 5 / 8
    assert rows["sensitivity"]["resnet50", "benign"].value == 3 / 4
    assert rows["specificity"]["resnet50", "benign"].value == 1 / 4  # scores 0.5, -0.5, 0.5, 2.5
    assert rows["one class"]["resnet50", "normal"].value == 1 / 2
    assert rows["patches"]["resnet50", "benign"] == 8
    assert rows["auc"]["resnet50", "normal"].value == statistics.auc([1] * 4 + [0] * 4, FIRST)
    assert difference["accuracy, normal"].value == pytest.approx(1 / 8)
    assert difference["accuracy, benign"].value == pytest.approx(4 / 8 - 3 / 8)
    assert difference["accuracy, normal"].method.startswith("bootstrap over 4 patient_id")


def test_benign_masses_among_the_negatives_are_no_normal_patches():
    kinds = [*KINDS[:6], "benign", "benign"]
    table, _ = compare(scores_table(FIRST, SECOND, kinds, SETS_SCORED), n=5)
    rows = table.set_index(["network", "against"])
    assert rows["patches"]["resnet50", "normal"] == 6 and rows["accuracy"]["resnet50", "normal"].value == 5 / 6


def test_the_difference_is_paired():
    # both networks err on the same patches: their accuracies vary over patients, the difference does not
    values = np.where(np.arange(40) % 5 == 0, -1.0, 1.0) * np.where(np.arange(40) < 20, 1, -1)
    kinds = ["malignant"] * 20 + ["normal"] * 20
    _, difference = compare(scores_table(values, 2 * values, kinds), n=100)
    assert (difference["accuracy, normal"].low, difference["accuracy, normal"].high) == (0, 0)


def test_negatives_that_are_missing_give_nan():
    table, difference = compare(scores_table(FIRST, SECOND, KINDS), n=20)
    rows = table.set_index(["network", "against"])
    assert math.isnan(rows["auc"]["resnet50", "benign"].value) and math.isnan(difference["accuracy, benign"].value)
    assert rows["accuracy"]["resnet50", "normal"].value == 6 / 8


def test_intervention_by_hand():
    found = intervention(scores_table(FIRST, SECOND, KINDS, SETS_SCORED), n=20).set_index("network").loc["resnet50"]
    assert found["called_centred"].value == 3 / 4 == found["called_shifted"].value
    assert found["called_twin"].value == 0 and found["lost_twin"].value == 3 / 4
    assert found["lost_shifted"].value == 0
    assert found["called_normal"].value == 1 / 4 and found["called_benign"].value == 3 / 4
    assert found["gained_benign"].value == 1 / 2
    assert found["higher_than_twin"].value == 1
    assert found["auc_shifted"].value == found["auc_centred"].value
