"""Study 6, the maps: upsampled maps of whole phantoms, scored disc by disc and cell by cell, and as small pictures.

Usage::

    found = maps(ready)                                      # shipped, cached, or computed
    found.discs, found.cells, found.pictures["paper-like #1 plain OMIG"]

`plans` lists what is mapped: the paper-like ensemble in the scenarios of Figs. 4 to 7 and 12, the disc reader, and the
controls. Each is cached by itself, so that an interrupted computation goes on.

Reference: Amanova et al. 2022, section 3.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skimage.measure import block_reduce

from xai_lib import omig, stored_tables
from xai_lib.cdmam.detectability import probabilities
from xai_lib.cdmam.phantom import Phantom, crop, part, rotated, without_discs
from xai_lib.cdmam.simulate import simulate
from xai_lib.config import cache_dir
from xai_lib.omig_maps import Upsampled, neighbourhood
from xai_lib.omig_upsampling import METHODS, upsample
from xai_lib.stored_pictures import load_pictures, save_pictures, stored_pictures
from xai_lib.studies.omig import scores as omig_scores
from xai_lib.studies.omig.iqa_training import window
from xai_lib.studies.omig.study import BRIGHT, PAPER, READER, SHUFFLED, UNTRAINED, Ready
from xai_lib.studies.omig.virtual import shown_images

SMOOTH_PX = 7.0  # of maps, before they are looked at
BLOCK = 4  # pixels of the recording in a pixel of a picture


@dataclass(frozen=True)
class Plan:
    """One map: of which network, in which scenario and view ("plain", "rotated", "no discs"), and at what cost.

    `virtual_images` and `steps` are N and L; `occluded` virtual images are occluded pixel by pixel at discs. Pictures
    are kept of the methods in `pictured`.
    """

    network: str
    scenario: str
    view: str
    virtual_images: int
    steps: int
    occluded: int = 0
    pictured: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How a picture is found."""
        return f"{self.network} {self.scenario} {self.view}"


@dataclass(frozen=True, eq=False)
class Scored:
    """One map's discs, cells and pictures, as in `Maps`."""

    discs: pd.DataFrame
    cells: pd.DataFrame
    pictures: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Maps:
    """`discs` and `cells`: a row per disc or cell of every map and method; `pictures` (h, w) by map and method."""

    discs: pd.DataFrame
    cells: pd.DataFrame
    pictures: Mapping[str, NDArray[np.float32]]


