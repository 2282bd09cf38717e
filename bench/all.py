"""One table of all benchmarks: what, problem size, ours, the usual way, ratio, passes, memory.

Run ``make bench``, or ``python bench/all.py`` (``--quick``: smaller problems and one round, a quarter of an hour
instead of hours; ``--only NAME ...``: these scripts; ``--write``: renew ``data/bench/summary.csv``, where rows of other
scripts stay).

A script of this folder takes part by having ``rows(quick) -> list[dict]``, made by `form.line`. Each runs in a process
of its own, one after the other. *Peak memory* is the largest of that process and its children. The *load* is what else
the machine was doing: the mean number of processes that wanted a core in the minute before the script started. Above
half of the cores the row is marked, and its times by the clock cannot be trusted; ratios still can, roughly.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from xai_lib import config

HERE = Path(__file__).resolve().parent
TABLE = config.repository_dir() / "data" / "bench" / "summary.csv"
BUSY = 0.5  # load, as a share of the cores


def scripts() -> list[str]:
    """Names of the scripts that take part, by looking at their text: importing them takes seconds."""
    return sorted(path.stem for path in HERE.glob("*.py") if "\ndef rows(" in path.read_text(encoding="utf-8"))


def child(name: str, quick: bool, out: Path) -> None:
    """Run one script in this process, and write its rows and its memory."""
    found = importlib.import_module(name).rows(quick)
    from xai_lib import records

    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    scale = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes
    out.write_text(json.dumps({"rows": found, "peak_mib": memory / scale, "machine": machine(records)}, default=float))


def machine(records: Any) -> str:
    """Processor, cores, memory and versions; nothing that names the machine or its user."""
    hardware, versions = records.hardware(), records.versions()
    parts = [hardware["processor"], f"{hardware['cores']} cores", f"{hardware['memory_gib']} GiB", hardware["system"]]
    parts += [hardware["gpu"]] if hardware["gpu"] else []
    parts += [f"{package} {versions[package]}" for package in ("python", "torch", "numpy")]
    return ", ".join(map(str, parts))


def measure(name: str, quick: bool, verbose: bool) -> pd.DataFrame:
    """Run one script in a process of its own.

    Raises:
        RuntimeError: it failed; the message has its last words.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--child", json.dumps([name, quick, str(out)])]
        done = subprocess.run(
            command, stdout=None if verbose else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
        found = json.loads(out.read_text())
    table = pd.DataFrame(found["rows"])
    busy = load > BUSY * (os.cpu_count() or 1)
    return table.assign(
        peak_mib=round(found["peak_mib"]), script=name, quick=quick, load=round(load, 2), busy=busy,
        machine=found["machine"],
    )  # fmt: skip


def show(table: pd.DataFrame) -> Table:
    """The table as people read it."""
    columns = ("study", "what", "size", "ours", "usual", "unit", "usual way", "ratio", "passes", "memory", "peak", "")
    out = Table(*columns, title="ours against the usual way; ratio: how many times better ours is; memory in MiB")
    number = lambda value, digits=3: "" if pd.isna(value) else f"{value:.{digits}g}"  # noqa: E731
    for r in table.itertuples():
        figures = [number(r.ours), number(r.usual), r.unit, r.tool, number(r.ratio), number(r.efficiency, 2)]
        memory = ["" if pd.isna(r.memory_mib) else f"{r.memory_mib:.0f}", f"{r.peak_mib:.0f}"]
        out.add_row(r.study, r.what, r.size, *figures, *memory, "machine was busy" if r.busy else "")
    return out


def merged(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows with those that other scripts left in the file, by study and script."""
    if path.is_file():
        old = pd.read_csv(path, dtype={"study": str})
        table = pd.concat([old[~old["script"].isin(table["script"])], table])
    return table.sort_values(["study", "script"], kind="stable")


def main() -> int:
    """Run, print, and store on request; 1 if a script failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller problems, one round")
    parser.add_argument("--only", nargs="+", choices=scripts(), metavar="NAME", default=scripts())
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.name}")
    parser.add_argument("--verbose", action="store_true", help="show what the scripts print")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        name, quick, out = json.loads(chosen.child)
        child(name, quick, Path(out))
        return 0
    tables, failed, console = [], [], Console(width=None if sys.stdout.isatty() else 220)
    for name in chosen.only:
        began = time.perf_counter()
        try:
            tables.append(measure(name, chosen.quick, chosen.verbose))
        except RuntimeError as error:
            failed.append(str(error))
        console.print(f"bench/{name}.py: {time.perf_counter() - began:.0f} s")
    if tables:
        table = pd.concat(tables).sort_values(["study", "script"], kind="stable")
        console.print(show(table))
        console.print(table["machine"].iloc[0], style="dim")
        if chosen.write:
            TABLE.parent.mkdir(parents=True, exist_ok=True)
            merged(table, TABLE).to_csv(TABLE, index=False, float_format="%.4g")
    for line in failed:
        console.print(f"failed: {line}", style="red", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
