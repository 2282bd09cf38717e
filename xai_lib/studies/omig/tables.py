"""Study 6, the results without whole maps: predicted curves, interventions, paths, agreement of members, and costs.

Usage::

    found = tables(ready)                                    # shipped, cached, or computed
    found.interventions[found.interventions["what"] == "contrast"]

`curves`: every predicted point beside its exact and its drawn label. `interventions`: predicted and true midpoint when
the discs' contrast, the noise or the grid change and nothing else does. `paths`: OMIG over c and L. `members`: maps of
single members against each other. `costs`: gradients of a map. `readouts`: whole phantoms read cell by cell, beside the
tables of detectability that the labels are made of.

Reference: Amanova et al. 2022, sections 2.2 and 3, figures 2, 3, 13 and 14.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from xai_lib import omig, stored_tables
from xai_lib.cdmam import observer, readout
from xai_lib.cdmam.detectability import probabilities
from xai_lib.cdmam.geometry import CELLS, CURVE_MM
from xai_lib.cdmam.locate import of_phantom
from xai_lib.cdmam.phantom import crop
from xai_lib.cdmam.simulate import MARGINS, SCENARIOS, simulate
from xai_lib.config import numpy_generator
from xai_lib.omig_upsampling import upsample
from xai_lib.studies.omig import scores as omig_scores
from xai_lib.studies.omig import stored_maps as cdmam_maps
from xai_lib.studies.omig.iqa_training import SECOND_SYSTEM
from xai_lib.studies.omig.study import PAPER, READER, Ensemble, Ready
from xai_lib.studies.omig.virtual import TESTED, phantoms, virtual

CHANGES = {
    "contrast": (0.5, 0.8, 1.0, 1.25, 2.0),
    "noise": (0.8, 0.9, 1.0, 1.1, 1.25),
    "grid": (0.5, 0.8, 1.0, 1.25, 2.0),
}
CHANGED = ("#1", "#3", "#4")  # scenarios
CS = (0.01, 0.1, 1.0, 10.0, 50.0, 200.0)
STEPS = (2, 5, 10, 20, 50)
REFERENCE_STEPS = 200
INTERVENED = 32  # virtual images of each setting
READ_OUT = ("#1", "#4", "OOD")
PAPER_MAP = (5000, 50, 10)  # N, L, M


@dataclass(frozen=True)
class Tables:
    """The frames; see the module."""

    curves: pd.DataFrame
    interventions: pd.DataFrame
    paths: pd.DataFrame
    members: pd.DataFrame
    costs: pd.DataFrame
    readouts: pd.DataFrame


def tables(ready: Ready, recompute: bool = False, progress: bool = True) -> Tables:
    """All results: shipped or cached ones if they were made by the same ensembles and settings."""
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "curves": lambda: curves(ready),
        "interventions": lambda: interventions(ready, progress),
        "paths": lambda: paths(ready, progress),
        "members": lambda: members(ready, progress),
        "costs": lambda: costs(ready),
        "readouts": lambda: readouts(ready, progress),
    }
    found = {
        name: stored_tables.table(f"cdmam_{name}", key(ready), make, ready.study.checkpoint, recompute)
        for name, make in makers.items()
    }
    return Tables(**found)


def key(ready: Ready) -> dict[str, Any]:
    """All that the tables depend on: the ensembles and the settings."""
    cards = {name: ensemble.card.get("sha256") for name, ensemble in ready.ensembles.items()}
    own = {name: getattr(ready.study, name) for name in ("tested", "few", "c", "steps", "paths", "virtual_images")}
    return {"ensembles": cards, "seed": ready.seed, "study": own}


# ---------------------------------------------------------------------------------------- curves, Fig. 2


def curves(ready: Ready) -> pd.DataFrame:
    """Predicted points of `tested` virtual images of every scenario, with one drawn label for each image."""
    low, high = readout.row_range()
    rows: list[tuple[Any, ...]] = []
    plates = phantoms(ready)
    for name, ensemble in ready.ensembles.items():
        margins = MARGINS if max(map(max, ensemble.course.stages)) else (0.0,)
        for scenario, setting in TESTED.items():
            if ensemble.course.inverted and scenario == SECOND_SYSTEM.name:
                continue
            rng = numpy_generator(ready.seed, "tested", name, scenario)
            images = virtual(ensemble, plates[scenario], setting, ready.study.tested, rng, margins)
            said, chance = ensemble.predict(images), probabilities(setting)
            exact = readout.curve_from_probabilities(chance)
            plain = readout.read_out(1000 * chance, 1000).automatic_um
            outside = ~((plain >= low) & (plain <= high))
            drawn = readout.draw_label(np.broadcast_to(chance, (len(images), *chance.shape)), 16, rng)
            for i in range(len(images)):
                parts = (said.mean[i], said.epistemic[i], said.aleatoric[i], exact, drawn[i])
                for k, diameter in enumerate(CURVE_MM):
                    values = [float(part[k]) for part in parts]
                    rows.append((name, scenario, margins[i % len(margins)], i, diameter, *values, bool(outside[k])))
    names = ["network", "scenario", "margin", "image", "diameter_mm", "predicted", "epistemic", "aleatoric"]
    return pd.DataFrame(rows, columns=[*names, "exact", "drawn", "extrapolated"])


# ---------------------------------------------------------------------------------------- interventions


def interventions(ready: Ready, progress: bool = True) -> pd.DataFrame:
    """Predicted and true midpoint under a factor on the discs, the noise or the grid, all else the same."""
    rows, count = [], min(INTERVENED, ready.study.tested)
    todo = list(itertools.product(ready.ensembles.items(), CHANGED, CHANGES.items()))
    for (network, ensemble), scenario, (what, factors) in tqdm(
        todo, "interventions", disable=not progress, leave=False
    ):
        setting = SCENARIOS[scenario]
        for factor in factors:
            contrast, noise, grid = (factor if what == name else 1.0 for name in CHANGES)
            rng = numpy_generator(ready.seed, "intervened", scenario)  # the same pixels and noise for every factor
            images = virtual(ensemble, ready.phantom, setting, count, rng, (0.0,), contrast, noise, grid)
            chance = probabilities(setting, contrast, noise)
            true = float(np.mean(readout.curve_from_probabilities(chance)))
            for i, midpoint in enumerate(ensemble.predict(images).midpoint.tolist()):
                rows.append((network, scenario, i, what, factor, midpoint, true))
    return pd.DataFrame(rows, columns=["network", "scenario", "image", "what", "factor", "predicted", "true"])


# ---------------------------------------------------------------------------------------- paths, Fig. 14


def paths(ready: Ready, progress: bool = True) -> pd.DataFrame:
    """OMIG of a few virtual images of scenario 1 over c (50 steps) and over L (c as in the maps)."""
    ensemble, study = ready.ensembles[PAPER], ready.study
    rng = numpy_generator(ready.seed, "paths")
    x = ensemble.normalise(virtual(ensemble, ready.phantom, SCENARIOS["#1"], study.paths, rng))
    quick = study.profile == "smoke"
    cs, counts, reference = ((1.0,), (2,), 4) if quick else (CS, STEPS, REFERENCE_STEPS)
    rows: list[dict[str, Any]] = []
    for c in tqdm(cs, "paths", disable=not progress, leave=False):
        best = walk(ensemble, x, c, reference)
        for steps in counts if c == study.c else counts[-1:]:
            found = walk(ensemble, x, c, steps)
            rows += compared(found, best, ensemble, {"scenario": "#1", "c": c, "steps": steps, "first_clipped": False})
    return pd.DataFrame(rows)


def walk(ensemble: Ensemble, x: Tensor, c: float, steps: int) -> omig.Omig:
    """Algorithm 1 for all images at once."""
    return omig.explain(ensemble.members, x, c, steps, fast=True)


def compared(found: omig.Omig, best: omig.Omig, ensemble: Ensemble, head: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per image: where the path leads, and what its map looks like beside other maps."""
    rows = []
    for i in range(len(found.change)):
        change = found.change[i].flatten()
        others = {"sensitivity": found.sensitivity, "clipped": found.clipped_sensitivity, "reference": best.change}
        alike = {
            f"with_{name}": float(torch.corrcoef(torch.stack([change, other[i].flatten()]))[0, 1])
            for name, other in others.items()
        }
        rms = float(change.square().mean().sqrt())
        ends = {"start": float(found.start[i]), "end": float(found.end[i])}
        lengths = {"rms": rms, "rms_grey": rms * ensemble.sd, "clipped_share": float(found.clipped_share[i])}
        rows.append({"network": ensemble.name, "image": i} | head | ends | lengths | alike)
    return rows


