"""Stored tables: computed once, and never used for another key."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from xai_lib import stored_tables
from xai_lib.stored_tables import digest, save, table

KEY = {"checkpoint": "abc", "seed": 0, "setup": {"steps": 200, "window": [60, 60]}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counter:
    """Makes a table and counts how often."""

    def __init__(self, frame=None):
        self.calls = 0
        self.frame = pd.DataFrame({"method": ["lime", "saliency"], "iou": [0.25, 0.5]}) if frame is None else frame

    def __call__(self):
        self.calls += 1
        return self.frame


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# the key


def test_digest_by_hand():
    assert digest({"a": 1}) == "f9d86028c6e0d64e"  # sha256sum of the text {"a": 1}
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 2.5})
    assert len(digest(KEY)) == 16


def test_key_that_is_not_json():
    with pytest.raises(TypeError, match="not JSON serializable"):
        table("scores", {"array": np.zeros(2)}, Counter())


# cached


def test_computed_once(cache):
    compute = Counter()
    first, second = (table("scores", KEY, compute) for _ in range(2))
    assert compute.calls == 1
    pd.testing.assert_frame_equal(first, compute.frame)
    pd.testing.assert_frame_equal(second, first)
    assert files(cache) == ["scores.csv", "scores.json"]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"more": None}, {"setup": {"steps": 100, "window": [60, 60]}}, {"checkpoint": "abd"}]
)
def test_another_key_is_another_table(change):
    compute = Counter()
    table("scores", KEY, compute)
    table("scores", KEY | change, compute)
    assert compute.calls == 2
    table("scores", KEY, compute)
    assert compute.calls == 2  # both are kept


def test_another_name_is_another_table():
    compute = Counter()
    table("scores", KEY, compute)
    table("maps", KEY, compute)
    assert compute.calls == 2


def test_recompute():
    compute = Counter()
    table("scores", KEY, compute)
    compute.frame = compute.frame.assign(iou=0.125)
    assert table("scores", KEY, compute, recompute=True)["iou"].tolist() == [0.125] * 2
    assert compute.calls == 2
    assert table("scores", KEY, compute)["iou"].tolist() == [0.125] * 2 and compute.calls == 2


@pytest.mark.parametrize("text", ["", "no json", "[1]", "3", '{"key": {}}', '{"digest": "'])
def test_damaged_key_is_computed_anew(cache, text, caplog):
    compute = Counter()
    table("scores", KEY, compute)
    (path,) = cache.rglob("scores.json")
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        found = table("scores", KEY, compute)
    assert compute.calls == 2 and found["iou"].tolist() == [0.25, 0.5]
    assert f"{path} is no key of a stored table" in caplog.text
    assert json.loads(path.read_text())["key"] == KEY


def test_missing_half_is_computed_anew(cache):
    compute = Counter()
    for name, calls in (("scores.csv", 2), ("scores.json", 3)):
        table("scores", KEY, compute)
        next(cache.rglob(name)).unlink()
        table("scores", KEY, compute)
        assert compute.calls == calls and files(cache) == ["scores.csv", "scores.json"]


def test_killed_while_writing(cache, monkeypatch):
    """A new table beside the old key would pass for the old one: the key goes first and comes last."""
    compute = Counter()
    table("scores", KEY, compute)
    original = stored_tables.os.replace

    def replace(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(stored_tables.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            table("scores", KEY, compute, recompute=True)
    table("scores", KEY, compute)
    assert compute.calls == 3


# shipped


def test_shipped_wins(tmp_path):
    compute = Counter()
    table("scores", KEY, compute)  # also in the cache
    save(compute.frame.assign(iou=0.75), "scores", KEY, tmp_path / "shipped")
    found = table("scores", KEY, compute, shipped=tmp_path / "shipped")
    assert found["iou"].tolist() == [0.75] * 2 and compute.calls == 1


def test_shipped_table_of_another_key_is_not_used(tmp_path, cache):
    compute = Counter()
    save(compute.frame.assign(iou=0.75), "scores", KEY | {"seed": 1}, tmp_path / "shipped")
    before = [p.read_bytes() for p in sorted((tmp_path / "shipped").iterdir())]
    assert table("scores", KEY, compute, shipped=tmp_path / "shipped")["iou"].tolist() == [0.25, 0.5]
    assert [p.read_bytes() for p in sorted((tmp_path / "shipped").iterdir())] == before  # the cache is written, not it
    assert compute.calls == 1 and files(cache) == ["scores.csv", "scores.json"]
    table("scores", KEY, compute, shipped=tmp_path / "shipped")
    assert compute.calls == 1
    table("scores", KEY | {"seed": 1}, compute, shipped=tmp_path / "shipped", recompute=True)
    assert compute.calls == 2


def test_no_shipped_folder(tmp_path):
    compute = Counter()
    table("scores", KEY, compute, shipped=tmp_path / "none")
    assert compute.calls == 1


# values


def test_values_survive(tmp_path):
    frame = pd.DataFrame(
        {
            "name": ["a", "b, with a comma", 'quoted "c"'],
            "count": [1, 2, 123456789],
            "value": [1 / 3, 1.5e-9, np.nan],
            "right": [True, False, True],
        },
        index=[5, 6, 7],
    )
    found = table("values", KEY, Counter(frame))
    assert found.index.tolist() == [0, 1, 2] and list(found) == list(frame)
    assert found["name"].tolist() == frame["name"].tolist()
    assert found["count"].tolist() == [1, 2, 123456789] and found["count"].dtype == np.int64
    assert found["right"].dtype == bool and found["right"].tolist() == [True, False, True]
    assert found["value"].tolist()[:2] == [0.333333, 1.5e-9] and np.isnan(found["value"][2])


def test_computed_and_read_are_the_same():
    """Whoever computes a table sees the rounded figures that the next reader sees."""
    compute = Counter(pd.DataFrame({"value": [np.pi, np.float32(0.1)]}))
    first, second = (table("values", KEY, compute) for _ in range(2))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert first["value"].tolist() == [3.14159, 0.1]


def test_files_are_the_same_every_time(tmp_path):
    for folder in ("a", "b"):
        save(Counter().frame, "scores", KEY, tmp_path / folder)
    assert (tmp_path / "a/scores.csv").read_bytes() == b"method,iou\nlime,0.25\nsaliency,0.5\n"
    assert json.loads((tmp_path / "a/scores.json").read_text()) == {"digest": digest(KEY), "key": KEY}
    for name in ("scores.csv", "scores.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert files(tmp_path / "a") == ["scores.csv", "scores.json"]
