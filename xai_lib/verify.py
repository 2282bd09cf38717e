"""Hold fresh records against the pinned figures in ``data/expected``.

Usage::

    report = verify(find_records("outputs"))
    report.moved                                      # the figures that moved, and by how much
    verify(find_records("outputs"), exact=True)       # on the machine that they were pinned on
    pin("outputs/03_x/03_x.record.json")              # after a change that is meant to move them

``data/expected/<notebook>.<profile>.json`` is ``{"figures": {name: {"value": v, "tolerance": t}}, "machine": {...}}``.
It pins the run with the notebook's own parameters, so a record of a run with others (``-p``) is not compared.

There are two tolerances. On the machine named in the file, with its versions and threads, the same code and seed give
the same figures: `exact` asks for the pinned value to its last digit, the fourth decimal. Another processor or version
of torch adds float32 numbers in another order, and a case near a threshold may change sides: `tolerance`, in the
figure's own unit. It is 0.02, as if 2 of 100 cases had changed sides, and at most about half of the half-width of the
95 % intervals of such shares. What profile lab takes from shipped tables, distances in pixels among them, does not
depend on the machine.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xai_lib import config, notebooks, records


class ExpectedError(ValueError):
    """A file of pinned figures that cannot be used; the message names the file and the figure."""


DIGITS = 4  # decimals of a pinned value
TOLERANCE = 0.02  # on another machine, of a figure that was not pinned before


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
        return self._within(self.tolerance)

    @property
    def equal(self) -> bool:
        """Whether the figure is the pinned one to its last digit, or is undefined (NaN) on both sides."""
        return self._within(0.500001 * 10**-DIGITS)  # a value in the middle may be rounded either way

    def _within(self, tolerance: float) -> bool:
        if self.ours is None:
            return False
        return abs(self.moved) <= tolerance or (math.isnan(self.ours) and math.isnan(self.expected))


@dataclass(frozen=True)
class Report:
    """What `verify` found: figures, records that cannot be trusted, and what was left out and why."""

    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    exact: bool = False  # whether figures have to be equal

    @property
    def ok(self) -> bool:
        """Whether something was compared, no figure moved, and there are no problems."""
        return bool(self.comparisons) and not self.problems and not self.moved

    @property
    def moved(self) -> list[Comparison]:
        """The figures outside their tolerance; with `exact` those that are not equal."""
        return [c for c in self.comparisons if not (c.equal if self.exact else c.ok)]


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


def verify(paths: Sequence[str | Path], expected: str | Path | None = None, exact: bool = False) -> Report:
    """Compare records with the pinned figures in the folder `expected` (default ``data/expected``).

    A record of a notebook that changed since is a problem: its figures belong to another program. `exact` asks for
    equal figures, which only the machine that they were pinned on has to give.

    Raises:
        RecordError: a record cannot be read.
        ExpectedError: a file of pinned figures cannot be read.
    """
    folder = expected_dir() if expected is None else Path(expected)
    report = Report(exact=exact)
    for path in paths:
        record = records.read(path)
        command = _command(record)
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


def pin(path: str | Path, expected: str | Path | None = None) -> Path:
    """Pin the figures of a record anew: the same ones, with their tolerances; all of them where none were pinned.

    Raises:
        RecordError: the record cannot be read.
        ExpectedError: the file of pinned figures cannot be read.
        ValueError: the record is of a run with other parameters or of a notebook that changed since, or lacks a figure
            that was pinned.
    """
    record = records.read(path)
    if record.command != _command(record) or outdated(record):
        raise ValueError(f"{path}: only a fresh record of {_command(record)!r} can be pinned")
    file = (expected_dir() if expected is None else Path(expected)) / f"{record.study}.{record.profile}.json"
    tolerances = {name: t for name, (_, t) in read_expected(file).items()} if file.is_file() else {}
    values = {name: figure.estimate.value for name, figure in record.figures.items()}
    missing = ", ".join(sorted(tolerances.keys() - values.keys()))
    if missing:
        raise ValueError(f"{path}: it lacks {missing}, pinned in {file.name}; take them out of that file first")
    figures = {}
    for name in tolerances or values:
        value = round(values[name], DIGITS) if math.isfinite(values[name]) else None
        figures[name] = {"value": value, "tolerance": tolerances.get(name, TOLERANCE)}
    machine = record.hardware | {name: record.versions.get(name) for name in ("python", "torch", "numpy")}
    text = json.dumps({"figures": figures, "machine": machine}, indent=1, sort_keys=True)
    file.write_text(text + "\n", encoding="utf-8")
    return file


def _command(record: records.Record) -> str:
    """The command that runs a notebook with its own parameters."""
    return f"xai-lib run {record.study} --profile {record.profile}"
