"""Hand-made tables of study 6 in the form that the study writes them."""

import numpy as np
import pandas as pd

from xai_lib.cdmam.geometry import CURVE_MM
from xai_lib.cdmam.geometry import discs as places

NETWORKS = ("paper-like", "disc reader", "untrained")
SCENARIOS = ("#1", "#2", "#3", "#4", "OOD")
METHODS = ("OMIG", "sensitivity", "clipped sensitivity", "occlusion")


def curves(network="paper-like", scenario="#1", error=(0.1,), exact=1.0, total=1.0, drawn=None, extrapolated=False):
    """One point per image: predicted is exact + error."""
    error = np.asarray(error, float)
    sd = {"epistemic": 0.6 * total, "aleatoric": 0.8 * total}
    facts = {"network": network, "scenario": scenario, "margin": 0.0, "image": range(len(error)), "diameter_mm": 1.0}
    facts |= {"predicted": exact + error, "exact": exact, "drawn": exact if drawn is None else drawn}
    return pd.DataFrame(facts | sd | {"extrapolated": extrapolated})


def disc_rows(gap, network="paper-like", scenario="#1", view="plain", method="OMIG", probability=1.0, **columns):
    """One disc per cell of the first row; `gap` is disc minus ring, the sd is 1."""
    gap = np.asarray(gap, float)
    head = {"network": network, "scenario": scenario, "view": view, "method": method, "row": 0}
    head |= {"column": range(len(gap)), "place": "centre", "diameter_mm": 2.0, "thickness_um": 1.0}
    head |= {"probability": probability, "polarity": -1, "disc": gap + 5.0, "ring": 5.0, "sd": 1.0}
    frame = pd.DataFrame(head | {"disc_visits": 10, "ring_visits": 90, "auc": 0.6, "auc_smooth": 0.8})
    return frame.assign(total=10.0 * gap).assign(**columns)


def cell_rows(gap, network="paper-like", scenario="#1", view="plain", method="OMIG", **columns):
    gap = np.asarray(gap, float)
    head = {"network": network, "scenario": scenario, "view": view, "method": method, "row": 0}
    head |= {"column": range(len(gap)), "grid": gap, "background": 0.0, "sd": 1.0}
    return pd.DataFrame(head | {"grid_visits": 10, "background_visits": 90}).assign(**columns)


def intervention(network, scenario, what, predicted, true, images=4, seed=0):
    """Midpoints that follow the factor with the exponents `predicted` and `true`."""
    rng = np.random.default_rng(seed)
    factor, image = np.meshgrid([0.5, 0.8, 1.0, 1.25, 2.0], range(images))
    factor, image = factor.ravel(), image.ravel()
    noise = rng.normal(0, 0.01, factor.size)
    head = {"network": network, "scenario": scenario, "image": image, "what": what, "factor": factor}
    return pd.DataFrame(head | {"predicted": 0.27 * factor**predicted * np.exp(noise), "true": 0.27 * factor**true})


def path(c, steps, sensitivity, reference, scenario="#1", images=8, fall=0.01, network="paper-like", seed=0, **columns):
    rng = np.random.default_rng(seed)
    jitter = 0.01 * (rng.random(images) - 0.5)
    start = 0.27 + jitter
    head = {"network": network, "scenario": scenario, "image": range(images), "c": c, "steps": steps}
    head |= {"first_clipped": False, "start": start, "end": start - fall * (1 + 20 * jitter), "rms": 0.01}
    head |= {"rms_grey": 1.0, "with_sensitivity": sensitivity + jitter, "with_clipped": 0.95 + jitter}
    return pd.DataFrame(head | {"with_reference": reference + jitter, "clipped_share": 0.025}).assign(**columns)


