"""Study 3, the results: everything the notebook shows and the record keeps, from one `Done`.

Usage::

    result = summarise(carry_out(settings("lab"), 0, runtime(), "outputs"), replicates=1000, seed=0)
    result.table2["both"]                      # Tab. 2 beside its chance levels
    records.make(..., figures=result.figures(), verdicts=result.verdicts, tables=result.tables())
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import claims, estimate_tables, statistics
from xai_lib.localization import COLUMNS
from xai_lib.records import Record
from xai_lib.results import Estimate, Figure, Verdict
from xai_lib.studies.ultrasound import pointing_tables as tables
from xai_lib.studies.ultrasound.cam import first_points, points
from xai_lib.studies.ultrasound.experiment import Done, stopping, training_length

PAPER_TABLE1 = {
    "auc": Estimate(0.887, 0.872, 0.902, "paper, Tab. 1"),
    "accuracy": Estimate(0.835, 0.817, 0.853, "paper, Tab. 1"),
    "sensitivity": Estimate(0.801, 0.776, 0.826, "paper, Tab. 1"),
    "specificity": Estimate(0.868, 0.845, 0.891, "paper, Tab. 1"),
}
PAPER_TABLE2 = {"mass": 0.34, "ring": 0.38, "below": 0.30, "any": 0.71}
ROWS = {  # the rows of our Tab. 2: name, map, alignment
    "CAM (the paper's)": ("cam", "resize"),
    "CAM, measured offset": ("cam", "measured"),
    "CAM, first pixel of resized": ("cam_first", "resize"),
    "Grad-CAM": ("grad_cam", "resize"),
    "LayerCAM, finer layer": ("layer_cam", "resize"),
    "CAMERAS": ("cameras", "resize"),
    "linear head, no DRS": ("linear_head", "resize"),
    "random network": ("random_network", "resize"),
}


@dataclass(frozen=True)
class Summary:
    """All results of one data set. `frame` has one row per test image and run, for the paper's map.

    `table1` has one row per network, `table2` one table per extreme ("both", "max", "min"), `shuffled` the control with
    permuted labels, `external` the other real data set, `lengths` training length, `stopping` both ways of early
    stopping, `abstained` the rules for refusing, `ties` how often the resized extremes are tied.
    """

    frame: pd.DataFrame
    table1: pd.DataFrame
    table2: dict[str, pd.DataFrame]
    shuffled: pd.DataFrame
    external: pd.DataFrame
    lengths: pd.DataFrame
    stopping: pd.DataFrame
    abstained: pd.DataFrame
    ties: dict[str, float]
    offset: dict[str, float]
    verdicts: dict[str, Verdict]

    def figures(self) -> dict[str, Figure]:
        """Headline figures with their baselines."""
        first = self.table1.iloc[0]
        out = {name: Figure(first[name]) for name in PAPER_TABLE1}
        chance = {row["row"]: row for _, row in self.chance().iterrows()}
        hits = self.table2["both"].iloc[0]
        for region in COLUMNS:
            out[f"hits_{region}"] = Figure(
                hits[region],
                "share of correctly classified images",
                {name: row[region] for name, row in chance.items()},
            )
        return out

    def chance(self, which: str = "both", group: str = "all") -> pd.DataFrame:
        """The chance rows of Tab. 2."""
        table = self.table2[which]
        return table[(table["kind"] == "chance") & (table["class"] == group)]

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Every table as plain rows."""
        out = {f"table2_{which}": estimate_tables.as_rows(table) for which, table in self.table2.items()}
        for name in ("table1", "shuffled", "external", "lengths", "stopping", "abstained"):
            out[name] = estimate_tables.as_rows(getattr(self, name))
        out["alignment"] = [{**self.offset, **self.ties}]
        return out


def summarise(done: Done, replicates: int = 1000, seed: int = 0) -> Summary:
    """Compute every table, interval and verdict of the study.

    Args:
        done: from `carry_out`.
        replicates: of the bootstrap over patients.
        seed: of the bootstrap.
    """
    frames = {
        name: points(done.runs, done.areas, done.dataset, which, align=align) for name, (which, align) in _rows(done)
    }
    name = next(iter(frames))
    frame = frames[name] = tables.mark_correct(frames[name])
    if "linear_head" in done.runs[0].extras:  # there is a pre-trained backbone, so an untrained head means something
        frames["untrained head"] = points(done.runs, done.areas, done.dataset, epoch=0)
    table2 = {
        which: tables.table2(frames, done.areas, done.grid, which, replicates, seed) for which in ("both", "max", "min")
    }
    tied = np.concatenate([first_points(run.maps[run.epoch()])[1] for run in done.runs])
    offset = np.mean([run.offset for run in done.runs], axis=0)
    return Summary(
        frame=frame,
        table1=_table1(done, frame, replicates, seed),
        table2=table2,
        shuffled=_shuffled(done, frame, replicates, seed),
        external=_external(done, replicates, seed),
        lengths=training_length(done),
        stopping=stopping(done),
        abstained=tables.abstention(frame),
        ties={"tied_maximum": float(tied[:, 0].mean()), "tied_minimum": float(tied[:, 1].mean())},
        offset={"offset_rows": float(offset[0]), "offset_cols": float(offset[1])},
        verdicts=judge(frame, done.areas, max(float(run.gap) for run in done.runs), replicates, seed),
    )


