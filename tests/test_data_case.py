import hashlib
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.measure import label, regionprops

from xai_lib.data.case import (
    Case,
    CaseDataset,
    DataError,
    Report,
    Skipped,
    boxes_from_mask,
    existing,
    file_digest,
    hashed_id,
    refuse,
    summary,
)


def make_case(row, value=0.5):
    image = torch.full((1, 2, 3), value)
    return Case(image, row["label"], None, torch.zeros(0, 4), None, row["patient_id"], row["view"], row["source"])


def make_table(n=4, **columns):
    base = {"source": [f"s{i}" for i in range(n)], "label": [i % 2 for i in range(n)]}
    base |= {"patient_id": [f"p{i // 2}" for i in range(n)], "view": ["v"] * n}
    return pd.DataFrame(base | columns)


def test_reads_a_case_only_when_it_is_asked_for():
    read = []
    dataset = CaseDataset("mine", make_table(), lambda row: read.append(row["source"]) or make_case(row))
    assert len(dataset) == 4 and read == []
    assert dataset[2].source == "s2" and dataset[-1].source == "s3"
    assert read == ["s2", "s3"]


def test_iteration_ends():
    assert [case.source for case in CaseDataset("mine", make_table(), make_case)] == ["s0", "s1", "s2", "s3"]


def test_labels_and_patients():
    dataset = CaseDataset("mine", make_table(3, label=[1, None, 0]), make_case)
    assert dataset.labels.tolist() == [1, -1, 0] and dataset.labels.dtype == np.int64
    assert dataset.patient_ids.tolist() == ["p0", "p0", "p1"]


def test_subset_keeps_order_and_skipped():
    skipped = [Skipped("x", "gone")]
    part = CaseDataset("mine", make_table(), make_case, skipped).subset(np.array([3, 1]))
    assert [case.source for case in part] == ["s3", "s1"]
    assert part.skipped == (Skipped("x", "gone"),) and part.name == "mine"


def test_empty_subset_is_an_error():
    with pytest.raises(DataError, match=r"mine: no case is left; skipped: 2 x gone"):
        CaseDataset("mine", make_table(), make_case, [Skipped("x", "gone"), Skipped("y", "gone")]).subset([])


def test_table_is_checked():
    with pytest.raises(DataError, match="lacks the columns view"):
        CaseDataset("mine", make_table().drop(columns="view"), make_case)
    with pytest.raises(DataError, match="two rows have the source 's0'"):
        CaseDataset("mine", make_table(2, source=["s0", "s0"]), make_case)


def test_a_dataset_can_go_to_a_worker_process():
    dataset = pickle.loads(pickle.dumps(CaseDataset("mine", make_table(), partial(make_case, value=0.25))))
    assert dataset[0].image.max() == 0.25


def test_fingerprint_sees_rows_bytes_and_parameters(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode())

    def fingerprint(order=(0, 1), **changes):
        files = [(paths[i],) for i in range(2)]
        table = make_table(2, files=files, **{k: v for k, v in changes.items() if k != "parameters"})
        return CaseDataset("mine", table.iloc[list(order)], make_case, parameters=changes.get("parameters")).fingerprint

    first = fingerprint()
    assert len(first) == 64 and fingerprint() == first
    assert fingerprint(order=(1, 0)) == first
    assert fingerprint(order=(0,)) != first
    assert fingerprint(label=[1, 1]) != first
    assert fingerprint(parameters={"seed": 1}) != first
    paths[1].write_bytes(b"c")
    assert fingerprint() != first


def test_fingerprint_does_not_depend_on_the_folder(tmp_path):
    found = []
    for folder in ("one", "two"):
        path = tmp_path / folder / "image.png"
        path.parent.mkdir()
        path.write_bytes(b"same")
        found.append(CaseDataset("mine", make_table(1, files=[(path,)]), make_case).fingerprint)
    assert found[0] == found[1]


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(DataError, match=r"gone: cannot be read"):
        file_digest(tmp_path / "gone")


def test_boxes_by_hand():
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:3, 2:5] = True
    mask[4, 7] = True
    assert boxes_from_mask(mask).tolist() == [[1, 2, 3, 5], [4, 7, 5, 8]]
    assert boxes_from_mask(torch.from_numpy(mask)).dtype == torch.int64


def test_diagonal_neighbours_are_one_part():
    assert boxes_from_mask(np.eye(3, dtype=bool)).tolist() == [[0, 0, 3, 3]]


def test_specks_get_no_box():
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:20, 5:20] = True  # 225 pixels; 1 % is 2.25
    mask[30, 30:32] = True
    mask[35, 35:38] = True
    assert boxes_from_mask(mask).tolist() == [[5, 5, 20, 20], [35, 35, 36, 38]]
    assert len(boxes_from_mask(mask, speck=0)) == 3


def test_mask_at_the_border_and_empty_mask():
    assert boxes_from_mask(np.ones((3, 4), dtype=bool)).tolist() == [[0, 0, 3, 4]]
    assert boxes_from_mask(np.zeros((3, 4), dtype=bool)).shape == (0, 4)


def test_boxes_agree_with_skimage():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((20, 30)) < 0.3
        ours = {tuple(box) for box in boxes_from_mask(mask, speck=0).tolist()}
        assert ours == {region.bbox for region in regionprops(label(mask, connectivity=2))}


def test_hashed_id():
    assert hashed_id("patient 1") == hashlib.sha256(b"patient 1").hexdigest()[:12]
    assert hashed_id(1) != hashed_id(2)


def test_summary_counts_reasons():
    skipped = [Skipped("a", "a.png: mask has no pixel: empty"), Skipped("b", "b_mask.png: mask has no pixel: empty")]
    assert summary([*skipped, Skipped("c", "normal: no lesion")]) == "2 x mask has no pixel, 1 x normal"
    assert summary([]) == ""


def test_refuse_names_the_first_fault():
    refuse("busi", [])
    with pytest.raises(DataError, match=r"^busi: a: broken \(and 1 more"):
        refuse("busi", [Skipped("a", "broken"), Skipped("b", "gone")])


def test_existing(tmp_path):
    assert existing(tmp_path, "busi") == tmp_path
    with pytest.raises(DataError, match=r"nowhere is not a folder; give root=, or set XAI_DATA_DIR"):
        existing(tmp_path / "nowhere", "busi")


def test_report_prints_counts_and_reasons():
    text = str(Report("busi", {"benign images": 3}, [f"m{i}" for i in range(10)], [Skipped("a", "broken")], ["old"]))
    assert text.splitlines()[0] == "busi: 10 missing, 1 faulty"
    assert "     3 benign images" in text and "m7 ... and 2 more" in text
    assert "a: broken" in text and "note     old" in text
