import errno
import json
import math
import os
import re
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xai_lib import records
from xai_lib.records import Figure, Record, RecordError, Verdict
from xai_lib.statistics import Estimate


def example(**changes: object) -> Record:
    estimate = Estimate(0.8123456789, 0.7, 0.9, "bootstrap over 50 patient_id, 1000 replicates")
    part = Verdict("3.2", "holds", "why", "rule", estimate, Estimate(0.2))
    record = records.make(
        study="03_ultrasound_cam_pointing_game",
        title="Ultrasound CAM",
        profile="lab",
        parameters={"seed": 7, "sizes": (1, 2), "rate": np.float32(0.5), "ring_mm": 5.0, "root": None},
        seed=7,
        data={"name": "busi", "fingerprint": "ab12", "cases": np.int64(647), "skipped": [{"source": "x", "why": "y"}]},
        checkpoint={"name": "ours", "sha256": "cd34"},
        figures={"auc": Figure(estimate, "", {"chance": Estimate(0.5)}, "on test"), "rate": Figure(Estimate(math.nan))},
        verdicts={"3.2": Verdict("3.2", "holds", "why", "rule", parts={"mass": part})},
        tables={"table_1": [{"region": "mass", "rate": 0.34, "chance": math.nan}]},
        command="xai-lib run 03 --profile lab",
        notebook_sha256="ef56",
        started=time.perf_counter(),
    )
    return replace(record, **changes)


def rewritten(path: Path, *keys: str | int, value: object) -> Path:
    """Write the example record with one field set to `value`, or deleted where that is `...`."""
    records.write(example(), path)
    whole = json.loads(path.read_text())
    part = whole
    for key in keys[:-1]:
        part = part[key]
    if value is ...:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    path.write_text(json.dumps(whole))
    return path


# ------------------------------------------------------------------------------------------------ there and back


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = example()
    path = records.write(record, tmp_path / "new" / "03.record.json")
    again = records.read(path)
    assert again.figures["auc"].estimate == Estimate(0.812346, 0.7, 0.9, record.figures["auc"].estimate.method)
    assert again.verdicts["3.2"].parts["mass"].baseline == Estimate(0.2)
    assert again.parameters == {"seed": 7, "sizes": [1, 2], "rate": 0.5, "ring_mm": 5.0, "root": None}
    assert again.data["cases"] == 647 and again.checkpoint == {"name": "ours", "sha256": "cd34"}
    assert math.isnan(again.figures["rate"].estimate.value) and again.figures["rate"].estimate.low is None
    assert again.tables["table_1"][0]["chance"] is None
    same = ("study", "title", "profile", "seed", "command", "versions", "hardware", "seconds", "created", "schema")
    assert all(getattr(again, name) == getattr(record, name) for name in same)
    assert [p.name for p in path.parent.iterdir()] == ["03.record.json"]


def test_the_file_is_stable(tmp_path):
    record = example()
    first = records.write(record, tmp_path / "a.json").read_bytes()
    assert records.write(records.read(tmp_path / "a.json"), tmp_path / "b.json").read_bytes() == first
    text = first.decode()
    assert '\n "checkpoint": {' in text and text.index('"checkpoint"') < text.index('"command"') and text[-2:] == "}\n"
    assert "NaN" not in text and ": 0.812346\n" in text and "0.81234567" not in text


def test_make_fills_in_what_is_the_same_for_every_run():
    record = example()
    assert record.schema == records.SCHEMA_VERSION and 0 <= record.seconds < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record.created)
    assert {"python", "torch", "torchvision", "numpy", "xai_lib"} <= set(record.versions)
    assert record.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert re.match(r"\d+\.\d+", record.versions["xai_lib"])
    assert record.hardware["threads"] == torch.get_num_threads() and record.hardware["cores"] >= 1
    with pytest.raises(ValueError, match=r"started: .* expected time\.perf_counter"):
        records.make(
            study="s", title="t", profile="lab", parameters={}, seed=0, data={}, figures={}, started=time.time() + 1e9
        )


