"""What a run says: an estimate, a headline figure beside its chance levels, and a verdict on a claim.

Usage::

    rate = Estimate(0.34, 0.28, 0.41, "bootstrap over 100 patient_id, 1000 replicates")
    figure = Figure(rate, "share of images", baselines={"two random points": Estimate(0.13)})

They are computed in `statistics`, decided in `claims`, and written and read in `records`.
"""

from dataclasses import dataclass, field

VERDICTS = ("holds", "does not hold", "not decidable here")


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    `low` and `high` are the ends of a 95 % interval, except after `mean_sd`; None where there is none.
    `method` says how the interval was made.
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""

    def __str__(self) -> str:
        """Value and interval to three digits, as ``0.887 [0.872, 0.902]``."""
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Figure:
    """One headline figure with the chance levels it has to be read against."""

    estimate: Estimate
    unit: str = ""
    baselines: dict[str, Estimate] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a run says about one claim: `verdict` is one of `VERDICTS`, `rule` is how it was decided.

    Where several figures decide, `parts` holds the verdict on each by its name, and `ours` is None.
    """

    claim: str
    verdict: str
    why: str
    rule: str
    ours: Estimate | None = None
    baseline: Estimate | None = None
    parts: dict[str, "Verdict"] = field(default_factory=dict)
