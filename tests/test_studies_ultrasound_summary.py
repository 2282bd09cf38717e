import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from xai_lib import estimate_tables, localization, records
from xai_lib.data.case import Case, CaseDataset
from xai_lib.statistics import Estimate
from xai_lib.studies.ultrasound import cam as uc
from xai_lib.studies.ultrasound import pointing_tables as tables
from xai_lib.studies.ultrasound import summary as ultrasound_summary
from xai_lib.studies.ultrasound.experiment import Done

CHANCE = ["two random points", "two random cells", "image centre"]
MAPS = ("grad_cam", "layer_cam", "cameras", "random_network")
REPLICATES = 10


def cases(name, patients):
    """Two images of each patient; every second patient's are malignant."""
    rows = [
        {"source": f"{name}/{p}{v}", "label": p % 2, "patient_id": f"p{p}", "view": v}
        for p in range(patients)
        for v in "ab"
    ]

    def read(row):
        return Case(torch.zeros(1, 12, 12), row["label"], None, torch.zeros(0, 4), None, row["patient_id"], "a", "s")

    rng = np.random.default_rng(patients)
    areas = [rng.choice([0, 0, 1, 2, 4], (12, 12)).astype(np.uint8) for _ in rows]
    return CaseDataset(name, pd.DataFrame(rows), read, parameters={}), areas


def random_run(labels, test, seed, fold, extras=MAPS, external=None, epochs=3):
    """Random logits that know something of the label, and random maps."""
    rng = np.random.default_rng([seed, fold, epochs])
    n = len(test)
    losses = np.array([np.nan, *range(epochs - 1, 0, -1)])
    more = {name: rng.random((n, 2, 2)) for name in extras}
    more |= {f"logits_{name}": rng.normal(size=n) for name in extras if name in uc.UNTRAINED}
    if external:
        m = len(external)
        more |= {external.name: rng.random((m, 2, 2)), f"logits_{external.name}": rng.normal(external.labels * 1.0)}
    return uc.Run(
        seed=seed,
        fold=fold,
        test=test,
        logits=(rng.normal(size=(epochs, n)) + 1.2 * labels[test]).astype(np.float32),
        maps=rng.normal(size=(epochs, n, 3, 3)).astype(np.float32),
        val_loss=losses,
        test_loss=losses[::-1] if epochs > 1 else np.array([0.7]),
        offset=np.array([0.1, -0.2]) * (1 + fold),
        gap=np.array(1e-6 * (1 + fold)),
        extras=more,
    )


@pytest.fixture(scope="module")
def done():
    """Two repetitions of two folds, one repetition on shuffled labels, another data set."""
    dataset, areas = cases("discs", 12)
    other, other_areas = cases("breast", 5)
    halves = np.arange(12), np.arange(12, 24)
    runs = [
        random_run(dataset.labels, half, seed, fold, external=other)
        for seed in (0, 1)
        for fold, half in enumerate(halves)
    ]
    shuffled = [random_run(dataset.labels, half, 0, fold, extras=()) for fold, half in enumerate(halves)]
    shuffled = [replace(run, logits=run.logits[::-1], maps=-run.maps) for run in shuffled]
    return Done(dataset, areas, runs, None, {}, shuffled, {"breast": (other, other_areas)})


@pytest.fixture(scope="module")
def result(done):
    return ultrasound_summary.summarise(done, REPLICATES, seed=0)


def values(table, row, group="all"):
    """Point estimates of one row of Tab. 2."""
    (found,) = table[(table["row"] == row) & (table["class"] == group)].to_dict("records")
    return [found[c].value for c in localization.COLUMNS]


# ------------------------------------------------------------------------------------------------ figures


def test_figures_have_names_units_and_the_three_chance_levels(result):
    figures = result.figures()
    hits = [f"hits_{region}" for region in ("mass", "ring", "below", "any")]
    assert list(figures) == ["auc", "accuracy", "sensitivity", "specificity", *hits]
    for name in hits:
        assert sorted(figures[name].baselines) == sorted(CHANCE)
        assert figures[name].unit == "share of correctly classified images"
        assert figures[name].estimate.low <= figures[name].estimate.value <= figures[name].estimate.high