def test_an_older_file_is_replaced(tmp_path):
    path = records.write(example(seed=1), tmp_path / "r.json")
    records.write(example(seed=2), path)
    assert records.read(path).seed == 2


# ------------------------------------------------------------------------------------------------ nothing private


def test_paths_are_shortened(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/maria")
    monkeypatch.setenv("XAI_DATA_DIR", "/srv/sets")
    public = records.public_parameters(
        {
            "root": "/mnt/maria lang/BUSI",
            "inside": Path("/srv/sets/BUSI/Dataset_BUSI_with_GT"),
            "home": "/home/maria/my data/x.png",
            "tilde": "~/thesis",
            "up": "../maria/x",
            "relative": "BUSI/benign (1).png",
            "deep": {"list": ["/opt/a/b.pth", 3, None, True]},
            "regions": "mass / ring / below and/or 1/2",
            "address": "https://doi.org/10.1000/182",
            "n": 3,
        }
    )
    assert public == {
        "root": "BUSI",
        "inside": "BUSI/Dataset_BUSI_with_GT",
        "home": "my data/x.png",
        "tilde": "thesis",
        "up": "x",
        "relative": "BUSI/benign (1).png",
        "deep": {"list": ["b.pth", 3, None, True]},
        "regions": "mass / ring / below and/or 1/2",
        "address": "https://doi.org/10.1000/182",
        "n": 3,
    }


def test_a_record_holds_no_name_of_machine_or_user_and_no_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/maria")
    record = example(
        parameters={"root": "/home/maria/sets", "out": tmp_path},
        command="xai-lib run 03 -p root /home/maria/sets --output=/tmp/maria/out",
        data={"name": "busi", "fingerprint": "ab", "skipped": [{"why": "/home/maria/sets/benign (1).png: truncated"}]},
        figures={"auc": Figure(Estimate(0.5), note="read from '/mnt/maria/x.csv'")},
    )
    text = records.write(record, tmp_path / "r.json").read_text()
    assert "maria" not in text and "/home" not in text and "/tmp" not in text and str(tmp_path) not in text
    if len(socket.gethostname()) > 3:
        assert socket.gethostname() not in text
    read = records.read(tmp_path / "r.json")
    assert read.command == "xai-lib run 03 -p root sets --output=out"
    assert read.data["skipped"][0]["why"] == "sets/benign (1).png: truncated"


def test_hardware_names_the_gpu_where_there_is_one(monkeypatch):
    assert set(records.hardware()) == {"system", "processor", "cores", "threads", "memory_gib", "gpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    assert records.hardware()["gpu"] == "Some GPU"


def test_versions_of_an_uninstalled_checkout_come_from_pyproject(monkeypatch, tmp_path):
    def missing(name: str) -> str:
        raise records.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(records.metadata, "version", missing)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.8.7"\n')
    monkeypatch.setattr(records, "repository_dir", lambda: tmp_path)
    assert records._own_version() == "9.8.7"


# ------------------------------------------------------------------------------------------------ a failed write


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("place", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_full_disk_leaves_the_older_file_and_nothing_else(monkeypatch, tmp_path, place, name):
    path = records.write(example(seed=1), tmp_path / "r.json")
    before = path.read_bytes()
    monkeypatch.setattr(place, name, full_disk)
    with pytest.raises(RecordError, match=r"r\.json: the record cannot be written: No space left"):
        records.write(example(seed=2), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_an_interrupted_write_leaves_the_older_file_and_nothing_else(monkeypatch, tmp_path):
    path = records.write(example(seed=1), tmp_path / "r.json")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        records.write(example(seed=2), path)
    assert records.read(path).seed == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecordError, match=r"file/r\.json: the record cannot be written"):
        records.write(example(), tmp_path / "file" / "r.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RecordError, match=r"r\.json: the record cannot be written: Permission denied"):
        records.write(example(), tmp_path / "r.json")
    tmp_path.chmod(0o700)


def test_an_unwritable_folder_whoever_runs_this(monkeypatch, tmp_path):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    record = example()
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(RecordError, match=r"r\.json: the record cannot be written: Permission denied"):
        records.write(record, tmp_path / "r.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"model": object()}}, r"record\.parameters\.model: a object cannot be written"),
        ({"seed": "seven"}, r"record\.seed: is 'seven', expected int"),
        ({"verdicts": {"3.1": Verdict("3.1", "maybe", "", "")}}, r"record\.verdicts\.3\.1\.verdict: is 'maybe'"),
        ({"verdicts": {"3.1": Verdict("3.2", "holds", "", "")}}, r"record\.verdicts\.3\.1\.claim: is '3\.2'"),
        ({"data": {"name": "busi"}}, r"record\.data\.fingerprint: is None, expected str"),
        ({"checkpoint": {"name": "ours"}}, r"record\.checkpoint\.sha256: is None, expected str"),
    ],
)
def test_a_faulty_record_is_not_written(tmp_path, changes, message):
    with pytest.raises(RecordError, match=r"r\.json: " + message):
        records.write(example(**changes), tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ a faulty file


def test_a_missing_file(tmp_path):
    with pytest.raises(RecordError, match=r"none\.json: the record cannot be read: No such file"):
        records.read(tmp_path / "none.json")


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_truncated_file(tmp_path, share):
    path = records.write(example(), tmp_path / "r.json")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(RecordError, match=r"r\.json: is not JSON, perhaps truncated"):
        records.read(path)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "r.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(RecordError, match=r"r\.json: is not JSON"):
        records.read(tmp_path / "r.json")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema(tmp_path, version):
    with pytest.raises(RecordError, match=rf"r\.json: schema: is {version!r}, this version reads 1"):
        records.read(rewritten(tmp_path / "r.json", "schema", value=version))


@pytest.mark.parametrize("name", sorted(Record.__dataclass_fields__))
def test_every_field_is_needed_and_typed(tmp_path, name):
    with pytest.raises(RecordError, match=rf"r\.json: .*{name}: is (missing|None)"):
        records.read(rewritten(tmp_path / "r.json", name, value=...))
    with pytest.raises(RecordError, match=rf"r\.json: .*{name}: is \[?1\.5"):
        records.read(rewritten(tmp_path / "r.json", name, value=1.5 if name != "seconds" else [1.5]))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("figures", "auc", "estimate", "value"), "0.8", r"figures\.auc\.estimate\.value: is '0\.8', expected float"),
        (("figures", "auc", "estimate", "low"), [], r"figures\.auc\.estimate\.low: is \[\], expected float"),
        (("figures", "auc", "baselines", "chance"), 0.5, r"figures\.auc\.baselines\.chance: is 0\.5, expected an obj"),
        (("figures", "auc", "unit"), ..., r"figures\.auc\.unit: is missing"),
        (("figures", "auc", "colour"), "red", r"figures\.auc\.colour: is not a known field"),
        (("verdicts", "3.2", "parts", "mass", "why"), 1, r"verdicts\.3\.2\.parts\.mass\.why: is 1, expected str"),
        (("tables", "table_1", 0), "row", r"tables\.table_1\[0\]: is 'row', expected dict"),
        (("seed",), True, r"seed: is True, expected int"),
        (("seconds",), "long", r"seconds: is 'long', expected float"),
        (("notebook_sha256",), 5, r"notebook_sha256: is 5, expected str"),
        (("checkpoint",), "ours", r"checkpoint: is 'ours', expected dict"),
        (("created",), "yesterday", r"created: is 'yesterday', expected an ISO 8601 date"),
        (("extra",), 1, r"extra: is not a known field"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, keys, value, message):
    with pytest.raises(RecordError, match=r"r\.json: record\." + message):
        records.read(rewritten(tmp_path / "r.json", *keys, value=value))


def test_a_file_that_is_no_object(tmp_path):
    (tmp_path / "r.json").write_text("[1]")
    with pytest.raises(RecordError, match=r"r\.json: record: is \[1\], expected an object"):
        records.read(tmp_path / "r.json")
