"""Tiny notebooks for sweeps: they import no torch, and their last cell counts that it ran and leaves a record."""

from collections import Counter
from pathlib import Path

from xai_lib import records
from xai_lib.results import Estimate, Figure

PARAMETERS = """\
profile: str = "lab"  # smoke, lab or paper
seed: int = 0  # seed of every random number
beta: float = 0.0  # something to sweep over
do: str = "work"  # or what else
output_dir: str = ""  # folder for record and figures
"""

FIRST = """
import json, os, signal, time
from pathlib import Path
with open(LOG + ".started", "a") as file:
    file.write(f"{beta} {seed}\\n")
time.sleep(PAUSE)
"""

DEEDS = """
if do == "fail":
    raise RuntimeError("no luck")
if do == "kill the worker":
    import psutil
    psutil.Process().parent().parent().kill()
    time.sleep(100)
if do == "fill the disk":
    with open(output_dir + "/much", "wb") as file:
        while True:
            file.write(bytes(2**16))
if do == "full device":
    with open("/dev/full", "wb") as file:
        file.write(bytes(2**16))
"""

LAST = """
record = json.loads(TEMPLATE) | {"seed": seed, "profile": profile}
record["figures"]["auc"]["estimate"] |= {"value": 0.5 + beta + 0.01 * seed, "low": 0.4, "high": 0.9}
Path(output_dir, NAME + ".record.json").write_text(json.dumps(record))
with open(LOG, "a") as file:
    file.write(f"{beta} {seed}\\n")
"""


def make_record(study: str) -> records.Record:
    return records.Record(
        study=study,
        title="A tiny study",
        profile="lab",
        parameters={},
        seed=0,
        data={"name": "none", "fingerprint": "0"},
        checkpoint=None,
        figures={"auc": Figure(Estimate(0.5, 0.4, 0.6, "bootstrap"), "area", {"chance": Estimate(0.5)})},
        verdicts={},
        tables={},
        command="",
        versions={},
        hardware={},
        seconds=0.1,
        notebook_sha256=None,
        created="2026-01-01T00:00:00+00:00",
        schema=records.SCHEMA_VERSION,
    )


def write_study(write_notebook, path: Path, pause: float = 0.0) -> Path:
    """A notebook that does what `do` says, and counts its finished runs in ``log`` beside it."""
    template = records.write(make_record(path.stem), path.with_suffix(".template.json")).read_text()
    names = f"LOG, NAME, PAUSE = {str(path.parent / 'log')!r}, {path.stem!r}, {pause}\nTEMPLATE = {template!r}"
    return write_notebook(path, names, FIRST, DEEDS, LAST, parameters=PARAMETERS)


def counted(path: Path) -> Counter:
    """How often each run is in a log, by (beta, seed)."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter((float(beta), int(seed)) for beta, seed in map(str.split, lines))