def test_figures_by_other_means(done, result):
    """AUC from scikit-learn; hit rates and chance counted from points and regions."""
    kept = [(run, run.epoch()) for run in done.runs]
    aucs = [roc_auc_score(done.dataset.labels[run.test], run.logits[e]) for run, e in kept]
    figures = result.figures()
    assert [e for _, e in kept] == [2] * 4
    assert figures["auc"].estimate.value == pytest.approx(np.mean(aucs))
    frame = result.frame
    right = (frame["logit"] >= frame["threshold"]) == (frame["label"] == 1)
    assert figures["accuracy"].estimate.value == pytest.approx(right.mean())
    assert figures["sensitivity"].estimate.value == pytest.approx(right[frame["label"] == 1].mean())
    assert figures["specificity"].estimate.value == pytest.approx(right[frame["label"] == 0].mean())
    mass, points, cells, centre = [], [], [], []
    for (run, e), (_, part) in zip(kept, frame.groupby(["seed", "fold"], sort=False), strict=True):
        for m, correct, index in zip(run.maps[e], part["correct"], part["index"], strict=True):
            if correct:
                inside = done.areas[index] & 1 > 0
                grid = inside[2::4, 2::4]  # middle of the 3 x 3 cells (rounded to even: 1.5 -> 2, 5.5 -> 6, 9.5 -> 10)
                mass.append(grid.flat[m.argmax()] or grid.flat[m.argmin()])
                points.append(1 - (1 - inside.mean()) ** 2)
                free = 9 - grid.sum()
                cells.append(1 - free * (free - 1) / 72)
                centre.append(inside[6, 6])
    figure = figures["hits_mass"]
    assert figure.estimate.value == pytest.approx(np.mean(mass))
    assert [figure.baselines[name].value for name in CHANCE] == pytest.approx(
        [np.mean(points), np.mean(cells), np.mean(centre)]
    )


def test_chance_of_a_class_and_of_one_extreme(result):
    assert result.chance()["row"].tolist() == CHANCE
    assert result.chance("max")["row"].tolist() == ["one random point", "one random cell", "image centre"]
    benign = result.chance(group="benign")
    assert benign["class"].tolist() == ["benign"] * 3
    assert [e.value for e in benign["mass"]] != [e.value for e in result.chance()["mass"]]


def test_verdicts_on_the_four_claims(result):
    assert sorted(result.verdicts) == ["3.1", "3.2", "3.3", "3.4"]
    assert result.verdicts["3.4"].verdict == "holds"


# ------------------------------------------------------------------------------------------------- tables


def test_table1_rows(done, result):
    rows = result.table1[["network", "runs", "interval"]].values.tolist()
    assert rows == [
        ["trained, stopped on validation", 4, "over patients"],
        ["trained, stopped on validation", 4, "sd over runs"],
        ["trained, stopped on test (paper)", 4, "over patients"],
        ["trained, stopped on test (paper)", 4, "sd over runs"],
        ["random network", 4, "over patients"],
        ["trained on shuffled labels", 2, "over patients"],
    ]
    auc = result.table1.set_index(["network", "interval"])["auc"].map(lambda e: e.value)
    labels = done.dataset.labels
    tests = [roc_auc_score(labels[run.test], run.logits[1]) for run in done.runs]  # the test loss is lowest there
    assert auc["trained, stopped on test (paper)", "over patients"] == pytest.approx(np.mean(tests))
    random = [roc_auc_score(labels[run.test], run.extras["logits_random_network"]) for run in done.runs]
    assert auc["random network", "over patients"] == pytest.approx(np.mean(random))
    shuffled = [roc_auc_score(labels[run.test], run.logits[2]) for run in done.shuffled]
    assert auc["trained on shuffled labels", "over patients"] == pytest.approx(np.mean(shuffled))


