"""Study 5, the results per image: searched masks, their measures, Fig. 2's scores, and fills against the truth.

Usage::

    found = tables(ready, runtime())              # shipped, cached, or computed
    found.masks[found.masks["variant"] == "SDR"]  # one row per test image

`scores`: the classifier on every test image, and after inpainting healthy tissue or the mass (Fig. 2). `holes`: the
masks of every search. `masks`: the measures of these, of CAM and saliency and of chance. `pixels`: holes filled in five
ways against the healthy twin.

Reference: Major et al. 2020, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor
from tqdm.auto import tqdm

from xai_lib import stored_tables
from xai_lib.attribution.cam import class_activation_map, resize_map
from xai_lib.attribution.engine import attribute
from xai_lib.config import Runtime, numpy_generator
from xai_lib.studies.deletion import measures
from xai_lib.studies.deletion.controls import FILLS, Healthy, mass_holes
from xai_lib.studies.deletion.inpainting_training import draw_holes
from xai_lib.studies.deletion.searches import (
    SDR,
    Mask,
    Scene,
    chosen,
    filled,
    holes,
    key,
    scene_at,
    score,
    score_after,
    unpack,
    with_mass,
)
from xai_lib.studies.deletion.study import Ready

PERCENTILES = (50, 75, 90)  # Tables 1 and 2


@dataclass(frozen=True)
class Tables:
    """The four frames; see the module."""

    scores: pd.DataFrame
    holes: pd.DataFrame
    masks: pd.DataFrame
    pixels: pd.DataFrame


def tables(ready: Ready, runtime: Runtime, recompute: bool = False, progress: bool = True) -> Tables:
    """All results: shipped or cached ones if they were made from the same networks, images and settings."""
    shipped = ready.study.checkpoint
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "scores": lambda: scores(ready, progress),
        "holes": lambda: holes(ready, progress),
    }
    found = {}
    for name, make in makers.items():
        found[name] = stored_tables.table(f"deletion_{name}", key(ready), make, shipped, recompute)
    makers = {
        "masks": lambda: masks(ready, found["holes"], progress),
        "pixels": lambda: pixels(ready, found["holes"], progress),
    }
    for name, make in makers.items():
        found[name] = stored_tables.table(f"deletion_{name}", key(ready), make, shipped, recompute)
    return Tables(**found)


# ---------------------------------------------------------------------------------------- Fig. 2


def scores(ready: Ready, progress: bool = True) -> pd.DataFrame:
    """The score of every test image, untouched, with holes in healthy tissue or in the mass, and of its twin."""
    study, rows = ready.study, []
    indices = [int(i) for label in (0, 1) for i in chosen(ready, "test", label)[: study.roc]]
    for index in tqdm(indices, desc="scores", disable=not progress, leave=False):
        scene = scene_at(ready, index)
        versions: list[tuple[str, int, Tensor]] = [("none", 0, scene.case.image)]
        for run in range(study.runs):
            rng = numpy_generator(ready.seed, "runs", scene.case.source, run)
            near = ndimage.binary_dilation(scene.truth, iterations=4) if scene.truth.any() else scene.truth
            random = draw_holes(torch.from_numpy(scene.breast)[None, None], study.inpainting, rng)[0, 0].numpy() == 0
            versions.append(("healthy", run, filled(ready, scene.case.image, random & scene.breast & ~near)))
            if scene.case.label:
                hole = mass_holes(scene.truth, study.inpainting.side, rng)
                versions.append(("mass", run, filled(ready, scene.case.image, hole)))
        if scene.case.label:
            versions.append(("twin", 0, scene.twin))
        logits = score(ready.classifier, torch.stack([image for _, _, image in versions]))
        facts = {"case": scene.case.source, "patient_id": scene.case.patient_id, "label": scene.case.label}
        rows += [
            facts | {"tissue": tissue, "run": run, "logit": float(z)}
            for (tissue, run, _), z in zip(versions, logits, strict=True)
        ]
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------- measures


def masks(ready: Ready, found: pd.DataFrame, progress: bool = True) -> pd.DataFrame:
    """The measures of every mask; see `measures.measure`."""
    rows: list[dict[str, Any]] = []
    for scene in tqdm(with_mass(ready, count=ready.study.tested), desc="masks", disable=not progress, leave=False):
        own = found[found["case"] == scene.case.source]
        shape = (scene.truth.shape[0], scene.truth.shape[1])
        searched = {row["variant"]: (unpack(row["hole"], shape), row) for _, row in own.iterrows()}
        ours = searched[SDR][0]
        twin, before = (float(z) for z in score(ready.classifier, torch.stack([scene.twin, scene.case.image])))
        others = compared(ready, scene) | chance(scene, int(ours.sum()), ready.seed)
        for name, hole in ({n: h for n, (h, _) in searched.items()} | others).items():
            row: Any = searched[name][1] if name in searched else {"score": before, "skipped": False}
            after = row["after"] if name in searched else score_after(ready, scene, hole)
            rng = numpy_generator(ready.seed, "shifts", scene.case.source, name)
            values = measures.measure(hole, scene.truth, scene.breast, scene.case.pixel_mm, rng=rng)
            facts = scene.facts | {"variant": name, "twin": twin, "score": float(row["score"])}
            facts |= {"after": float(after), "skipped": bool(row["skipped"]), "over": float(hole.mean())}
            overlap = measures.overlap(hole, ours) if name != SDR and hole.any() and ours.any() else np.nan
            rows.append(facts | values | {"O": overlap})
    return pd.DataFrame(rows)


def compared(ready: Ready, scene: Scene) -> dict[str, Mask]:
    """CAM (Zhou 2016) and saliency (Simonyan 2014), thresholded at percentiles of each map over the image."""
    image = scene.case.image[None].to(next(ready.classifier.parameters()).device)
    cam = resize_map(class_activation_map(ready.classifier, image)[1], (image.shape[2], image.shape[3]))[0]
    saliency = attribute("saliency", ready.classifier, image, 0).map[0]
    maps = {"CAM": cam.cpu().numpy(), "SAL": saliency.cpu().numpy()}
    return {f"{name} {p}": measures.threshold(values, p) for name, values in maps.items() for p in PERCENTILES}


def chance(scene: Scene, pixels: int, seed: int) -> dict[str, Mask]:
    """Discs as large as the result mask that know nothing of the classifier; none if that is empty."""
    if not pixels:
        return {}
    rng, image = numpy_generator(seed, "disc", scene.case.source), scene.case.image[0].numpy()
    return {
        "random disc": measures.random_disc(pixels, scene.breast, rng),
        "breast centre": measures.breast_centre(pixels, scene.breast),
        "brightest spot": measures.brightest_spot(pixels, image, scene.breast, 4.0),
    }


# ---------------------------------------------------------------------------------------- fills


def pixels(ready: Ready, found: pd.DataFrame, progress: bool = True) -> pd.DataFrame:
    """Holes over the mass, over healthy tissue and of the search, filled in five ways, against the healthy twin."""
    rows: list[dict[str, Any]] = []
    training = chosen(ready, "train", 0)[:300]
    device = next(ready.classifier.parameters()).device
    distance = Healthy(ready.classifier, torch.stack([ready.sets.cases[int(i)].image for i in training]).to(device))
    ours = found[found["variant"] == SDR].set_index("case")["hole"]
    for scene in tqdm(with_mass(ready, count=ready.study.tested), desc="fills", disable=not progress, leave=False):
        image, shape = scene.case.image, (scene.truth.shape[0], scene.truth.shape[1])
        places = {"mass": mass_holes(scene.truth, 8, numpy_generator(ready.seed, "fills", scene.case.source))}
        places["healthy"] = elsewhere(places["mass"], scene.breast, numpy_generator(ready.seed, "moved", scene.index))
        places[SDR] = unpack(ours[scene.case.source], shape)
        for name, hole in places.items():
            if not hole.any():
                continue
            versions = {"original": image, "twin": scene.twin, "inpainting": filled(ready, image, hole)}
            versions |= {how: filled(ready, image, hole, make) for how, make in FILLS.items()}
            stack = torch.stack(list(versions.values()))
            logits, far = score(ready.classifier, stack), distance(stack.to(device))
            errors = (stack[:, 0].numpy() - scene.twin[0].numpy())[:, hole]
            for i, how in enumerate(versions):
                values = {
                    "error": float(np.abs(errors[i]).mean()),
                    "logit": float(logits[i]),
                    "distance": float(far[i]),
                }
                rows.append(scene.facts | {"hole": name, "fill": how} | values)
    return pd.DataFrame(rows)


def elsewhere(hole: Mask, breast: Mask, rng: np.random.Generator) -> Mask:
    """The same hole at a random place in the breast, clear of the old one; empty if there is none."""
    places, height = np.argwhere(hole), hole.shape
    for centre in rng.permutation(np.argwhere(breast))[:200]:
        moved = places + (centre - places.mean(0).round().astype(int))
        if (
            (moved >= 0).all()
            and (moved < height).all()
            and breast[tuple(moved.T)].all()
            and not hole[tuple(moved.T)].any()
        ):
            out = np.zeros_like(hole)
            out[tuple(moved.T)] = True
            return out
    return np.zeros_like(hole)