def _rows(done: Done) -> list[tuple[str, tuple[str, str]]]:
    """The rows of Tab. 2 that these runs can fill."""
    have = {"cam", "cam_first", *done.runs[0].extras}
    return [(name, how) for name, how in ROWS.items() if how[0] in have]


def _table1(done: Done, frame: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """Tab. 1: the network with both ways of stopping and both readings of the "±", and the controls."""
    kinds = {
        "trained, stopped on validation": frame,
        "trained, stopped on test (paper)": points(done.runs, done.areas, done.dataset, early_stopping="test"),
    }
    for name, which in (("linear head, no DRS", "linear_head"), ("random network", "random_network")):
        if which in done.runs[0].extras:
            kinds[name] = points(done.runs, done.areas, done.dataset, which)
    if done.shuffled:
        kinds["trained on shuffled labels"] = points(done.shuffled, done.areas, done.dataset)
    rows = []
    for name, f in kinds.items():
        f = f if "correct" in f else tables.mark_correct(f)
        runs = len(f[["seed", "fold"]].drop_duplicates())
        rows.append({"network": name, "runs": runs, "interval": "over patients", **tables.table1(f, replicates, seed)})
        if runs > 1 and name.startswith("trained, stopped"):
            rows.append({"network": name, "runs": runs, "interval": "sd over runs", **tables.spread_over_runs(f)})
    return pd.DataFrame(rows)


def _shuffled(done: Done, frame: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """Hit rates of a network that learnt permuted labels, beside the real one on the same images."""
    if not done.shuffled:
        return pd.DataFrame()
    other = points(done.shuffled, done.areas, done.dataset)
    same = frame[frame["seed"] == frame["seed"].iloc[0]].reset_index(drop=True)
    both = {"CAM (the paper's)": same, "CAM, shuffled labels": other}
    return tables.table2(both, done.areas, done.grid, "both", replicates, seed)


def _external(done: Done, replicates: int, seed: int) -> pd.DataFrame:
    """The kept networks on a data set they never saw: rows of Tab. 1 and 2, thresholds chosen there as in the paper."""
    rows: list[dict[str, object]] = []
    for name, (cases, areas) in done.externals.items():
        runs = [replace(run, test=np.arange(len(cases))) for run in done.runs]
        frame = tables.mark_correct(points(runs, areas, cases, name))
        kept = frame[frame["correct"]]
        figures = tables.table1(frame, replicates, seed)
        for group, hits in tables.rates(tables.hit_columns(kept), kept, replicates, seed).items():
            rows.append({"data": name, "class": group, **figures, **hits})
        chance = tables.rates(tables.chance_columns(kept, areas, "uniform"), kept, replicates, seed)
        rows += [{"data": f"{name}: two random points", "class": group, **hits} for group, hits in chance.items()]
    return pd.DataFrame(rows)


def judge(
    frame: pd.DataFrame, areas: Sequence[NDArray[np.uint8]], gap: float, n: int = 1000, seed: int = 0
) -> dict[str, Verdict]:
    """Verdicts on claims 3.1 to 3.4, by the rules of ``data/claims.yml``.

    Args:
        frame: from `mark_correct`, of the paper's map (CAM, resized).
        areas: regions of the whole data set.
        gap: largest relative deviation from ``logit = mean(map) + bias``.
        n: bootstrap replicates.
        seed: of the bootstrap.
    """
    known = claims.load()
    kept = frame[frame["correct"]]
    chance = tables.chance_columns(kept, areas, "uniform")
    hits = tables.hit_columns(kept)
    random = tables.rates(chance, kept, 1, seed)["all"]
    pairs = {"ring - mass": ("ring", "mass"), "ring - below": ("ring", "below")}
    gaps = pd.DataFrame({name: hits[a] - hits[b] for name, (a, b) in pairs.items()})
    gaps["patient_id"] = kept["patient_id"]
    differences = statistics.bootstrap_many(lambda f: f[list(pairs)].mean(), gaps, n=n, seed=seed)
    at_chance = {name: random[a].value - random[b].value for name, (a, b) in pairs.items()}
    levels = {name: chance.value for name, chance in random.items()}
    return {
        "3.1": claims.decide(known["3.1"], tables.table1(frame, n, seed)),
        "3.2": claims.decide(known["3.2"], tables.rates(hits, kept, n, seed)["all"], levels),
        "3.3": claims.decide(known["3.3"], differences, at_chance),
        "3.4": claims.decide(known["3.4"], {"gap": Estimate(gap)}),
    }


def overview(found: Mapping[str, Record]) -> pd.DataFrame:
    """One row per record: data, network, AUC and hit rates in per cent with 95 % intervals, chance in brackets."""
    rows = []
    for record in found.values():
        settings = record.parameters
        row = {
            "data": record.data["name"],
            "network": f"{settings['backbone']}, {settings['padding']} padding",
            "transfer": settings["transfer"],
            "AUC": str(record.figures["auc"].estimate),
        }
        for region in COLUMNS:
            figure = record.figures[f"hits_{region}"]
            hit, chance = figure.estimate, figure.baselines["two random points"].value
            interval = ""
            if hit.low is not None and hit.high is not None:
                interval = f" [{100 * hit.low:.0f}, {100 * hit.high:.0f}]"
            row[region] = f"{100 * hit.value:.0f}{interval} ({100 * chance:.0f})"
        rows.append(row)
    return pd.DataFrame(rows, columns=["data", "network", "transfer", "AUC", *COLUMNS])
