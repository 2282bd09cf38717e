"""The papers' claims, the rules that decide them, and the ledger that holds our figures against them.

Usage::

    claims = load()
    verdict = decide(claims["3.2"], ours={"mass": ..., "ring": ..., "below": ..., "any": ...}, baselines=chance)
    ledger([read(path) for path in paths])

The claims stand in ``data/claims.yml`` of the checkout, each with its rule in words. The functions here apply that
rule to estimates. A rule has three outcomes: holds, does not hold, not decidable here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pandas as pd
import yaml

from xai_lib.config import repository_dir
from xai_lib.records import Record
from xai_lib.results import VERDICTS, Estimate, Verdict

HOLDS, FAILS, UNDECIDED = VERDICTS
_CHOICES = {
    "kind": ("value", "order", "sign"),
    "status": ("answered", "planned"),
    "test": ("", "within", "above", "ordered", "identity"),
}


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, and how we decide it.

    `where` is the paper's section or table. `rule` says in words how the verdict is reached. For an answered claim
    `test` names the function here that does it, and `figures` its numbers: for each deciding figure the paper's value
    (`paper`), its `tolerance`, and the width from which our interval confirms nothing (`widest`).
    """

    id: str
    paper: str
    where: str
    kind: str
    claim: str
    paper_value: str
    measured: str
    rule: str
    notebook: str
    status: str
    test: str = ""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)


def load(path: str | Path | None = None) -> dict[str, Claim]:
    """Read the claims, keyed by id in the order of the file; `path` defaults to ``data/claims.yml``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an entry is incomplete, unknown or doubled; the message names file, claim and field.
    """
    path = Path(path) if path is not None else repository_dir() / "data" / "claims.yml"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; the claims stand in data/claims.yml of the checkout")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of claims")
    claims: dict[str, Claim] = {}
    for entry in entries:
        claim = _claim(entry, str(path))
        if claim.id in claims:
            raise ValueError(f"{path}: claim {claim.id} occurs twice")
        claims[claim.id] = claim
    return claims


def _claim(entry: object, path: str) -> Claim:
    """One entry of the file as a Claim; ValueError names the field that is wrong."""
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {entry!r:.60} is not a claim, expected fields")
    where = f"{path}: claim {entry.get('id')}"
    texts = {f.name for f in fields(Claim)} - {"figures"}
    for name in sorted(set(entry) - texts - {"figures"}):
        raise ValueError(f"{where}: {name} is not a known field")
    for name in sorted(texts - {"test"} | (texts & set(entry))):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise ValueError(f"{where}: {name} is {entry.get(name)!r}, expected text")
    for name, choices in _CHOICES.items():
        if entry.get(name, choices[0]) not in choices:
            raise ValueError(f"{where}: {name} is {entry[name]!r}, expected one of {', '.join(filter(None, choices))}")
    if entry["status"] == "answered" and not (entry.get("test") and entry.get("figures")):
        raise ValueError(f"{where}: is answered, but test or figures is missing")
    return Claim(**entry)


def _verdict(
    claim: Claim, outcome: str, why: str, ours: Estimate | None = None, baseline: Estimate | float | None = None
) -> Verdict:
    """Verdict with the claim's own rule."""
    level = Estimate(float(baseline)) if isinstance(baseline, int | float) else baseline
    return Verdict(claim.id, outcome, why, claim.rule, ours, level)