def test_table2_rows_are_over_the_same_images(result):
    for which, words in (("both", CHANCE), ("max", ["one random point", "one random cell", "image centre"])):
        table = result.table2[which]
        assert table[table["class"] == "all"]["row"].tolist() == [
            "CAM (the paper's)",
            "CAM, measured offset",
            "CAM, first pixel of resized",
            "Grad-CAM",
            "LayerCAM, finer layer",
            "CAMERAS",
            "random network",
            *words,
        ]
        assert set(table[table["class"] == "all"]["images"]) == {int(result.frame["correct"].sum())}
    assert set(result.table2) == {"both", "max", "min"}
    assert values(result.table2["max"], "CAM (the paper's)") != values(result.table2["min"], "CAM (the paper's)")
    assert values(result.table2["both"], "CAM (the paper's)") != values(result.table2["both"], "CAM, measured offset")


def test_a_linear_head_adds_its_row_and_the_untrained_one(done):
    runs = [
        random_run(done.dataset.labels, run.test, run.seed, run.fold, extras=(*MAPS, "linear_head"))
        for run in done.runs[:2]
    ]
    found = ultrasound_summary.summarise(replace(done, runs=runs, shuffled=[], externals={}), 5, seed=0)
    names = found.table2["both"]["row"].unique().tolist()
    assert names[6:9] == ["linear head, no DRS", "random network", "untrained head"]
    kept = found.frame["correct"].to_numpy()
    start = tables.hit_columns(uc.points(runs, done.areas, done.dataset, epoch=0)[kept]).mean()
    assert_allclose(values(found.table2["both"], "untrained head"), start)
    assert "linear head, no DRS" in found.table1["network"].tolist()
    assert "trained on shuffled labels" not in found.table1["network"].tolist()
    assert found.shuffled.empty and found.external.empty


def test_shuffled_is_compared_on_the_repetition_it_belongs_to(done, result):
    assert result.shuffled["row"].unique().tolist() == ["CAM (the paper's)", "CAM, shuffled labels", *CHANCE]
    first = result.frame[(result.frame["seed"] == 0)]
    kept = first["correct"].to_numpy()
    assert result.shuffled["images"].iloc[0] == kept.sum() < result.table2["both"]["images"].iloc[0]
    other = uc.points(done.shuffled, done.areas, done.dataset)[kept]
    assert_allclose(values(result.shuffled, "CAM, shuffled labels"), tables.hit_columns(other).mean())
    assert_allclose(values(result.shuffled, "CAM (the paper's)"), tables.hit_columns(first[kept]).mean())


def test_external_data(done, result):
    table = result.external
    assert table["data"].tolist() == ["breast"] * 3 + ["breast: two random points"] * 3
    assert table["class"].tolist() == ["all", "benign", "malignant"] * 2
    cases, areas = done.externals["breast"]
    aucs = [roc_auc_score(cases.labels, run.extras["logits_breast"]) for run in done.runs]
    assert table["auc"][0].value == pytest.approx(np.mean(aucs))
    hits, chance = [], []
    for run in done.runs:
        frame = tables.mark_correct(uc.points([replace(run, test=np.arange(len(cases)))], areas, cases, "breast"))
        for place, correct, area in zip(run.extras["breast"], frame["correct"], areas, strict=True):
            if correct:
                rows, cols = np.clip(np.rint(place * 12 - 0.5), 0, 11).astype(int).T
                hits.append((area[rows, cols] > 0).any())
                chance.append(1 - (area == 0).mean() ** 2)
    assert table["any"][0].value == pytest.approx(np.mean(hits))
    assert table["any"][3].value == pytest.approx(np.mean(chance))


def test_offset_ties_and_lengths(result):
    assert result.offset == pytest.approx({"offset_rows": 0.15, "offset_cols": -0.3})  # mean over the runs
    assert set(result.ties) == {"tied_maximum", "tied_minimum"}
    assert all(0 <= share <= 1 for share in result.ties.values())
    assert result.lengths["epoch"].tolist() == [0, 1, 2]
    assert result.stopping["stopping"].tolist() == ["validation", "test"]
    assert result.abstained["rule"].tolist()[0] == "answer all"


# ------------------------------------------------------------------------------------------------- judge

NONE = dict.fromkeys([f"{point}_{region}" for point in ("max", "min") for region in localization.COLUMNS], False)