# ---------------------------------------------------------------------------------------- members, costs


def members(ready: Ready, progress: bool = True) -> pd.DataFrame:
    """Correlation of the smoothed maps of single members, inside the cells; scenario 1."""
    rows = []
    for name in (PAPER, READER):
        ensemble, study = ready.ensembles[name], ready.study
        phantom = cdmam_maps.view_of(ready, cdmam_maps.Plan(name, "#1", "plain", study.few, study.steps))
        image = simulate("#1", ready.seed, phantom)
        inside, maps = omig_scores.inside_cells(phantom) | (phantom.coverage > 0.5), []
        for member in ensemble.members:
            found = upsample(
                [member],
                image,
                ensemble.course.size,
                study.few,
                c=study.c,
                steps=study.steps,
                normalise=(ensemble.mean, ensemble.sd),
                sampling=ensemble.course.sampling,
                methods=("OMIG",),
                seed=ready.seed,
                progress=progress,
            )
            maps.append(np.nan_to_num(found.smoothed("OMIG", cdmam_maps.SMOOTH_PX)[inside]))
        for first, second in itertools.combinations(range(len(maps)), 2):
            correlation = float(np.corrcoef(maps[first], maps[second])[0, 1])
            rows.append((name, "#1", f"member {first}", f"member {second}", correlation))
    return pd.DataFrame(rows, columns=["network", "scenario", "first", "second", "correlation"])