def _number(value: float) -> str:
    """Three digits after the point, or two significant ones where that would print zero."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:.1e}"


def _without_interval(ours: Estimate) -> str:
    """Why `ours` cannot be judged by an interval; empty where it can."""
    if math.isnan(ours.value):
        return "the figure is not defined on these data"
    if ours.low is None or ours.high is None or math.isnan(ours.low) or math.isnan(ours.high):
        return f"{_number(ours.value)} has no interval ({ours.method or 'method not given'})"
    if ours.method.startswith("sd over"):
        return f"{_number(ours.value)} comes with an sd over runs, which is not a 95 % interval"
    if ours.low == ours.high:
        return f"every replicate gave {_number(ours.value)}, so the interval says nothing about the uncertainty"
    return ""


def _side(ours: Estimate, low: float, high: float) -> str:
    """Where the interval of `ours` lies against [low, high]: below, above or across."""
    if ours.high is not None and ours.high < low:
        return "below"
    return "above" if ours.low is not None and ours.low > high else "across"


def _against_chance(ours: Estimate, chance: Estimate | float | None) -> str:
    """Clause that sets `ours` against its chance level; empty without one, or without an interval."""
    level = chance.value if isinstance(chance, Estimate) else chance
    if level is None or math.isnan(level) or _without_interval(ours):
        return ""
    if _side(ours, level, level) == "across":
        return f"; the chance level {_number(level)} lies in our interval, so chance explains this figure"
    return f"; our interval lies {_side(ours, level, level)} the chance level {_number(level)}"


def within(
    claim: Claim,
    ours: Estimate,
    paper: float,
    tolerance: float,
    widest: float = math.inf,
    baseline: Estimate | float | None = None,
) -> Verdict:
    """Whether our 95 % interval meets the paper's value +- tolerance.

    Holds where it does. Does not hold where it lies wholly outside. Not decidable where it meets the range but is wider
    than `widest` (a wide interval meets everything), or where there is no interval. One of zero width counts as none: a
    bootstrap in which every replicate is equal has not seen how far the figure can move, whatever the number of cases.
    So a share of 0 or 1 should come with an exact interval. A chance level given as `baseline` is named in `why` and
    decides nothing: the claim is about the value.
    """
    if problem := _without_interval(ours):
        return _verdict(claim, UNDECIDED, problem, ours, baseline)
    low, high = paper - tolerance, paper + tolerance
    side = _side(ours, low, high)
    paper_text = f"the paper's {_number(low)} to {_number(high)}"
    chance = _against_chance(ours, baseline)
    if side != "across":
        return _verdict(claim, FAILS, f"{ours} lies wholly {side} {paper_text}{chance}", ours, baseline)
    width = (ours.high or 0.0) - (ours.low or 0.0)
    if width > widest:
        why = f"{ours} meets {paper_text}, but its width {_number(width)} is above {_number(widest)}{chance}"
        return _verdict(claim, UNDECIDED, why, ours, baseline)
    return _verdict(claim, HOLDS, f"{ours} meets {paper_text}{chance}", ours, baseline)


def above(claim: Claim, ours: Estimate, baseline: Estimate | float) -> Verdict:
    """Whether our 95 % interval lies wholly above the baseline's value.

    Does not hold where it lies wholly below; not decidable where it contains the baseline. Where the baseline comes
    from the same patients, the paired difference and `ordered` is the sharper test.
    """
    level = baseline.value if isinstance(baseline, Estimate) else float(baseline)
    problem = "the baseline is not defined" if math.isnan(level) else _without_interval(ours)
    if problem:
        return _verdict(claim, UNDECIDED, problem, ours, baseline)
    side = _side(ours, level, level)
    outcome = {"above": HOLDS, "below": FAILS, "across": UNDECIDED}[side]
    place = "contains" if side == "across" else f"lies wholly {side}"
    return _verdict(claim, outcome, f"{ours} {place} {_number(level)}", ours, baseline)


def ordered(
    claim: Claim, differences: Mapping[str, Estimate], baselines: Mapping[str, Estimate | float] | None = None
) -> Verdict:
    """Whether every paired difference (first minus second) has its 95 % interval above 0.

    Does not hold where any lies wholly below 0; else not decidable. The same differences at chance level, given as
    `baselines`, are named in `why` and decide nothing.
    """
    parts = {}
    for name, difference in differences.items():
        chance = (baselines or {}).get(name)
        part = above(claim, difference, 0.0)
        parts[name] = _verdict(claim, part.verdict, part.why + _against_chance(difference, chance), difference, chance)
    return combine(claim, parts)


def identity(claim: Claim, largest_gap: float, tolerance: float) -> Verdict:
    """Whether an identity holds to numerical precision: the largest gap over all cases is at most `tolerance`."""
    ours = Estimate(float(largest_gap), method="largest gap over all cases")
    if math.isnan(largest_gap):
        return _verdict(claim, UNDECIDED, "the gap is not defined on these data", ours)
    if largest_gap <= tolerance:
        return _verdict(claim, HOLDS, f"largest gap {_number(largest_gap)}, at most {tolerance:g} allowed", ours)
    return _verdict(claim, FAILS, f"largest gap {_number(largest_gap)} is above {tolerance:g}", ours)


def combine(claim: Claim, verdicts: Mapping[str, Verdict]) -> Verdict:
    """One verdict from several: does not hold where any does not; else not decidable where any is not; else holds.

    The parts stay in `Verdict.parts`. A single part is returned as it is.

    Raises:
        ValueError: there is no part.
    """
    if not verdicts:
        raise ValueError(f"verdicts: claim {claim.id} has no part to decide it by")
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    outcomes = {part.verdict for part in verdicts.values()}
    outcome = next(o for o in (FAILS, UNDECIDED, HOLDS) if o in outcomes)
    why = ". ".join(f"{name}: {part.verdict}, {part.why}" for name, part in verdicts.items())
    return replace(_verdict(claim, outcome, why), parts=dict(verdicts))


def decide(
    claim: Claim, ours: Mapping[str, Estimate], baselines: Mapping[str, Estimate | float] | None = None
) -> Verdict:
    """Apply the claim's own test, with the numbers of ``data/claims.yml``, to our figures.

    Args:
        claim: an answered claim.
        ours: an estimate for each name in ``claim.figures``; others are ignored.
        baselines: chance levels by the same names.

    Raises:
        ValueError: the claim has no test yet, or a deciding figure is missing.
    """
    if not claim.test:
        raise ValueError(f"claim {claim.id}: is {claim.status}, no test is set for it in claims.yml")
    for name in claim.figures:
        if name not in ours:
            raise ValueError(f"ours: claim {claim.id} needs {name!r}, got {', '.join(ours) or 'nothing'}")
    levels = baselines or {}
    if claim.test == "ordered":
        return ordered(claim, {name: ours[name] for name in claim.figures}, levels)
    parts = {}
    for name, numbers in claim.figures.items():
        if claim.test == "within":
            parts[name] = within(claim, ours[name], **numbers, baseline=levels.get(name))
        elif claim.test == "above":
            parts[name] = above(claim, ours[name], levels.get(name, math.nan))
        else:
            parts[name] = identity(claim, ours[name].value, numbers["tolerance"])
    return combine(claim, parts)


def ledger(records: Sequence[Record], claims: Mapping[str, Claim] | None = None) -> pd.DataFrame:
    """One row per claim and record, in the order of the claims; a claim without a record has one row as well.

    Columns: id, claim, paper, ours, interval, baseline, verdict, why, data (and network), profile. Without a record the
    verdict is "planned", or "not measured" where a notebook answers the claim but no record was given.

    Raises:
        ValueError: a record judges a claim that is not in `claims`.
    """
    claims = load() if claims is None else claims
    columns = ["id", "claim", "paper", "ours", "interval", "baseline", "verdict", "why", "data", "profile"]
    rows = []
    for record in records:
        for unknown in sorted(set(record.verdicts) - set(claims)):
            raise ValueError(f"records: {record.study} on {record.data['name']} judges the unknown claim {unknown}")
    for claim in claims.values():
        head = dict.fromkeys(columns, "") | {"id": claim.id, "claim": claim.claim, "paper": claim.paper_value}
        judged = [record for record in records if claim.id in record.verdicts]
        for record in judged:
            rows.append(head | _cells(claim, record) | {"data": _data(record), "profile": record.profile})
        if not judged:
            rows.append(head | {"verdict": "planned" if claim.status == "planned" else "not measured"})
    return pd.DataFrame(rows, columns=columns)


def _data(record: Record) -> str:
    """The data set and the network; on a real data set also how the network was transferred and padded."""
    keys = ("backbone",) if record.data["name"].startswith("synthetic") else ("backbone", "transfer", "padding")
    return ", ".join(str(name) for name in (record.data["name"], *map(record.parameters.get, keys)) if name)


def _cells(claim: Claim, record: Record) -> dict[str, str]:
    """The ledger's columns of one verdict, as text; several parts are listed by name, in the order of the claim."""
    verdict = record.verdicts[claim.id]
    order = list(claim.figures)  # a record's keys are sorted by name
    names = sorted(verdict.parts, key=lambda name: order.index(name) if name in order else len(order))
    cells: dict[str, list[str]] = {"ours": [], "interval": [], "baseline": []}
    for name, part in [(name, verdict.parts[name]) for name in names] or [("", verdict)]:
        if part.ours is not None:
            cells["ours"].append(f"{name} {_number(part.ours.value)}".strip())
            if part.ours.low is not None and part.ours.high is not None:
                cells["interval"].append(f"[{_number(part.ours.low)}, {_number(part.ours.high)}]")
        if part.baseline is not None:
            cells["baseline"].append(f"{name} {_number(part.baseline.value)}".strip())
    return {key: "; ".join(texts) for key, texts in cells.items()} | {"verdict": verdict.verdict, "why": verdict.why}
