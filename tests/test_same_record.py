"""Same seed, same record: a real study twice, in fresh processes that share no cache."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xai_lib import config, notebooks, records

SEED = 3
STUDY = "05_inpainting_sdr"  # trains, searches and draws at profile smoke
TIMES = ("created", "seconds")


def started(folder: Path) -> subprocess.Popen:
    """A run of the study with results and cache in `folder`."""
    source = "from xai_lib.cli import app; app()"
    command = [sys.executable, "-c", source, "run", STUDY, "--profile", "smoke", "-p", "seed", str(SEED)]
    settings = {"XAI_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(config.repository_dir())}
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "--output", str(folder / "out")], env=os.environ | settings, **words)


def without_times(value: Any) -> Any:
    """The content of a record but for what a clock wrote, at any depth."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_the_same_seed_gives_the_same_record(tmp_path):
    runs = {name: started(tmp_path / name) for name in ("first", "again")}
    found = {}
    for name, run in runs.items():
        said, _ = run.communicate(timeout=1800)
        assert run.returncode == 0, said[-3000:]
        file = tmp_path / name / "out" / STUDY / f"{STUDY}.record.json"
        assert records.read(file).notebook_sha256 == notebooks.read_notebook(notebooks.find_notebook(STUDY)).sha256
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    assert all(r["created"] and r["seconds"] > 0 and r["figures"] and r["seed"] == SEED for r in found.values())
    assert without_times(found["again"]) == without_times(found["first"])


def test_times_are_left_out_at_any_depth():
    record = {"seconds": 1.5, "tables": {"runs": [{"seed": 0, "seconds": 2}]}, "created": "now", "figures": {"a": 1}}
    assert without_times(record) == {"tables": {"runs": [{"seed": 0}]}, "figures": {"a": 1}}
