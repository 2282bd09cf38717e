"""Study 4, the tables: every training, map and replaced patch of the study, as rows that are shipped or computed.

Usage::

    found = tables(ready, runtime())                        # read where they are shipped, else computed
    build_tables(ready, runtime(), folder)                  # computes and ships them; it may be stopped and goes on

All tables have one row per case (and network, seed, group or cell). A shipped row holds the case's number only; names,
patients and labels are put back from the images' own table.

Reference: Li et al. 2025, Tables 1 and 2, Figs. 6, 7 and 9.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xai_lib import stored_tables
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.data.rois import RECIPES, rois
from xai_lib.studies.transfer.computed import makers, swept_start
from xai_lib.studies.transfer.study import MAMMOGRAMS, Ready
from xai_lib.studies.transfer.summary import Tables

NAMES = ("folds", "shift", "betas", "moved", "distances", "cells", "recipes")
DIGITS = 4  # of what is shipped


def tables(ready: Ready, runtime: Runtime, shipped: str | Path | None = None, progress: bool = True) -> Tables:
    """All tables of the study; see `summary.Tables` for their columns.

    Args:
        ready: from `study.prepare`.
        runtime: device and precision of what is not stored.
        shipped: folder of stored tables; None: the study's own.
        progress: show bars.
    """
    folder = shipped or ready.study.checkpoint
    made = makers(ready, runtime, progress)
    found = {name: _stored(ready, name, made[name], folder) for name in NAMES}
    return Tables(**{name: _named(ready, name, frame) for name, frame in found.items()})


def build_tables(ready: Ready, runtime: Runtime, folder: str | Path, progress: bool = True) -> None:
    """Compute all tables and write them with their keys into `folder`."""
    made = makers(ready, runtime, progress)
    for name in NAMES:
        stored_tables.save(_stored(ready, name, made[name]), f"transfer_{name}", _key(ready, name), folder)


def _stored(
    ready: Ready, name: str, compute: Callable[[], pd.DataFrame], folder: str | Path | None = None
) -> pd.DataFrame:
    return stored_tables.table(f"transfer_{name}", _key(ready, name), lambda: _compact(ready, name, compute()), folder)


def _key(ready: Ready, name: str) -> dict[str, Any]:
    """All that a table depends on."""
    study, sets = ready.study, ready.sets
    used: dict[str, Mapping[str, CaseDataset]] = {
        "folds": {"main": sets.main},
        "shift": sets.shift,
        "betas": sets.shift,
        "moved": {"main": sets.main, **sets.moved},
        "distances": {"main": sets.main},
        "cells": sets.moved,
        "recipes": {"large": sets.large},
    }
    chosen = {"size": study.size, "fit": asdict(study.fit), "folds": study.folds, "seeds": list(study.seeds)}
    starts = ready.starts if name in ("folds", "shift", "distances") else {MAMMOGRAMS: ready.starts[MAMMOGRAMS]}
    starts = {swept_start(ready): ready.starts[swept_start(ready)]} if name == "betas" else starts
    own: dict[str, Any] = {"methods": sorted(study.methods)}
    if name == "betas":
        own = {"betas": {form: list(betas) for form, betas in study.betas.items()}}
    elif name in ("distances", "cells", "recipes"):
        own = {"explained": study.explained} if name == "cells" else {}
    return {
        "table": name,
        "settings": chosen,
        "starts": {key: start.key for key, start in starts.items()},
        "data": {key: cases.fingerprint for key, cases in used[name].items()},
        "seed": ready.seed,
        **own,
    }


# ---------------------------------------------------------------------------------------- what is shipped


FACTS = ("case", "patient_id", "label")


def _sources(ready: Ready, name: str) -> pd.DataFrame:
    """Case, patient and label of the images a table speaks of, in their order."""
    sets = ready.sets
    known = {"shift": sets.shift, "betas": sets.shift, "moved": sets.moved}
    if name in known:
        tests = {test: cases for test, cases in known[name].items() if test != "train"}
    elif name == "recipes":
        size = ready.study.size
        tests = {recipe: rois(sets.large, recipe, size=size, context=size) for recipe in RECIPES}
    else:
        tests = {"": sets.moved["centred"] if name == "cells" else sets.main}
    parts = [
        cases.table[["source", "patient_id", "label"]].rename(columns={"source": "case"}).assign(where=test)
        for test, cases in tests.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _where(name: str) -> str | None:
    """The column that says which set a row's case is from."""
    return {"shift": "test", "betas": "test", "moved": "test", "recipes": "recipe"}.get(name)


def _compact(ready: Ready, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers of cases instead of names, and four decimals."""
    facts = _sources(ready, name)
    where = frame[_where(name)] if _where(name) else ""
    number = pd.Series(facts.index, index=pd.MultiIndex.from_frame(facts[["where", "case"]]))
    wanted = pd.MultiIndex.from_arrays([np.broadcast_to(where, len(frame)), frame["case"]])
    rest = frame.drop(columns=[column for column in FACTS if column in frame])
    rest.insert(0, "number", number.reindex(wanted).to_numpy())
    known = [name for name in rest if rest[name].dtype.kind == "f" and name != "mean_squared"]
    return rest.round(dict.fromkeys(known, DIGITS))


def _named(ready: Ready, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The inverse of `_compact`."""
    facts = _sources(ready, name).loc[frame["number"], list(FACTS)].reset_index(drop=True)
    return pd.concat([facts, frame.drop(columns="number")], axis=1)
