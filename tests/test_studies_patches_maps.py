from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xai_lib import stored_tables
from xai_lib.attribution.core import Refused
from xai_lib.config import runtime
from xai_lib.data import Case, CaseDataset
from xai_lib.studies.mammograms.thesis_methods import THESIS, Setup
from xai_lib.studies.patches import maps as patch_maps
from xai_lib.studies.patches.maps import build_tables, displayed, measure, read
from xai_lib.studies.patches.study import CHEAP, prepare, settings

SIZE = 8


def read_case(row, masks):
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for place in masks.get(row["source"], []):
        mask[place] = True
    image = torch.full((1, SIZE, SIZE), 0.25) + 0.5 * mask
    return Case(image, int(row["label"]), mask, torch.zeros(0, 4), 1.0, row["patient_id"], "CC", row["source"])


def dataset(masks, labels=(1, 0), patients=None):
    sources = [f"p{i}" for i in range(len(labels))]
    table = pd.DataFrame({"source": sources, "label": labels, "patient_id": patients or sources, "view": "CC"})
    table["kind"] = np.where(table["label"] == 1, "malignant", "normal")
    return CaseDataset("toy", table, partial(read_case, masks=masks))


class Sum(nn.Module):
    """logits (0, mean of the image): the score is the mean grey value."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.stack((torch.zeros(len(x)), self.weight * x.mean((1, 2, 3))), 1)


def given(**maps):
    """Makes these maps, whatever is asked for."""
    return lambda model, images, names, setup, **_: {
        name: torch.tensor(m, dtype=torch.float32) for name, m in maps.items()
    }


CORNER = (slice(0, 2), slice(0, 2))  # 4 of 64 pixels
MIDDLE = (slice(3, 5), slice(3, 5))


def one_pixel(*places, value=1.0):
    m = np.zeros((1, SIZE, SIZE))
    for place in places:
        m[(0, *place)] = value
    return m


# ---------------------------------------------------------------------------------------------- measures, by hand


def test_measures_of_a_map_by_hand():
    # the top decile of 64 pixels are 6; 4 lie in the corner's lesion, 2 in the middle (3, 3), (3, 4)
    m = np.full((1, SIZE, SIZE), -1.0)  # evidence against counts as nothing
    m[0, :2, :2] = 3.0
    m[0, 3, 3:5] = 2.0
    maps, pairs = measure(Sum(), dataset({"p0": [CORNER]}), [0], Setup(), maps_of=given(occlusion=m))
    row = maps.iloc[0]
    assert row["area"] == 4 / 64
    assert_allclose(row[["top_lesion", "energy_lesion", "central"]].to_numpy(float), [4 / 6, 12 / 16, 4 / 16])
    assert row["top_middle"] == row["top_lesion"] and row["energy_middle"] == row["energy_lesion"]
    assert row["effective_area"] == 3 / 64  # 9 of 16 in the three strongest pixels
    assert row["index"] == 0 and row["method"] == "occlusion" and np.isnan(row["gap"])
    assert row["score"] == pytest.approx(0.25 + 0.5 * 4 / 64, abs=2e-3)  # 8 bit
    assert pairs.empty


def test_the_peak_is_measured_from_the_centre_and_from_the_lesion():
    lime = one_pixel((0, 3))  # a segment method: no blur
    maps, _ = measure(Sum(), dataset({"p0": [CORNER]}), [0], Setup(), maps_of=given(lime=lime))
    assert maps["peak_centre"][0] == pytest.approx(np.hypot(3.5, 0.5))
    assert maps["peak_lesion"][0] == pytest.approx(np.hypot(0.5, 2.5))  # the lesion's centre is (0.5, 0.5)


def test_a_twin_and_a_shifted_lesion_are_measured_against_the_centred_one():
    centred = dataset({"p0": [MIDDLE]})
    m = one_pixel((0, 0), (0, 1), (1, 0), (1, 1), (3, 3))
    shifted = measure(Sum(), dataset({"p0": [CORNER]}), [0], Setup(), middle=centred, maps_of=given(lime=m))[0].iloc[0]
    assert_allclose(shifted[["energy_lesion", "energy_middle"]].to_numpy(float), [0.8, 0.2])
    twin = measure(Sum(), dataset({}), [0], Setup(), middle=centred, maps_of=given(lime=m))[0].iloc[0]
    assert_allclose(twin[["area", "energy_lesion", "energy_middle"]].to_numpy(float), [4 / 64, 0.2, 0.2])


def test_what_is_not_defined_is_nan():
    normal = measure(Sum(), dataset({}), [1], Setup(), maps_of=given(lime=one_pixel((3, 3))))[0].iloc[0]
    lesion = ["area", "top_lesion", "energy_lesion", "top_middle", "energy_middle", "peak_lesion"]
    assert normal[lesion].isna().all() and normal["central"] == 1.0 and normal["entropy"] == 0
    for constant in (0.0, -2.0):  # no evidence for malignant anywhere
        m = np.full((1, SIZE, SIZE), constant)
        row = measure(Sum(), dataset({"p0": [MIDDLE]}), [0], Setup(), maps_of=given(lime=m))[0].iloc[0]
        assert row.drop(["index", "method", "score", "area"]).isna().all()
        assert row["area"] == 4 / 64


def test_the_gap_is_that_of_the_map_and_the_baseline():
    # f(x) = 0.25, f(baseline) = 0.05: a map that sums to 0.3 misses 0.2 by half of it
    m = np.full((1, SIZE, SIZE), 0.3 / 64)
    maps, _ = measure(Sum(), dataset({}), [1], Setup(baseline=0.05), maps_of=given(deeplift=m, saliency=m))
    f = float(read(dataset({}), [1])[0].mean())
    assert maps["gap"][0] == pytest.approx(abs(0.3 - (f - 0.05)) / (f - 0.05), rel=1e-5)
    assert np.isnan(maps["gap"][1])


def test_pairs_of_methods():
    first, second = np.random.default_rng(0).normal(size=(2, 2, SIZE, SIZE))
    maps, pairs = measure(
        Sum(), dataset({}), [1, 0], Setup(), maps_of=given(saliency=np.abs(first), lime=second, a=-second)
    )
    assert_array_equal(pairs["index"], [1, 1, 1, 0, 0, 0])
    assert list(maps["index"]) == [1, 0] * 3
    last = pairs.iloc[-1]
    assert (last["first"], last["second"]) == ("lime", "a")
    assert_allclose([last["rank_correlation"], last["absolute_rank_correlation"]], [-1, 1])


def test_read_rounds_to_8_bit_as_training_does():
    images, masks = read(dataset({"p0": [CORNER]}), [0, 1])
    assert images.shape == (2, 1, SIZE, SIZE) and masks.sum() == 4
    assert_allclose(images * 255, (images * 255).round(), atol=1e-4)


def test_displayed_dilates_the_positive_part_but_not_segments():
    m = torch.zeros(21, 21)
    m[10, 10], m[0, 0] = 2.0, -5.0
    assert (displayed("saliency", m) == 2).sum() == 81 and displayed("saliency", m).min() == 0
    assert (displayed("lime", m) == 2).sum() == 1


# ------------------------------------------------------------------------------------------------- the tables


@pytest.fixture(scope="module")
def tiny():
    smoke = settings("smoke")
    fast = replace(smoke.patches, architectures=("squeezenet1_1", "mobilenet_v2"))
    return replace(smoke, patches=fast)


@pytest.fixture(scope="module")
def ready(tiny, tmp_path_factory):
    return prepare(tiny, 0, runtime("cpu"), tmp_path_factory.mktemp("networks"), progress=False)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.filterwarnings("ignore:kernel_shap")
def test_the_tables(ready, store, monkeypatch):
    tables = build_tables(ready, runtime("cpu"), ship=store / "shipped", progress=False)
    sick = int((ready.sets["centred"].labels[ready.test] == 1).sum())
    counts = tables.scores.groupby(["network", "set"]).size().unstack()
    assert (counts[["centred", "shifted"]] == len(ready.test)).all(axis=None) and (counts["twin"] == sick).all()
    assert (counts["benign"] == len(ready.test) - sick).all()
    counts = tables.maps.groupby("set").size()
    assert counts.to_dict() == {"centred": 28, "twin": 14, "shifted": 14, "untrained": 16}
    assert set(tables.maps[tables.maps["set"] == "untrained"]["method"]) == set(CHEAP)
    assert set(tables.maps["method"]) == set(THESIS)
    assert tables.pairs.groupby("set").size().to_dict() == {"centred": 84, "twin": 42, "shifted": 42, "untrained": 24}
    assert (tables.maps[tables.maps["set"] == "twin"]["kind"] == "malignant").all()  # the centred patch's
    scores = tables.scores[(tables.scores["network"] == "squeezenet1_1") & (tables.scores["set"] == "centred")]
    known = scores.set_index("index")["score"]
    part = tables.maps[tables.maps["set"] == "centred"]
    assert_allclose(part["score"], known[part["index"]], atol=1e-4)
    assert list(tables.sanity["layer"][:2]) == ["trained", "head"]

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(patch_maps, "measure", never)
    again = build_tables(ready, runtime("cpu"), progress=False)
    pd.testing.assert_frame_equal(again.maps, tables.maps)
    monkeypatch.setenv("XAI_CACHE_DIR", str(store / "other"))
    shipped = replace(ready, study=replace(ready.study, checkpoint=str(store / "shipped")))
    pd.testing.assert_frame_equal(build_tables(shipped, runtime("cpu"), progress=False).pairs, tables.pairs)
    with pytest.raises(AssertionError, match="again"):
        build_tables(shipped, runtime("cpu"), recompute=True, progress=False)


@pytest.mark.filterwarnings("ignore:kernel_shap")
def test_a_killed_measurement_goes_on_where_it_was(ready, store, monkeypatch):
    calls = []

    def counted(model, dataset, indices, *rest):
        calls.append(list(indices))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(model, dataset, indices, *rest)

    quick = replace(
        ready, study=replace(ready.study, setup=Setup(window=32, stride=32, steps=2, segments=4, samples=4))
    )
    monkeypatch.setattr(patch_maps, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        build_tables(quick, runtime("cpu"), progress=False)
    build_tables(quick, runtime("cpu"), progress=False)
    assert len(calls) == 3 + 4  # of six parts two were kept
    assert calls[2] == calls[3]


def test_the_key_names_all_that_the_maps_depend_on(ready, store, monkeypatch):
    keys = {}

    def table(name, key, compute, *_, **__):
        keys.setdefault(name, []).append(stored_tables.digest(key))
        return pd.DataFrame()

    monkeypatch.setattr(stored_tables, "table", table)
    study = ready.study
    others = [
        replace(ready, study=replace(study, setup=replace(study.setup, steps=5))),
        replace(ready, study=replace(study, precision="bf16")),
        replace(ready, study=replace(study, shift=0.1)),
        replace(ready, study=replace(study, malignant=1)),
        replace(ready, seed=1),
        replace(ready, networks={n: replace(t, card={**t.card, "sha256": "0"}) for n, t in ready.networks.items()}),
    ]
    for one in [ready, *others]:
        build_tables(one, runtime("cpu"), progress=False)
    assert len(set(keys["patch_maps"])) == len(others) + 1


def test_a_refusal_of_a_method_is_passed_on():
    def refuse(*_, **__):
        raise Refused("deeplift: no rule")

    with pytest.raises(Refused, match="no rule"):
        measure(Sum(), dataset({}), [0], Setup(), maps_of=refuse)