def plans(ready: Ready) -> list[Plan]:
    """What is mapped at this profile; the first map has the paper's L at `lab`, and `smoke` has the first three."""
    study = ready.study
    n, few, steps = study.virtual_images, study.few, study.steps
    ours, both = ("OMIG",), ("OMIG", "sensitivity")
    wanted = [
        Plan(PAPER, "#1", "plain", n, study.map_steps, study.occluded, both),
        Plan(PAPER, "#4", "plain", n, steps, max(1, study.occluded // 4), ours),
        Plan(READER, "#1", "plain", n, steps, pictured=ours),
        Plan(READER, "#4", "plain", few, steps),
        Plan(PAPER, "#1", "rotated", few, steps, pictured=ours),
        Plan(PAPER, "#1", "no discs", few, steps),
        Plan(PAPER, "OOD", "plain", few, steps),
        Plan(BRIGHT, "#1", "plain", few, steps),
        Plan(SHUFFLED, "#1", "plain", few, steps),
        Plan(UNTRAINED, "#1", "plain", few, steps),
    ]
    return wanted[:3] if study.profile == "smoke" else wanted


def maps(ready: Ready, recompute: bool = False, progress: bool = True) -> Maps:
    """All maps: shipped or cached ones if they were made by the same networks and settings."""
    shipped = Path(ready.study.checkpoint) if ready.study.checkpoint else None
    todo, done = plans(ready), dict[str, Scored]()

    def every() -> list[Scored]:
        for plan in todo:
            if plan.name not in done:
                done[plan.name] = one(ready, plan, recompute, progress)
        return list(done.values())

    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "cdmam_discs": lambda: pd.concat([found.discs for found in every()], ignore_index=True),
        "cdmam_cells": lambda: pd.concat([found.cells for found in every()], ignore_index=True),
    }
    discs, cells = (stored_tables.table(n, key(ready), make, shipped, recompute) for n, make in makers.items())
    pictures = stored_pictures(
        "cdmam_pictures",
        key(ready),
        lambda: {name: picture for found in every() for name, picture in found.pictures.items()},
        shipped,
        recompute,
    )
    return Maps(discs, cells, pictures)


def key(ready: Ready) -> dict[str, Any]:
    """All that the maps depend on: the ensembles and the plans."""
    cards = {name: ensemble.card.get("sha256") for name, ensemble in ready.ensembles.items()}
    own = {"c": ready.study.c, "plans": [asdict(plan) for plan in plans(ready)]}
    return {"ensembles": cards, "seed": ready.seed, "study": own}


def one(ready: Ready, plan: Plan, recompute: bool = False, progress: bool = True) -> Scored:
    """Discs, cells and pictures of one map, cached in a folder of its own."""
    facts = {"plan": asdict(plan), "ensemble": ready.ensembles[plan.network].card.get("sha256"), "seed": ready.seed}
    digest = stored_tables.digest(facts | {"c": ready.study.c})
    folder = cache_dir() / "cdmam" / digest
    if recompute or not (folder / "key.json").is_file():
        found = compute(ready, plan, progress)
        folder.mkdir(parents=True, exist_ok=True)
        found.discs.to_csv(folder / "discs.csv", index=False)
        found.cells.to_csv(folder / "cells.csv", index=False)
        save_pictures(found.pictures, folder / "pictures.npz", digest)
        (folder / "key.json").write_text(json.dumps(facts, indent=1))  # last: a folder without it does not count
    discs, cells = (pd.read_csv(folder / f"{name}.csv") for name in ("discs", "cells"))
    return Scored(discs, cells, load_pictures(folder / "pictures.npz")[1])


def view_of(ready: Ready, plan: Plan) -> Phantom:
    """The phantom as the map's network sees it: without margin, its own region, turned or without discs."""
    plain = crop(ready.phantom, 0.0)
    region = part(plain, *window(plain, 0.0, ready.ensembles[plan.network].course.region))
    changes: dict[str, Callable[[Phantom], Phantom]] = {"rotated": rotated, "no discs": without_discs}
    return changes[plan.view](region) if plan.view in changes else region


def compute(ready: Ready, plan: Plan, progress: bool = True) -> Scored:
    """Discs, cells and pictures of one map."""
    ensemble, phantom = ready.ensembles[plan.network], view_of(ready, plan)
    image = simulate(plan.scenario, ready.seed, phantom, inverted=ensemble.course.inverted)
    polarity = 1 if ensemble.course.inverted else -1
    chance = probabilities(plan.scenario)
    found = upsampled(ready, plan, image, progress=progress)
    discs, cells, pictures = [], [], {}
    sources = [(method, found.total(method), found.visits) for method in found.methods]
    if plan.occluded:
        sparse = upsampled(ready, plan, image, measured(phantom), progress)
        sources.append(("occlusion", sparse.total("occlusion"), sparse.count("occlusion")))
    for method, total, visits in sources:
        head = {"network": plan.network, "scenario": plan.scenario, "view": plan.view, "method": method}
        of_discs = omig_scores.score_discs(total, visits, phantom, chance, SMOOTH_PX, polarity)
        discs.append(of_discs.assign(**head))
        if method != "occlusion":
            cells.append(omig_scores.score_cells(total, visits, phantom).assign(**head))
        if method in plan.pictured:
            pictures[f"{plan.name} {method}"] = picture(total, visits)
    return Scored(pd.concat(discs, ignore_index=True), pd.concat(cells, ignore_index=True), pictures)


def upsampled(
    ready: Ready,
    plan: Plan,
    image: NDArray[np.float32],
    mask: NDArray[np.bool_] | None = None,
    progress: bool = True,
) -> Upsampled:
    """Algorithm 2 on an image of a plan's view; with a mask, occlusion at its pixels instead of the gradients."""
    ensemble, study = ready.ensembles[plan.network], ready.study
    return upsample(
        ensemble.members,
        image,
        ensemble.course.size,
        plan.virtual_images if mask is None else plan.occluded,
        c=study.c,
        steps=plan.steps,
        normalise=(ensemble.mean, ensemble.sd),
        sampling=ensemble.course.sampling,
        methods=METHODS[:3] if mask is None else ("occlusion",),
        mask=mask,
        seed=ready.seed,
        progress=progress,
    )


def measured(phantom: Phantom) -> NDArray[np.bool_]:
    """Where occlusion is measured (H, W): at the discs, and as far around them as a disc's ring reaches."""
    wanted = np.zeros(phantom.shape, bool)
    inner, outer = omig_scores.RING_PX
    for y, x, radius in phantom.discs[["y", "x", "radius_px"]].to_numpy():
        box, dy, dx = omig_scores.around(y, x, radius + outer, phantom.shape)
        away = np.hypot(dy, dx) - radius
        wanted[box] |= (away < 0) | ((away > inner) & (away < outer))
    return wanted


def picture(total: NDArray[np.float64], visits: NDArray[np.int32]) -> NDArray[np.float32]:
    """Mean per visit of a neighbourhood, in blocks of 4 x 4 pixels: (H / 4, W / 4)."""
    blocks = [block_reduce(a, BLOCK, np.mean) for a in neighbourhood(total, visits, SMOOTH_PX)]
    return np.divide(blocks[0], blocks[1], out=np.full_like(blocks[0], np.nan), where=blocks[1] > 1e-4)


def virtual_maps(ready: Ready) -> dict[str, NDArray[np.float32]]:
    """Occlusion, sensitivity and OMIG of one virtual image of each of `SHOWN` (Fig. 3), by "<scenario> <method>"."""
    shipped = Path(ready.study.checkpoint) if ready.study.checkpoint else None

    def compute() -> dict[str, NDArray[np.float32]]:
        found = {}
        for name, image in shown_images(ready).items():
            ensemble = ready.ensembles[PAPER]
            x = ensemble.normalise(image[None])
            path = omig.explain(ensemble.members, x, ready.study.c, ready.study.map_steps, fast=True)
            flat = omig.occlusion(ensemble.members, x, batch=128)
            found[f"{name} occlusion"] = flat.view(image.shape).cpu().numpy()
            found[f"{name} sensitivity"] = path.sensitivity[0, 0].cpu().numpy()
            found[f"{name} OMIG"] = path.change[0, 0].cpu().numpy()
        return found

    return stored_pictures("cdmam_virtual", {**key(ready), "steps": ready.study.map_steps}, compute, shipped)
