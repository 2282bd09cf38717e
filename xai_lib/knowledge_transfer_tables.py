"""Study 4, the tables: every training, map and replaced patch of the study, as rows that are shipped or computed.

Usage::

    found = tables(ready, runtime())                        # read where they are shipped, else computed
    build_tables(ready, runtime(), folder)                  # computes and ships them; it may be stopped and goes on

All tables have one row per case (and network, seed, group or cell). A shipped row holds the case's number only; names,
patients and labels are put back from the images' own table.

Reference: Li et al. 2025, Tables 1 and 2, Figs. 6, 7 and 9.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from xai_lib import knowledge_transfer as kt
from xai_lib import stored_tables
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.data.rois import RECIPES, rois
from xai_lib.data.synthetic.mammogram_masses import confounders
from xai_lib.glcm import lesion_background
from xai_lib.knowledge_transfer_inputs import BETA, METHODS, Method, Settings, roi_stack
from xai_lib.knowledge_transfer_study import DEEPER, IMAGENET, MAMMOGRAMS, Ready, calcified, dense
from xai_lib.knowledge_transfer_summary import Tables
from xai_lib.knowledge_transfer_training import confounder_shift, cross_validated
from xai_lib.mammogram_networks import fresh
from xai_lib.models import Classifier
from xai_lib.patch_replacement import cells, patch_replacements, pixels_alone

NAMES = ("folds", "shift", "betas", "moved", "distances", "cells", "recipes")
REGIONS = {"calcifications": calcified, "dense": dense}
PATCH = 32  # pixels: the stride of the networks
COPIES = 4  # of a lesion at most, in the comparison of recipes
DIGITS = 4  # of what is shipped


def tables(ready: Ready, runtime: Runtime, shipped: str | Path | None = None, progress: bool = True) -> Tables:
    """All tables of the study; see `knowledge_transfer_summary.Tables` for their columns.

    Args:
        ready: from `knowledge_transfer_study.prepare`.
        runtime: device and precision of what is not stored.
        shipped: folder of stored tables; None: the study's own.
        progress: show bars.
    """
    folder = shipped or ready.study.checkpoint
    made = _makers(ready, runtime, progress)
    found = {name: _stored(ready, name, made[name], folder) for name in NAMES}
    return Tables(**{name: _named(ready, name, frame) for name, frame in found.items()})


def build_tables(ready: Ready, runtime: Runtime, folder: str | Path, progress: bool = True) -> None:
    """Compute all tables and write them with their keys into `folder`."""
    made = _makers(ready, runtime, progress)
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
    starts = {_swept(ready): ready.starts[_swept(ready)]} if name == "betas" else starts
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


# ---------------------------------------------------------------------------------------- what is computed


def _makers(ready: Ready, runtime: Runtime, progress: bool) -> dict[str, Callable[[], pd.DataFrame]]:
    study, sets = ready.study, ready.sets
    chosen = study.transfer(ready.starts[MAMMOGRAMS])

    def folds() -> pd.DataFrame:
        masks = roi_stack(sets.main, study.size, progress).images[:, 1] > 0
        size = min(float(masks.float().mean()), math.pi / 4)
        disc = kt.share_inside(kt.centred_disc(study.size, size).float().expand(masks.shape), masks).numpy()
        found = pd.concat(
            [
                cross_validated(
                    study.transfer(start),
                    sets.main,
                    runtime,
                    study.methods,
                    study.seeds,
                    study.folds,
                    regions=REGIONS,
                    distances=True,
                    progress=progress,
                ).assign(start=name)
                for name, start in ready.starts.items()
            ],
            ignore_index=True,
        )
        return found.assign(disc=found["case"].map(pd.Series(disc, sets.main.table["source"])))

    def shifted(settings: Settings, methods: Mapping[str, Method]) -> pd.DataFrame:
        tests = {name: cases for name, cases in sets.shift.items() if name != "train"}
        return confounder_shift(
            settings, sets.shift["train"], tests, runtime, methods, study.seeds, REGIONS, True, progress
        )

    swept = {f"{form} {beta}": Method(beta, form=form) for form, betas in study.betas.items() for beta in betas}

    @cache
    def last_group(start: str) -> pd.DataFrame:
        more = swept if start == _swept(ready) else {}
        settings = study.transfer(ready.starts[start])
        return shifted(settings, _of_images(study.methods) | more)  # one call: the frozen part is computed once

    def shift() -> pd.DataFrame:
        deeper = {"fine-tuning, groups 3 and 4": Method(), "transfer, groups 3 and 4": Method(BETA, DEEPER)}
        parts = []
        for name in ready.starts:
            found = last_group(name)
            parts.append(found[~found["method"].isin(list(swept))].assign(start=name))
        name = _swept(ready)
        below = replace(study.transfer(ready.starts[name]), train_from=DEEPER[0])
        parts.append(shifted(below, deeper).assign(start=name))
        return pd.concat(parts, ignore_index=True)

    def betas() -> pd.DataFrame:
        found = last_group(_swept(ready))
        found = found[found["method"].isin(["fine-tuning", *swept])]
        method = found["method"].map({"fine-tuning": Method(), **swept})
        return found.assign(beta=[m.beta for m in method], form=[m.form for m in method])

    def moved() -> pd.DataFrame:
        methods = _of_images(study.methods)
        return confounder_shift(
            chosen, sets.main, sets.moved, runtime, methods, study.seeds, REGIONS, progress=progress
        )

    def distances() -> pd.DataFrame:
        stack = roi_stack(sets.main, study.size, progress)
        pixels, masks = (part.float() / 255 for part in stack.images.split(1, 1))
        nets = {name: start.build(ready.seed).eval() for name, start in ready.starts.items()}
        nets["random"] = _random(ready)
        parts = []
        for name, model in nets.items():
            by_form = {form: kt.group_distances(model, pixels, masks, form) for form in kt.FORMS}
            for group in by_form["printed"]:
                columns = {form: found[group].numpy() for form, found in by_form.items()}
                facts = sets.main.table[["source"]].rename(columns={"source": "case"})
                parts.append(facts.assign(network=name, group=group, **columns))
        return pd.concat(parts, ignore_index=True)

    def replaced() -> pd.DataFrame:
        return replaced_cells(_verdicts(ready), sets.moved["centred"], range(study.explained), progress=progress)

    def recipes() -> pd.DataFrame:
        return compared_recipes(ready, sets.large, runtime, progress)

    makers = {"folds": folds, "shift": shift, "betas": betas, "moved": moved, "distances": distances}
    return makers | {"cells": replaced, "recipes": recipes}


def _swept(ready: Ready) -> str:
    """The start that is looked at more closely: one that has not learned to pass over calcifications, if there is."""
    return IMAGENET if IMAGENET in ready.starts else MAMMOGRAMS


def _of_images(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods whose network reads images."""
    return {name: method for name, method in methods.items() if method.reads == "image"}


