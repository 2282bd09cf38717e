"""What the pages of the report show: runs with their labels, the ledger by claim, and one view per study.

Usage::

    runs, problems = read_runs(committed, fresh)
    judged = ledger_by_claim(claims, runs)
    studies = study_views(claims, runs, judged)

Nothing here writes a file: `xai_lib.report` fills the templates with these.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xai_lib import claims as claim_rules
from xai_lib import notebooks, records, verify
from xai_lib.claims import Claim
from xai_lib.records import Record
from xai_lib.report.strips import Group, groups
from xai_lib.results import VERDICTS, Estimate

_NETWORK = ("backbone", "transfer", "padding")


@dataclass(frozen=True)
class Run:
    """A record with its anchor on the study's page, a label that no other run of the study has, and its flags.

    `fresh`: from the folder of results, not committed. `real`: on real data. `outdated`: its notebook changed since.
    """

    anchor: str
    label: str
    record: Record
    fresh: bool
    real: bool
    outdated: bool


@dataclass(frozen=True)
class Judged:
    """One row of the ledger: what a run says about a claim; `run` is None where no run does.

    `parts` are the deciding figures, each with its name, our estimate and the baseline's.
    """

    run: Run | None
    verdict: str
    why: str = ""
    parts: list[tuple[str, Estimate | None, Estimate | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """What the page of a study shows; `stem` is the name of its notebook, `number` its first two digits."""

    stem: str
    number: str
    title: str
    runs: list[Run]
    figures: list[Group]
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """File name of the study's page."""
        return f"{self.stem}.html"

    @property
    def notebook_page(self) -> str:
        """File name of the page of its notebook."""
        return f"notebook-{self.stem}.html"


def read_runs(committed: Sequence[Path], fresh: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read records: the runs, fresh ones first, and what is wrong with each file that cannot be used.

    A file that is the copy of another is left out.
    """
    claims = claim_rules.load()
    found: list[tuple[Path, Record, bool]] = []
    problems: list[str] = []
    seen: set[str] = set()
    for path, is_fresh in [(p, True) for p in fresh] + [(p, False) for p in committed]:
        try:
            record = records.read(path)
            for unknown in sorted(set(record.verdicts) - set(claims)):
                raise ValueError(f"{path}: judges the unknown claim {unknown}")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except (ValueError, OSError) as error:
            text = str(error)
            problems.append(text if path.name in text else f"{path}: {text}")
            continue
        if digest not in seen:
            seen.add(digest)
            found.append((path, record, is_fresh))
    labels = run_labels([record for _, record, _ in found])
    anchors = _unique([_anchor(path) for path, _, _ in found])
    return [
        Run(anchor, label, record, is_fresh, is_real(record), _outdated(record))
        for (_, record, is_fresh), label, anchor in zip(found, labels, anchors, strict=True)
    ], problems


def run_labels(found: Sequence[Record]) -> list[str]:
    """A name for each run: data set and network, and where that is not enough the seed and parameters that differ."""
    short = [_short_label(record) for record in found]
    labels = []
    for record, label in zip(found, short, strict=True):
        others = [o for o, name in zip(found, short, strict=True) if o.study == record.study and name == label]
        settings = {"profile": record.profile, "seed": record.seed} | record.parameters
        differ = [
            f"{key} {value}"
            for key, value in settings.items()
            if any(({"profile": o.profile, "seed": o.seed} | o.parameters).get(key) != value for o in others)
        ]
        labels.append(", ".join([label, *differ]))
    return _unique([f"{r.study}/{label}" for r, label in zip(found, labels, strict=True)], prefix=True)


def is_real(record: Record) -> bool:
    """Whether a run used real data: the names of the generated sets begin with ``synthetic``."""
    return not record.data["name"].startswith("synthetic")


def ledger_by_claim(claims: Mapping[str, Claim], runs: Sequence[Run]) -> dict[str, list[Judged]]:
    """What every run says about each claim: the rows of `xai_lib.claims.ledger`, with the runs they come from."""
    found = {
        claim.id: [_judged(claim, run) for run in runs if claim.id in run.record.verdicts] for claim in claims.values()
    }
    for name, rows in found.items():
        if not rows:
            rows.append(Judged(None, "planned" if claims[name].status == "planned" else "not measured"))
    return found


def _judged(claim: Claim, run: Run) -> Judged:
    """A run's verdict on a claim; its parts in the order of the claim's figures, where a record has them by name."""
    verdict = run.record.verdicts[claim.id]
    order = list(claim.figures)
    names = sorted(verdict.parts, key=lambda name: order.index(name) if name in order else len(order))
    parts = [(name, verdict.parts[name]) for name in names] or [("", verdict)]
    return Judged(run, verdict.verdict, verdict.why, [(name, part.ours, part.baseline) for name, part in parts])


def study_views(claims: Mapping[str, Claim], runs: Sequence[Run], judged: Mapping[str, list[Judged]]) -> list[Study]:
    """One view for every study with claims or runs, in the order of the notebooks' names."""
    titles = {run.record.study: run.record.title for run in runs}
    titles |= {path.stem: notebook_title(path) for path in notebooks.list_notebooks()}
    stems = sorted({claim.notebook for claim in claims.values()} | {run.record.study for run in runs})
    views = []
    for stem in stems:
        own = [run for run in runs if run.record.study == stem]
        rows = [row for claim in claims.values() if claim.notebook == stem for row in judged[claim.id]]
        counts = {
            "generated": Counter(r.verdict for r in rows if r.run and not r.run.real),
            "real": Counter(r.verdict for r in rows if r.run and r.run.real),
            "open": Counter(r.verdict for r in rows if r.run is None),
        }
        figures = groups([(run.label, run.record) for run in own])
        views.append(Study(stem, stem[:2], titles.get(stem, stem), own, figures, counts))
    return views


def notebook_title(path: Path) -> str:
    """Title of a notebook; the name of the file where it cannot be read."""
    try:
        return notebooks.read_notebook(path).title
    except notebooks.NotebookError:
        return path.stem


def verdict_totals(judged: Mapping[str, list[Judged]]) -> dict[str, int]:
    """How often each verdict was given, over all claims and runs; those without a run are counted last."""
    counts = Counter(row.verdict for rows in judged.values() for row in rows)
    return {name: counts[name] for name in VERDICTS} | {n: c for n, c in counts.items() if n not in VERDICTS}


def shown(value: object) -> str:
    """A parameter's value as text: lists and dicts as JSON, an absent one as a dash."""
    if value is None or value == "":
        return "–"
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict | bool) else str(value)


def duration(seconds: float) -> str:
    """Seconds as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _short_label(record: Record) -> str:
    keys = _NETWORK if is_real(record) else _NETWORK[:1]
    return ", ".join(str(part) for part in (record.data["name"], *map(record.parameters.get, keys)) if part)


def _anchor(path: Path) -> str:
    """The record's file name without its endings, as a name for an anchor."""
    stem = path.name.removesuffix(".record.json")
    return "run-" + "".join(c if c.isalnum() or c in "_-" else "-" for c in stem)


def _unique(names: Sequence[str], prefix: bool = False) -> list[str]:
    """`names` with a number after each repetition; `prefix`: what stands before a slash is then dropped."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        text = name.partition("/")[2] if prefix else name
        found.append(text if seen[name] == 1 else f"{text}-{seen[name]}")
    return found


def _outdated(record: Record) -> bool:
    """Whether the notebook changed since; a notebook that cannot be read is reported with its page."""
    try:
        return verify.outdated(record)
    except notebooks.NotebookError:
        return False
