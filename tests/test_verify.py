import json
import math
import time

import pytest

from xai_lib import notebooks, records, verify
from xai_lib.statistics import Estimate


def write_record(path, figures, profile="lab", sha=None, command="xai-lib run 03_x --profile lab"):
    record = records.make(
        study="03_x",
        title="A tiny study",
        profile=profile,
        parameters={},
        seed=0,
        data={"name": "none", "fingerprint": "0"},
        figures={name: records.Figure(Estimate(value)) for name, value in figures.items()},
        started=time.perf_counter(),
        command=command,
        notebook_sha256=sha,
    )
    return records.write(record, path)


@pytest.fixture
def pinned(tmp_path):
    """Folder with pinned figures of notebook 03_x at profile lab."""
    folder = tmp_path / "expected"
    folder.mkdir()
    figures = {
        "auc": {"value": 0.80, "tolerance": 0.02},
        "hits": {"value": 0.34, "tolerance": 0.05},
        "gap": {"value": None, "tolerance": 0},
    }
    (folder / "03_x.lab.json").write_text(json.dumps({"figures": figures}))
    return folder


def test_figures_within_tolerance_are_fine(tmp_path, pinned):
    path = write_record(tmp_path / "a.record.json", {"auc": 0.82, "hits": 0.30, "gap": math.nan, "extra": 9.0})
    report = verify.verify([path], pinned)
    assert report.ok and [c.figure for c in report.comparisons] == ["auc", "hits", "gap"]
    assert report.comparisons[0].moved == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("figures", "moved"),
    [
        ({"auc": 0.83, "hits": 0.34, "gap": math.nan}, {"auc": 0.03}),
        ({"auc": 0.80, "hits": 0.28, "gap": math.nan}, {"hits": -0.06}),
        ({"auc": 0.80, "hits": 0.34}, {"gap": math.nan}),
        ({"auc": 0.80, "hits": 0.34, "gap": 0.0}, {"gap": math.nan}),
        ({"auc": math.nan, "hits": 0.34, "gap": math.nan}, {"auc": math.nan}),
    ],
)
def test_a_figure_that_moved_or_is_missing_is_named_with_its_distance(tmp_path, pinned, figures, moved):
    report = verify.verify([write_record(tmp_path / "a.record.json", figures)], pinned)
    assert not report.ok
    found = {c.figure: c.moved for c in report.comparisons if not c.ok}
    assert found == pytest.approx(moved, nan_ok=True)


@pytest.mark.parametrize(("ours", "equal"), [(0.8, True), (0.80005, True), (0.79995, True), (0.8001, False)])
def test_on_the_machine_of_the_pins_figures_are_equal_to_the_last_digit(tmp_path, pinned, ours, equal):
    path = write_record(tmp_path / "a.record.json", {"auc": ours, "hits": 0.34, "gap": math.nan})
    assert verify.verify([path], pinned).ok
    report = verify.verify([path], pinned, exact=True)
    assert report.ok == equal and [c.figure for c in report.moved] == ([] if equal else ["auc"])


def test_figures_are_pinned_anew_with_their_tolerances(tmp_path, pinned):
    ours = {"auc": 0.912345, "hits": 0.1, "gap": math.inf, "extra": 9.0}
    path = write_record(tmp_path / "a.record.json", ours)
    assert not verify.verify([path], pinned).ok
    file = verify.pin(path, pinned)
    assert file == pinned / "03_x.lab.json" and verify.verify([path], pinned, exact=True).ok
    found = json.loads(file.read_text())
    assert found["figures"]["auc"] == {"value": 0.9123, "tolerance": 0.02} and found["figures"]["gap"]["value"] is None
    assert list(found["figures"]) == ["auc", "gap", "hits"]  # not the one that was not pinned
    assert found["machine"].keys() >= {"processor", "threads", "torch"}


def test_a_study_without_pins_gets_all_of_its_figures(tmp_path):
    file = verify.pin(write_record(tmp_path / "a.record.json", {"auc": 0.5, "hits": 0.25}), tmp_path)
    assert verify.read_expected(file) == {"auc": (0.5, 0.02), "hits": (0.25, 0.02)}