def _random(ready: Ready) -> Classifier:
    """The untrained network, in eval mode."""
    return fresh(ready.study.architecture, None, ready.seed + 1).eval()


def _verdicts(ready: Ready) -> dict[str, nn.Module]:
    """Networks of which patch replacement is asked, and the control without one."""
    nets: dict[str, nn.Module] = {name: ready.networks[name] for name in ("transfer", "fine-tuning", "start")}
    return nets | {"random": _random(ready), "pixels alone": pixels_alone(PATCH)}


def replaced_cells(
    networks: Mapping[str, nn.Module],
    cases: CaseDataset,
    indices: Iterable[int],
    dark: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Patch replacement (eq. 6) of ROIs by several networks: one row per network, case and cell.

    Args:
        networks: by name, each as for `patch_replacement`.
        cases: ROIs with masks.
        indices: which of them.
        dark: masses are dark, as in ultrasound.
        progress: show a bar.

    Returns:
        The columns of `patch_replacement.cells`, network, case, and for synthetic masses calcifications and dense, the
        share of the cell that each covers.
    """
    chosen = list(indices)
    shown = [cases[i] for i in chosen]
    pairs = [(case.image[0].numpy(), lesion_background(case.image[0].numpy(), dark=dark)) for case in shown]
    known = [_covered(cases, i) for i in chosen]
    parts = []
    for name, model in tqdm(networks.items(), desc="networks", disable=not progress, leave=False):
        for case, found, extra in zip(shown, patch_replacements(model, pairs, PATCH), known, strict=True):
            if case.mask is None:
                raise ValueError(f"{case.source}: it has no mask")
            parts.append(cells(found, case.mask.numpy()).assign(network=name, case=case.source, **extra))
    return pd.concat(parts, ignore_index=True)


def _covered(cases: CaseDataset, index: int) -> dict[str, NDArray[np.float64]]:
    """Share of every cell that is calcified, and that is dense."""
    if "generator" not in cases.parameters or cases.name != "synthetic_masses":
        return {}
    where = confounders(cases, index)
    spots = nn.functional.max_pool2d(where.calcifications[None].float(), 7, 1, 3)[0]
    planes = {"calcifications": spots, "dense": where.dense.float()}
    return {
        name: nn.functional.avg_pool2d(plane[None], PATCH)[0].double().numpy().ravel() for name, plane in planes.items()
    }


def compared_recipes(ready: Ready, large: CaseDataset, runtime: Runtime, progress: bool = True) -> pd.DataFrame:
    """Fine-tuning on the ROIs of all five recipes of Table 1, over the same folds."""
    study, parts = ready.study, []
    for name, recipe in RECIPES.items():
        copies = min(recipe.copies, COPIES)
        fit = replace(study.fit, augment=recipe.augment, epochs=study.fit.epochs // copies or 1)
        settings = replace(study.transfer(ready.starts[MAMMOGRAMS]), fit=fit)
        cut = rois(large, name, size=study.size, context=study.size, copies=copies)
        method = {name: METHODS["fine-tuning"]}
        found = cross_validated(settings, cut, runtime, method, study.seeds[:1], study.folds, progress=progress)
        parts.append(found.rename(columns={"method": "recipe"}))
    return pd.concat(parts, ignore_index=True)


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
