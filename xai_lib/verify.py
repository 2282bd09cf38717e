"""Hold fresh records against the pinned figures in ``data/expected``.

Usage::

    report = verify(find_records("outputs"))
    [c for c in report.comparisons if not c.ok]       # the figures that moved, and by how much

``data/expected/<notebook>.<profile>.json`` is ``{"figures": {name: {"value": v, "tolerance": t}}}``. It pins the run
with the notebook's own parameters, so a record of a run with others (``-p``) is not compared.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xai_lib import config, notebooks, records


class ExpectedError(ValueError):
    """A file of pinned figures that cannot be used; the message names the file and the figure."""


@dataclass(frozen=True)
class Comparison:
    """One pinned figure and ours; `ours` is None where the record lacks the figure."""

    study: str
    profile: str
    figure: str
    expected: float
    tolerance: float
    ours: float | None

    @property
    def moved(self) -> float:
        """By how much our figure differs: ours minus expected; NaN where one of them is not defined."""
        return math.nan if self.ours is None else self.ours - self.expected

    @property
    def ok(self) -> bool:
        """Whether the figure is within its tolerance, or is undefined (NaN) on both sides."""
        if self.ours is None:
            return False
        return abs(self.moved) <= self.tolerance or (math.isnan(self.ours) and math.isnan(self.expected))


@dataclass(frozen=True)
class Report:
    """What `verify` found: figures, records that cannot be trusted, and what was left out and why."""

    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether something was compared, every figure is within its tolerance, and there are no problems."""
        return bool(self.comparisons) and not self.problems and all(c.ok for c in self.comparisons)


def expected_dir() -> Path:
    """Folder of the pinned figures."""
    return config.repository_dir() / "data" / "expected"


def find_records(folder: str | Path) -> list[Path]:
    """Record files of finished runs below `folder`: failed runs (``*.failed``) and hidden folders are left out."""
    found = sorted(Path(folder).glob("**/*.record.json"))
    return [
        p for p in found if not any(n.startswith(".") or n.endswith(".failed") for n in p.relative_to(folder).parts)
    ]


def read_expected(path: str | Path) -> dict[str, tuple[float, float]]:
    """Pinned value and tolerance of each figure; a value of null stands for NaN.

    Raises:
        ExpectedError: the file cannot be read, or a figure has no numbers as value and tolerance.
    """
    try:
        figures = json.loads(Path(path).read_text(encoding="utf-8"))["figures"]
        items = list(figures.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ExpectedError(f"{path}: no pinned figures can be read ({type(error).__name__}: {error})") from error
    pinned = {}
    for name, entry in items:
        try:
            value, tolerance = entry["value"], float(entry["tolerance"])
            pinned[name] = (math.nan if value is None else float(value), tolerance)
        except (LookupError, TypeError, ValueError) as error:
            raise ExpectedError(f"{path}: figure {name!r} needs numbers as value and tolerance") from error
        if not tolerance >= 0:
            raise ExpectedError(f"{path}: figure {name!r} has the tolerance {tolerance}, expected 0 or more")
    return pinned


def compare(record: records.Record, pinned: dict[str, tuple[float, float]]) -> list[Comparison]:
    """Each pinned figure against the record's; figures that are not pinned are left out."""
    ours = {name: figure.estimate.value for name, figure in record.figures.items()}
    return [
        Comparison(record.study, record.profile, name, value, tolerance, ours.get(name))
        for name, (value, tolerance) in pinned.items()
    ]


def outdated(record: records.Record) -> bool:
    """Whether the notebook's code changed since the record was made (False where the record does not say)."""
    path = notebooks.notebooks_dir() / f"{record.study}.ipynb"
    if record.notebook_sha256 is None or not path.is_file():
        return False
    return notebooks.read_notebook(path).sha256 != record.notebook_sha256


def verify(paths: Sequence[str | Path], expected: str | Path | None = None) -> Report:
    """Compare records with the pinned figures in the folder `expected` (default ``data/expected``).

    A record of a notebook that changed since is a problem: its figures belong to another program.

    Raises:
        RecordError: a record cannot be read.
        ExpectedError: a file of pinned figures cannot be read.
    """
    folder = expected_dir() if expected is None else Path(expected)
    report = Report()
    for path in paths:
        record = records.read(path)
        command = f"xai-lib run {record.study} --profile {record.profile}"
        pins = folder / f"{record.study}.{record.profile}.json"
        if not pins.is_file():
            report.skipped.append(f"{path}: nothing is pinned for profile {record.profile}")
        elif record.command != command:
            report.skipped.append(f"{path}: made with {record.command or 'no command'!r}, pinned is {command!r}")
        elif outdated(record):
            report.problems.append(f"{path}: its notebook changed since this record; run it again: {command}")
        else:
            report.comparisons.extend(compare(record, read_expected(pins)))
    return report