def test_only_a_fresh_and_whole_record_is_pinned(tmp_path, pinned):
    before = (pinned / "03_x.lab.json").read_text()
    seed = write_record(tmp_path / "a.record.json", {"auc": 0.8}, command="xai-lib run 03_x --profile lab -p seed 7")
    with pytest.raises(ValueError, match="only a fresh record of 'xai-lib run 03_x --profile lab'"):
        verify.pin(seed, pinned)
    with pytest.raises(ValueError, match=r"lacks gap, hits, pinned in 03_x\.lab\.json"):
        verify.pin(write_record(tmp_path / "b.record.json", {"auc": 0.8}), pinned)
    assert (pinned / "03_x.lab.json").read_text() == before


def test_other_profiles_and_other_parameters_are_not_compared(tmp_path, pinned):
    other = write_record(tmp_path / "a.record.json", {"auc": 0.1}, profile="smoke")
    seed = write_record(tmp_path / "b.record.json", {"auc": 0.1}, command="xai-lib run 03_x --profile lab -p seed 7")
    report = verify.verify([other, seed], pinned)
    assert len(report.skipped) == 2 and not report.comparisons and not report.ok
    assert "nothing is pinned for profile smoke" in report.skipped[0] and "-p seed 7" in report.skipped[1]


def test_a_record_of_a_notebook_that_changed_since_is_a_problem(tmp_path, pinned, monkeypatch, write_notebook):
    monkeypatch.setattr(notebooks, "notebooks_dir", lambda: tmp_path)
    sha = notebooks.read_notebook(write_notebook(tmp_path / "03_x.ipynb", "x = 1")).sha256
    figures = {"auc": 0.8, "hits": 0.34, "gap": math.nan}
    path = write_record(tmp_path / "a.record.json", figures, sha=sha)
    assert verify.verify([path], pinned).ok
    write_notebook(tmp_path / "03_x.ipynb", "x = 2")
    report = verify.verify([path], pinned)
    assert not report.ok and not report.comparisons
    assert "a.record.json: its notebook changed since" in report.problems[0]
    assert not verify.outdated(records.read(write_record(tmp_path / "b.record.json", figures)))  # it does not say


def test_nothing_to_compare_is_not_a_success(pinned):
    assert not verify.verify([], pinned).ok


def test_records_of_failed_and_running_notebooks_are_left_out(tmp_path):
    for folder in ("03_x", "03_x.failed", ".03_x.12.running", "sweep/seed-1/03_x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "03_x.record.json").touch()
    found = [str(p.relative_to(tmp_path)) for p in verify.find_records(tmp_path)]
    assert found == ["03_x/03_x.record.json", "sweep/seed-1/03_x/03_x.record.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no pinned figures can be read"),
        ("[]", "no pinned figures can be read"),
        ('{"figures": [1]}', "no pinned figures can be read"),
        ('{"figures": {"auc": 0.8}}', "figure 'auc' needs numbers"),
        ('{"figures": {"auc": {"value": 0.8}}}', "figure 'auc' needs numbers"),
        ('{"figures": {"auc": {"value": "high", "tolerance": 0}}}', "figure 'auc' needs numbers"),
        ('{"figures": {"auc": {"value": 1, "tolerance": -1}}}', "tolerance -1.0, expected 0 or more"),
        ('{"figures": {"auc": {"value": 1, "tolerance": NaN}}}', "tolerance nan, expected 0 or more"),
    ],
)
def test_a_damaged_file_of_pinned_figures_is_an_error(tmp_path, text, message):
    (tmp_path / "03_x.lab.json").write_text(text)
    with pytest.raises(verify.ExpectedError, match=message) as raised:
        verify.read_expected(tmp_path / "03_x.lab.json")
    assert "03_x.lab.json" in str(raised.value)


def test_every_file_of_pinned_figures_in_the_repository_can_be_read():
    stems = {path.stem for path in notebooks.list_notebooks()}
    for path in verify.expected_dir().glob("*.json"):
        stem, profile = path.name.removesuffix(".json").split(".")
        assert stem in stems and profile in ("smoke", "lab", "paper"), path.name
        assert verify.read_expected(path)