def costs(ready: Ready) -> pd.DataFrame:
    """Gradients of a whole map by the paper's settings and by ours; seconds of ours, measured on a part of it."""
    ensemble, study = ready.ensembles[PAPER], ready.study
    phantom = cdmam_maps.view_of(ready, cdmam_maps.Plan(PAPER, "#1", "plain", 1, 1))
    image, part = simulate("#1", ready.seed, phantom), min(32, study.virtual_images)
    began = time.perf_counter()
    upsample(
        ensemble.members, image, ensemble.course.size, part, steps=study.steps, methods=("OMIG",),
        normalise=(ensemble.mean, ensemble.sd), seed=ready.seed, progress=False,
    )  # fmt: skip
    seconds = (time.perf_counter() - began) * study.virtual_images / part
    ours = (study.virtual_images, study.steps, len(ensemble.members))
    rows = [
        ("paper", *PAPER_MAP, int(np.prod(PAPER_MAP)), float("nan"), "not named"),
        (study.profile, *ours, int(np.prod(ours)), seconds, f"CPU, {torch.get_num_threads()} threads"),
    ]
    names = ["what", "virtual_images", "steps", "members", "gradients", "seconds", "device"]
    return pd.DataFrame(rows, columns=names)


# ---------------------------------------------------------------------------------------- the labels' check


def readouts(ready: Ready, progress: bool = True) -> pd.DataFrame:
    """Hits of the observer in whole images of `READ_OUT`, cell by cell, beside the chance that the tables give.

    Columns: scenario, row, column, images, corner and centre (hits), probability.
    """
    rows, phantom = [], crop(ready.phantom, 0.0)
    placement, count = of_phantom(phantom), 2 if ready.study.profile == "smoke" else 16
    for name in READ_OUT[:1] if ready.study.profile == "smoke" else READ_OUT:
        images = (simulate(name, seed, phantom) for seed in range(count))
        hits = observer.detect_many(images, placement, progress=progress)
        corner, centre, chance = hits.corner.sum(0), hits.centre.sum(0), probabilities(name)
        for i, j in np.argwhere(CELLS):
            rows.append((name, int(i), int(j), count, int(corner[i, j]), int(centre[i, j]), float(chance[i, j])))
    return pd.DataFrame(rows, columns=["scenario", "row", "column", "images", "corner", "centre", "probability"])


def chi_square(read: pd.DataFrame, scenario: str) -> tuple[float, int]:
    """Chi-square of the corner hits against the tables' chances, and the number of cells in it.

    Cells where fewer than one hit or one miss is expected are left out: the sum would not follow a chi-square there.
    """
    own = read[read["scenario"] == scenario]
    expected = own["images"] * own["probability"]
    used = (expected >= 1) & (own["images"] - expected >= 1)
    spread = expected * (1 - own["probability"])
    return float(((own["corner"] - expected) ** 2 / spread)[used].sum()), int(used.sum())
