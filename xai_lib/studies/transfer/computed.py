"""Study 4, what its tables hold: one function for each table, from the study's images and networks.

Usage::

    made = makers(ready, runtime(), progress=True)           # by name of the table, each to be called when it is wanted
    frame = made["cells"]()

Reference: Li et al. 2025, Tables 1 and 2, Figs. 6, 7 and 9.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from xai_lib import knowledge_transfer as kt
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.data.rois import RECIPES, rois
from xai_lib.data.synthetic.mammogram_masses import confounders
from xai_lib.glcm import lesion_background
from xai_lib.models import Classifier
from xai_lib.patch_replacement import cells, patch_replacements, pixels_alone
from xai_lib.studies.mammograms.networks import fresh
from xai_lib.studies.transfer.inputs import BETA, METHODS, Method, Settings, roi_stack
from xai_lib.studies.transfer.study import DEEPER, IMAGENET, MAMMOGRAMS, Ready, calcified, dense
from xai_lib.studies.transfer.training import confounder_shift, cross_validated

REGIONS = {"calcifications": calcified, "dense": dense}
PATCH = 32  # pixels: the stride of the networks
COPIES = 4  # of a lesion at most, in the comparison of recipes

LastGroup = Callable[[str], pd.DataFrame]  # results of training the last group, by name of the start


def makers(ready: Ready, runtime: Runtime, progress: bool) -> dict[str, Callable[[], pd.DataFrame]]:
    """What computes each table, by its name. "shift" and "betas" share one training."""
    last_group: LastGroup = cache(partial(trained_last_group, ready, runtime, progress))
    return {
        "folds": lambda: folds(ready, runtime, progress),
        "shift": lambda: shift(ready, runtime, progress, last_group),
        "betas": lambda: betas(ready, last_group),
        "moved": lambda: moved(ready, runtime, progress),
        "distances": lambda: distances(ready, progress),
        "cells": lambda: replaced_cells(
            explained(ready), ready.sets.moved["centred"], range(ready.study.explained), progress=progress
        ),
        "recipes": lambda: compared_recipes(ready, ready.sets.large, runtime, progress),
    }


def folds(ready: Ready, runtime: Runtime, progress: bool) -> pd.DataFrame:
    """Every method from every start in folds, and `disc`: the share of a centred disc inside the mass."""
    study, sets = ready.study, ready.sets
    masks = roi_stack(sets.main, study.size, progress).images[:, 1] > 0
    size = min(float(masks.float().mean()), math.pi / 4)
    disc = kt.share_inside(kt.centred_disc(study.size, size).float().expand(masks.shape), masks).numpy()
    parts = []
    for name, start in ready.starts.items():
        found = cross_validated(
            study.transfer(start),
            sets.main,
            runtime,
            study.methods,
            study.seeds,
            study.folds,
            regions=REGIONS,
            distances=True,
            progress=progress,
        )
        parts.append(found.assign(start=name))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(disc=frame["case"].map(pd.Series(disc, sets.main.table["source"])))


def shifted(
    ready: Ready, runtime: Runtime, progress: bool, settings: Settings, methods: Mapping[str, Method]
) -> pd.DataFrame:
    """Training where a confounder goes with the label, tests where it does not."""
    sets, seeds = ready.sets.shift, ready.study.seeds
    tests = {name: cases for name, cases in sets.items() if name != "train"}
    return confounder_shift(settings, sets["train"], tests, runtime, methods, seeds, REGIONS, True, progress)


def swept(ready: Ready) -> dict[str, Method]:
    """The transfers of the sweep over beta, by form and beta."""
    return {f"{form} {beta}": Method(beta, form=form) for form, values in ready.study.betas.items() for beta in values}


def trained_last_group(ready: Ready, runtime: Runtime, progress: bool, start: str) -> pd.DataFrame:
    """`shifted` of one start, with the sweep over beta where it is that of the sweep: the frozen part runs once."""
    more = swept(ready) if start == swept_start(ready) else {}
    methods = of_images(ready.study.methods) | more
    return shifted(ready, runtime, progress, ready.study.transfer(ready.starts[start]), methods)


def shift(ready: Ready, runtime: Runtime, progress: bool, last_group: LastGroup) -> pd.DataFrame:
    """The confounder shift from every start; from the one that is looked at closely also with two groups that train."""
    parts, sweep = [], list(swept(ready))
    for name in ready.starts:
        found = last_group(name)
        parts.append(found[~found["method"].isin(sweep)].assign(start=name))
    name = swept_start(ready)
    below = replace(ready.study.transfer(ready.starts[name]), train_from=DEEPER[0])
    deeper = {"fine-tuning, groups 3 and 4": Method(), "transfer, groups 3 and 4": Method(BETA, DEEPER)}
    parts.append(shifted(ready, runtime, progress, below, deeper).assign(start=name))
    return pd.concat(parts, ignore_index=True)


def betas(ready: Ready, last_group: LastGroup) -> pd.DataFrame:
    """The sweep over beta beside fine-tuning, with the columns beta and form."""
    sweep, found = swept(ready), last_group(swept_start(ready))
    found = found[found["method"].isin(["fine-tuning", *sweep])]
    method = found["method"].map({"fine-tuning": Method(), **sweep})
    return found.assign(beta=[m.beta for m in method], form=[m.form for m in method])


def moved(ready: Ready, runtime: Runtime, progress: bool) -> pd.DataFrame:
    """Networks trained on centred masses, tested where the same masses lie elsewhere."""
    study, sets = ready.study, ready.sets
    chosen, methods = study.transfer(ready.starts[MAMMOGRAMS]), of_images(study.methods)
    return confounder_shift(chosen, sets.main, sets.moved, runtime, methods, study.seeds, REGIONS, progress=progress)


def distances(ready: Ready, progress: bool) -> pd.DataFrame:
    """Fig. 6: distance of ROI and mask after every group, of every start and of an untrained network, in both forms."""
    main = ready.sets.main
    stack = roi_stack(main, ready.study.size, progress)
    pixels, masks = (part.float() / 255 for part in stack.images.split(1, 1))
    nets = {name: start.build(ready.seed).eval() for name, start in ready.starts.items()}
    nets["random"] = untrained(ready)
    parts = []
    for name, model in nets.items():
        by_form = {form: kt.group_distances(model, pixels, masks, form) for form in kt.FORMS}
        for group in by_form["printed"]:
            columns = {form: found[group].numpy() for form, found in by_form.items()}
            facts = main.table[["source"]].rename(columns={"source": "case"})
            parts.append(facts.assign(network=name, group=group, **columns))
    return pd.concat(parts, ignore_index=True)


def swept_start(ready: Ready) -> str:
    """The start that is looked at more closely: one that has not learned to pass over calcifications, if there is."""
    return IMAGENET if IMAGENET in ready.starts else MAMMOGRAMS


def of_images(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods whose network reads images."""
    return {name: method for name, method in methods.items() if method.reads == "image"}


def untrained(ready: Ready) -> Classifier:
    """The untrained network, in eval mode."""
    return fresh(ready.study.architecture, None, ready.seed + 1).eval()


def explained(ready: Ready) -> dict[str, nn.Module]:
    """Networks of which patch replacement is asked, and the control without one."""
    nets: dict[str, nn.Module] = {name: ready.networks[name] for name in ("transfer", "fine-tuning", "start")}
    return nets | {"random": untrained(ready), "pixels alone": pixels_alone(PATCH)}


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
