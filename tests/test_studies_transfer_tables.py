"""Study 4's tables: what they hold, that they are shipped and read, and that names come back."""

from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose
from test_knowledge_transfer import tiny
from test_studies_transfer_study import CPU, small

from xai_lib import models
from xai_lib.data.synthetic.mammogram_masses import confounders
from xai_lib.patch_replacement import pixels_alone
from xai_lib.studies.transfer import computed
from xai_lib.studies.transfer import study as ks
from xai_lib.studies.transfer import tables as ktb


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The study, and its tables as they were written."""
    folder = tmp_path_factory.mktemp("study")
    make = lambda weights=None: tiny((4, 4, 4, 6, 8), int(torch.randint(1000, ())))  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_CACHE_DIR", str(folder / "cache"))
        patch.setitem(models.ARCHITECTURES, "tiny", (make, lambda net: net.features, 8))
        ready = ks.prepare(small(), 0, CPU, folder, progress=False)
        ktb.build_tables(ready, CPU, folder, progress=False)
        yield ready, folder


@pytest.fixture
def read(made, monkeypatch, tmp_path):
    """The tables as they are read where they are shipped: nothing may be computed."""
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    for name in ("cross_validated", "confounder_shift", "patch_replacements"):
        monkeypatch.setattr(computed, name, lambda *a, **k: pytest.fail("computed"))
    ready, folder = made
    return ktb.tables(ready, CPU, folder, progress=False)


def test_every_case_is_tested_once_by_every_network(made, read):
    main, folds = made[0].sets.main, read.folds
    assert set(folds["method"]) == set(made[0].study.methods) and set(folds["start"]) == {"mammograms"}
    for _, part in folds.groupby(["start", "method", "seed"]):
        assert sorted(part["case"]) == sorted(main.table["source"])
    facts = main.table.set_index("source").loc[folds["case"]]
    assert (facts["patient_id"].to_numpy() == folds["patient_id"]).all()
    assert (facts["label"].to_numpy() == folds["label"]).all()
    assert {"logit", "inside", "area", "distance", "inside_dense", "area_calcifications"} <= set(folds)
    assert folds["inside"].between(0, 1).all()
    assert folds.groupby("case")["disc"].nunique().eq(1).all()
    assert (folds["disc"] > folds["area"]).mean() > 0.9  # masses are in the middle


def test_shift_and_moved_name_their_test(made, read):
    assert set(read.shift["test"]) == {"same", "none", "reversed"}
    assert {"transfer, groups 3 and 4", "fine-tuning, groups 3 and 4"} <= set(read.shift["method"])
    assert "masks" not in set(read.shift["method"])
    assert set(read.moved["test"]) == {"centred", "shifted", "twin"}
    twins = read.moved[read.moved["test"] == "twin"]
    assert set(twins["case"]) == set(made[0].sets.moved["twin"].table["source"])


def test_betas_have_fine_tuning_once_and_every_form(made, read):
    found = read.betas.drop_duplicates(["form", "beta"])[["form", "beta"]].to_numpy().tolist()
    assert sorted(found) == [["mean_squared", 1000.0], ["printed", 0.0], ["printed", 10.0]]
    assert read.betas["distance"].notna().all()


def test_distances_of_every_group(made, read):
    assert set(read.distances["network"]) == {"mammograms", "random"}
    assert len(read.distances) == 2 * 4 * len(made[0].sets.main)
    assert read.distances["printed"].between(0, 2**0.5 + 1e-6).all()


def test_cells_know_what_they_cover(made, read):
    ready = made[0]
    assert set(read.cells["network"]) == {"transfer", "fine-tuning", "start", "random", "pixels alone"}
    assert len(read.cells) == 5 * 4 * ready.study.explained
    one = read.cells[(read.cells["network"] == "random") & (read.cells["case"] == read.cells["case"].iloc[0])]
    shares = confounders(ready.sets.moved["centred"], 0).dense.reshape(2, 32, 2, 32).float().mean((1, 3)).ravel()
    assert_allclose(one["dense"], shares, atol=1e-4)


def test_recipes_are_tested_on_one_copy(made, read):
    number = len(made[0].sets.large)
    assert read.recipes.groupby("recipe").size().to_dict() == dict.fromkeys(ktb.RECIPES, number)
    assert not read.recipes["case"].str.contains("copy").any()


def test_what_a_table_depends_on(made):
    ready = made[0]
    longer = replace(ready, study=replace(ready.study, seeds=(0, 1)))
    assert ktb._key(longer, "folds") != ktb._key(ready, "folds")
    two = replace(ready, starts={**ready.starts, "ImageNet": ready.starts["mammograms"]})
    assert list(ktb._key(two, "betas")["starts"]) == ["ImageNet"]
    assert list(ktb._key(ready, "betas")["starts"]) == ["mammograms"]
    more = replace(ready, study=replace(ready.study, explained=1))
    assert [name for name in ktb.NAMES if ktb._key(more, name) != ktb._key(ready, name)] == ["cells"]


def test_a_case_without_mask_is_named(made):
    cases = made[0].sets.moved["centred"]
    bare = type(cases)("bare", cases.table, lambda row: replace(cases[int(row.name)], mask=None))
    with pytest.raises(ValueError, match="it has no mask"):
        computed.replaced_cells({"pixels alone": pixels_alone()}, bare, [0], progress=False)
