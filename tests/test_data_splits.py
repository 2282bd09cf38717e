import numpy as np
import pandas as pd
import pytest

from xai_lib.data.case import CaseDataset, DataError
from xai_lib.data.splits import by_patient, check_disjoint, fold_parts, folds


def dataset(labels, patients):
    n = len(labels)
    table = pd.DataFrame({"source": [f"s{i}" for i in range(n)], "label": labels, "patient_id": patients, "view": "v"})
    return CaseDataset("mine", table, lambda row: None)


def two_views(patients=100, malignant=40):
    """Every patient has two cases of the same label."""
    labels = [int(i < malignant) for i in range(patients) for _ in range(2)]
    return dataset(labels, [f"p{i:03d}" for i in range(patients) for _ in range(2)])


def uneven(seed=0, patients=150):
    """Groups of 1 to 7 cases, a third malignant, some with both labels."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 1, 1, 1, 2, 3, 7], patients)
    labels = np.repeat(rng.random(patients) < 0.33, sizes).astype(int)
    labels[::40] = 1 - labels[::40]
    return dataset(labels, np.repeat([f"p{i}" for i in range(patients)], sizes))


def test_shares_by_hand():
    parts = by_patient(two_views(), seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 120, "val": 40, "test": 40}
    labels = two_views().labels
    assert [int(labels[parts[name]].sum()) for name in ("train", "val", "test")] == [48, 16, 16]


@pytest.mark.parametrize("seed", range(5))
def test_every_case_once_and_no_patient_twice(seed):
    cases = uneven(seed)
    parts = by_patient(cases, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(cases)))
    assert sum(len(set(cases.patient_ids[part])) for part in parts.values()) == len(set(cases.patient_ids))
    check_disjoint(cases, **parts)
    for name, share in {"train": 0.6, "val": 0.2, "test": 0.2}.items():
        assert len(parts[name]) / len(cases) == pytest.approx(share, abs=0.03)
        assert cases.labels[parts[name]].mean() == pytest.approx(cases.labels.mean(), abs=0.05)


def test_seed_decides():
    cases = two_views()
    assert by_patient(cases, seed=3)["test"].tolist() == by_patient(cases, seed=3)["test"].tolist()
    assert by_patient(cases, seed=3)["test"].tolist() != by_patient(cases, seed=4)["test"].tolist()


def test_split_does_not_depend_on_the_order_of_the_cases():
    cases = two_views()
    order = np.random.default_rng(0).permutation(len(cases))
    shuffled = cases.subset(order)
    test, again = by_patient(cases, seed=1)["test"], by_patient(shuffled, seed=1)["test"]
    assert set(cases.patient_ids[test]) == set(shuffled.patient_ids[again])


def test_smallest_data_set_that_works():
    parts = by_patient(dataset([0, 0, 0, 1, 1, 1], list("abcdef")))
    assert sorted(len(part) for part in parts.values()) == [2, 2, 2]


def test_other_fractions():
    parts = by_patient(two_views(), {"fit": 0.75, "hold": 0.25})
    assert {name: len(part) for name, part in parts.items()} == {"fit": 150, "hold": 50}


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}])
def test_wrong_fractions(fractions):
    with pytest.raises(ValueError, match="fractions"):
        by_patient(two_views(), fractions)


@pytest.mark.parametrize("split", [lambda cases: by_patient(cases), lambda cases: folds(cases, 3)])
def test_one_class_only(split):
    with pytest.raises(DataError, match="mine: only class 0 is there"):
        split(dataset([0] * 9, list("abcdefghi")))


def test_fewer_patients_than_parts_or_folds():
    cases = dataset([0] * 8 + [1] * 6, [f"b{i}" for i in range(8)] + ["m0", "m0", "m0", "m1", "m1", "m1"])
    with pytest.raises(DataError, match="class 1 has 2 patients, fewer than the 3 parts"):
        by_patient(cases)
    with pytest.raises(DataError, match="class 1 has 2 patients, fewer than the 5 folds"):
        folds(cases, 5)


def test_unlabelled_case():
    with pytest.raises(DataError, match="1 cases have no label"):
        by_patient(dataset([0, 1, None], list("abc")))


def test_folds_cover_every_case_once():
    cases = uneven()
    pairs = folds(cases, 5, seed=2)
    assert len(pairs) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in pairs])), np.arange(len(cases)))
    for train, test in pairs:
        check_disjoint(cases, train=train, test=test)
        assert len(train) + len(test) == len(cases)
        assert cases.labels[test].mean() == pytest.approx(cases.labels.mean(), abs=0.08)


def test_folds_follow_the_seed():
    cases = uneven()
    assert folds(cases, 5, seed=2)[0][1].tolist() == folds(cases, 5, seed=2)[0][1].tolist()
    assert folds(cases, 5, seed=2)[0][1].tolist() != folds(cases, 5, seed=3)[0][1].tolist()


def test_too_few_folds():
    with pytest.raises(ValueError, match="k: 1 folds"):
        folds(two_views(), 1)


def test_duplicate_patient_in_two_parts():
    cases = two_views(4, 2)
    check_disjoint(cases, train=np.array([0, 1]), test=np.array([2, 3]))
    with pytest.raises(DataError, match="mine: patient p001 is in 'train' and in 'test'"):
        check_disjoint(cases, train=np.array([0, 1, 2]), test=np.array([3]))


def test_fold_parts():
    dataset = two_views(30, 12)
    folds = fold_parts(dataset, 2, seed=0)
    everything = np.arange(len(dataset))
    for parts in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), everything)
        patients = [set(dataset.patient_ids[indices]) for indices in parts.values()]
        assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
        assert len(parts["val"]) < len(parts["train"])
    np.testing.assert_array_equal(np.sort(np.concatenate([parts["test"] for parts in folds])), everything)
    assert fold_parts(dataset, 2, seed=1)[0]["test"].tolist() != folds[0]["test"].tolist()