def frame_like_the_paper(n=400):
    """Rates of 34, 38, 30 and 71 % and an AUC near 0.887 on many images, each a patient."""
    number = np.arange(n)
    part, label = number % 100, number % 2
    hits = {
        "max_mass": part < 34,
        "max_ring": (part >= 34) & (part < 71),
        "min_ring": part == 33,
        "min_below": part < 30,
    }
    hits |= {"max_any": part < 71, "min_any": part < 34}
    logit = np.random.default_rng(0).normal(1.72 * label)
    names = {"patient_id": [f"p{i}" for i in number]}
    frame = pd.DataFrame(
        {"seed": 0, "fold": 0, "index": number, "label": label, "logit": logit, **names, **NONE, **hits}
    )
    return tables.mark_correct(frame)


@pytest.fixture
def square_areas():
    area = np.zeros((10, 10), np.uint8)
    area[:1], area[1:3], area[3:5] = 1, 2, 4
    return [area] * 400


def test_judge_gives_the_four_verdicts(square_areas):
    frame = frame_like_the_paper()
    found = ultrasound_summary.judge(frame, square_areas, gap=1e-7, n=200)
    assert list(found) == ["3.1", "3.2", "3.3", "3.4"]
    assert all(found[name].claim == name for name in found)
    assert found["3.4"].verdict == "holds"
    assert set(found["3.2"].parts) == {"mass", "ring", "below", "any"}
    assert set(found["3.3"].parts) == {"ring - mass", "ring - below"}
    kept = frame[frame["correct"]]
    hits = tables.hit_columns(kept).mean()
    for name, part in found["3.2"].parts.items():
        assert part.ours.value == pytest.approx(hits[name])
    levels = {name: part.baseline.value for name, part in found["3.2"].parts.items()}
    assert levels == pytest.approx({"mass": 0.19, "ring": 0.36, "below": 0.36, "any": 0.75})
    part = found["3.3"].parts["ring - mass"]
    assert part.ours.value == pytest.approx(hits["ring"] - hits["mass"])
    assert part.baseline.value == pytest.approx(0.36 - 0.19)
    assert found["3.1"].ours.value == pytest.approx(tables.table1(frame, n=5)["auc"].value)


def test_verdicts_follow_the_figures(square_areas):
    frame = frame_like_the_paper()
    everything = frame.assign(**{c: True for c in NONE}, logit=frame["label"] * 2.0 - 1 + 1e-3 * frame["index"])
    found = ultrasound_summary.judge(tables.mark_correct(everything), square_areas, gap=1e-3, n=40)
    assert found["3.1"].verdict == "not decidable here"  # an AUC of 1 in every replicate has no interval
    assert found["3.4"].verdict == "does not hold"
    ring = frame["index"] % 10 > 0
    mostly_ring = frame.assign(**(NONE | {"max_ring": ring, "max_any": ring}))
    found = ultrasound_summary.judge(mostly_ring, square_areas, 0, n=40)
    assert found["3.2"].verdict == "does not hold" and found["3.2"].parts["ring"].verdict == "does not hold"
    few = {
        "max_ring": frame["index"] % 3 > 0,
        "max_mass": frame["index"] % 5 == 0,
        "min_below": frame["index"] % 7 == 0,
    }
    assert ultrasound_summary.judge(frame.assign(**(NONE | few)), square_areas, 0, n=40)["3.3"].verdict == "holds"
    swapped = frame.assign(**(NONE | {"max_mass": few["max_ring"], "max_ring": few["max_mass"]}))
    assert ultrasound_summary.judge(swapped, square_areas, 0, n=40)["3.3"].verdict == "does not hold"


def test_a_region_that_is_never_hit_contradicts_the_paper_on_many_images_only(square_areas):
    frame = frame_like_the_paper()
    never = frame.assign(max_mass=False, min_mass=False)
    part = ultrasound_summary.judge(never, square_areas, 0, n=40)["3.2"].parts["mass"]
    assert part.verdict == "does not hold" and part.ours.low == 0 < part.ours.high < 0.02
    few = ultrasound_summary.judge(never[:8], square_areas, 0, n=40)["3.2"].parts["mass"]
    assert few.verdict == "not decidable here" and few.ours.high > 0.34


# ------------------------------------------------------------------------------------------------- record