def everything(seed=0, images=12):
    """All tables: a noise meter that shows red discs, as in the paper, with which most of the claims hold."""
    rng = np.random.default_rng(seed)
    exact = dict(zip(SCENARIOS, (0.271, 0.582, 0.932, 1.183, 0.353), strict=True))
    parts = []
    for network in NETWORKS:
        for scenario, level in exact.items():
            size = {"#4": 0.2, "OOD": 0.02}.get(scenario, 0.02) * (1 if network != "untrained" else 5)
            for k, diameter in enumerate(CURVE_MM):
                one = curves(network, scenario, size * (1 + 0.2 * rng.random(images)), level, 0.05)
                drawn = level * (1 + 0.05 * rng.normal(size=images))
                parts.append(one.assign(diameter_mm=diameter, drawn=drawn, extrapolated=k == 0))
    return {
        "curves": pd.concat(parts, ignore_index=True),
        "discs": pd.concat([all_discs(*of, rng) for of in maps()], ignore_index=True),
        "cells": pd.concat([all_cells(*of, rng) for of in maps()], ignore_index=True),
        "interventions": pd.concat(
            intervention(network, scenario, what, slope * true, true, seed=k)
            for k, (network, slope) in enumerate({"paper-like": 0.01, "disc reader": 0.8, "untrained": 0.0}.items())
            for scenario in ("#1", "#4")
            for what, true in {"contrast": -1.0, "noise": 1.0, "grid": 0.0}.items()
        ),
        "paths": pd.concat(
            [path(c, 50, s, 0.99, seed=7) for c, s in {0.01: 0.97, 1.0: 0.9, 10.0: 0.8}.items()]
            + [path(1.0, steps, 0.9, r) for steps, r in {2: 0.9, 10: 0.98, 200: 1.0}.items()]
            + [path(1.0, 50, 0.8, 0.99, first_clipped=True), path(1.0, 50, 0.9, 0.99, "#4")]
        ),
        "members": pd.DataFrame(
            [("paper-like", "#1", a, b, 0.5 + 0.1 * (a + b)) for a in range(3) for b in range(a)],
            columns=["network", "scenario", "first", "second", "correlation"],
        ),
        "costs": costs(),
    }


def maps():
    """network, scenario, view, method, score of discs and of the grid."""
    views = [("#1", "plain", 1.0), ("#1", "rotated", 1.0), ("#1", "no discs", 0.0), ("#4", "plain", 0.0)]
    for network, sign in {"paper-like": 1.0, "disc reader": -2.0}.items():
        for scenario, view, share in views:
            for method in METHODS:
                size = {"OMIG": 1.0, "occlusion": 0.0}.get(method, 0.5) * share * sign
                yield network, scenario, view, method, size, -0.5 * sign


def all_discs(network, scenario, view, method, size, _, rng):
    there = places()
    visits = np.maximum(1, (60 * there["diameter_mm"] ** 2).astype(int))
    gap = 0.5 * size + rng.normal(size=len(there)) / np.sqrt(visits)
    chance = np.where(there["thickness_um"] / there["diameter_mm"] ** -1 > 0.1, 0.99, 0.4)
    auc = np.clip(0.5 + 0.1 * size + 0.05 * rng.normal(size=len(there)), 0, 1)
    head = {"network": network, "scenario": scenario, "view": view, "method": method}
    facts = there[["row", "column", "place", "diameter_mm", "thickness_um"]].assign(**head, probability=chance)
    return facts.assign(
        polarity=-1, disc=gap, ring=0.0, sd=1.0, disc_visits=visits, ring_visits=900, total=visits * gap,
        auc=auc, auc_smooth=np.clip(2 * auc - 0.5, 0, 1),
    )  # fmt: skip


def all_cells(network, scenario, view, method, _, size, rng):
    there = places().query("place == 'centre'")[["row", "column"]]
    head = {"network": network, "scenario": scenario, "view": view, "method": method}
    return there.assign(
        **head, grid=size + 0.1 * rng.normal(size=len(there)), background=0.0, sd=1.0, grid_visits=100,
        background_visits=900,
    )  # fmt: skip


def costs():
    rows = [("paper", 5000, 50, 10, 2_500_000, np.nan, "not named"), ("lab", 256, 10, 3, 7680, 40.0, "2 cores")]
    return pd.DataFrame(rows, columns=["what", "virtual_images", "steps", "members", "gradients", "seconds", "device"])


def smoke():
    """One image per scenario, one map, no paths, no rotated view, no members."""
    whole = everything(images=1)
    discs, cells = (
        whole[name].query("network == 'paper-like' and scenario == '#1' and view == 'plain' and method == 'OMIG'")
        for name in ("discs", "cells")
    )
    changed = whole["interventions"].query("network == 'paper-like' and image == 0")
    nothing = pd.DataFrame()
    return whole | {"discs": discs, "cells": cells, "interventions": changed, "paths": nothing, "members": nothing}
