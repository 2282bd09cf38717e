"""The record of a study on real images: what the four commands of ``xai-lib real`` have in common.

Usage::

    record = record_of(result, dataset, name="mini_mias", study="04_knowledge_transfer_densenet", ...)
"""

from collections.abc import Mapping
from typing import Any, Protocol

from xai_lib import records
from xai_lib.data import CaseDataset
from xai_lib.results import Figure, Verdict


class Result(Protocol):
    """What a study says: its verdicts, headline figures, and tables as plain rows."""

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Verdicts by claim."""

    def figures(self) -> dict[str, Figure]:
        """Headline figures with their baselines."""

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Tables as plain rows."""


def record_of(
    result: Result,
    dataset: CaseDataset,
    *,
    name: str,
    study: str,
    title: str,
    parameters: Mapping[str, Any],
    seed: int,
    started: float,
    command: str,
    profile: str = "lab",
    checkpoint: Mapping[str, Any] | None = None,
    skipped: int | None = None,
) -> records.Record:
    """The record of `result` on the real images `dataset`; for the other arguments see `records.make`.

    Args:
        result: of the study.
        dataset: what was explained; its fingerprint, number of cases and of skipped ones go into the record.
        name: of the data set, as in ``data.load(name)``.
        study: notebook that the record belongs to.
        title: of the record.
        parameters: of the run.
        seed: of the run.
        started: `time.perf_counter()` at its start.
        command: that repeats the run.
        profile: of the settings.
        checkpoint: name and sha256 of the network.
        skipped: cases; None: what the data set has left out.
    """
    left_out = len(dataset.skipped) if skipped is None else skipped
    about = {"name": name, "fingerprint": dataset.fingerprint, "cases": len(dataset), "skipped": left_out}
    return records.make(
        study=study,
        title=title,
        profile=profile,
        parameters=parameters,
        seed=seed,
        data=about,
        checkpoint=checkpoint,
        figures=result.figures(),
        verdicts=result.verdicts,
        tables=result.tables(),
        started=started,
        command=command,
    )