def record(result_or_figures, **more):
    """A record with these figures."""
    given = {
        "study": "03_ultrasound_cam_pointing_game",
        "title": "t",
        "profile": "lab",
        "parameters": {"backbone": "resnet10", "padding": "torchvision", "transfer": "all"},
        "seed": 0,
        "data": {"name": "synthetic_ultrasound", "fingerprint": "f"},
        "figures": result_or_figures,
        "started": time.perf_counter(),
    }
    return records.make(**(given | more))


def same(a, b):
    """Whether two cells of a table hold the same numbers, to the six digits of a record; NaN becomes None."""
    if isinstance(a, Estimate):
        if not isinstance(b, Estimate):
            return np.isnan(a.value) and (b is None or np.isnan(b))
        pairs = [(a.value, b.value), (a.low, b.low), (a.high, b.high)]
        return all((x is None) == (y is None) and (x is None or x == pytest.approx(y, rel=1e-5)) for x, y in pairs)
    if isinstance(a, float) and np.isnan(a):
        return pd.isna(b)
    return a == pytest.approx(b, rel=1e-5) if isinstance(a, float) else a == b


def test_tables_come_back_from_a_record(result, tmp_path):
    made = record(result.figures(), verdicts=result.verdicts, tables=result.tables())
    read = records.read(records.write(made, tmp_path / "03.record.json"))
    names = ["table2_both", "table2_max", "table2_min", "table1", "shuffled", "external"]
    names += ["lengths", "stopping", "abstained", "alignment"]
    assert sorted(read.tables) == sorted(names)
    originals = {f"table2_{which}": table for which, table in result.table2.items()}
    originals |= {n: getattr(result, n) for n in ("table1", "shuffled", "external", "lengths", "stopping", "abstained")}
    for name, table in originals.items():
        back = estimate_tables.from_rows(read.tables[name])
        assert len(back) == len(table) > 0, name
        assert set(back.columns) == set(table.columns), name
        for ours, theirs in zip(table.to_dict("records"), back.to_dict("records"), strict=True):
            assert all(same(value, theirs[key]) for key, value in ours.items()), (name, ours, theirs)
    (alignment,) = read.tables["alignment"]
    assert alignment == pytest.approx({**result.offset, **result.ties}, rel=1e-5)
    for name, figure in result.figures().items():
        assert same(figure.estimate, read.figures[name].estimate), name
        assert all(same(e, read.figures[name].baselines[k]) for k, e in figure.baselines.items())


def test_empty_tables_come_back_empty(result, tmp_path):
    bare = replace(result, shuffled=pd.DataFrame(), external=pd.DataFrame())
    read = records.read(records.write(record(bare.figures(), tables=bare.tables()), tmp_path / "03.record.json"))
    assert read.tables["shuffled"] == read.tables["external"] == []


def figures(auc, hit, chance):
    """Figures of a record made by hand."""
    baselines = {"two random points": Estimate(chance), "image centre": Estimate(0.99)}
    hits = {f"hits_{c}": records.Figure(hit, "", baselines) for c in localization.COLUMNS}
    return {"auc": records.Figure(auc), **hits}


def test_overview_of_two_records(tmp_path):
    first = record(figures(Estimate(0.8714, 0.81, 0.9), Estimate(0.344, 0.281, 0.416), 0.126))
    second = record(
        figures(Estimate(0.7), Estimate(0.5), 0.25),
        data={"name": "busi", "fingerprint": "f"},
        parameters={"backbone": "squeezenet1_1", "padding": "pytorch", "transfer": "drs"},
    )
    second = records.read(records.write(second, tmp_path / "busi.record.json"))
    found = ultrasound_summary.overview({"a": first, "b": second})
    assert found.columns.tolist() == ["data", "network", "transfer", "AUC", "mass", "ring", "below", "any"]
    assert found.iloc[0].tolist() == [
        "synthetic_ultrasound",
        "resnet10, torchvision padding",
        "all",
        "0.871 [0.810, 0.900]",
        *["34 [28, 42] (13)"] * 4,
    ]
    assert found.iloc[1].tolist() == ["busi", "squeezenet1_1, pytorch padding", "drs", "0.700", *["50 (25)"] * 4]
    assert ultrasound_summary.overview({}).empty
