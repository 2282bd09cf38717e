"""Study 6, the claims: the figures that decide 6.1 to 6.9, from the tables of results.

Usage::

    verdicts = judge(errors, coverage, discs, pairs, fading, ranks, grid, slopes, paths, costs)

The rules are in ``data/claims.yml``. They are decided on the network that is trained as in the paper, in its maps of
scenario #1 and on the discs that the observer finds; the other networks and controls stand in the tables. A figure
whose scenario, view or method was not run is not defined, and so its claim not decidable here.
"""

import math
from dataclasses import replace

import pandas as pd

from xai_lib import claims
from xai_lib.claims import FAILS, HOLDS, UNDECIDED
from xai_lib.results import Estimate, Verdict
from xai_lib.studies.verdicts import find, negative, shifted, twice

NETWORK = "paper-like"
OURS = "OMIG"
OTHERS = ("sensitivity", "occlusion")  # 6.3
SCENARIOS = ("#1", "#2", "#3", "#4", "OOD")
FIRST, WORST = "#1", "#4"
ALL, SEEN = "all", "seen"
MAP = {"network": NETWORK, "view": "plain", "method": OURS}
DISCS = {"diameters": ALL, "chosen": SEEN}
C, STEPS = 1.0, 50  # 6.8: the paper's path
LIKE = 0.95  # 6.8: maps that correlate as much are the same
GRADIENTS = 5000 * 50 * 10  # 6.9: virtual images, steps and members of the paper's map


def judge(
    errors: pd.DataFrame,
    coverage: pd.DataFrame,
    discs: pd.DataFrame,
    pairs: pd.DataFrame,
    fading: pd.DataFrame,
    ranks: pd.DataFrame,
    grid: pd.DataFrame,
    slopes: pd.DataFrame,
    paths: pd.DataFrame,
    costs: pd.DataFrame,
) -> dict[str, Verdict]:
    """Verdicts on claims 6.1 to 6.9; the arguments are the fields of `summary.Summary`."""
    known = claims.load()
    path = main_path(paths)
    raises = {
        "signed score": find(discs, "signed", scenario=FIRST, **MAP, **DISCS),
        "fall of the midpoint": find(path, "fall", network=NETWORK, scenario=FIRST),
        "slope, contrast": find(slopes, "slope", network=NETWORK, scenario=FIRST, what="contrast"),
    }
    return {
        "6.1": far_highest(known["6.1"], errors),
        "6.2": covered(known["6.2"], coverage),
        "6.3": only_ours(known["6.3"], discs, pairs),
        "6.4": claims.decide(known["6.4"], raises),
        "6.5": weighs_more(known["6.5"], ranks),
        "6.6": fades(known["6.6"], discs, grid, fading),
        "6.7": claims.decide(known["6.7"], {"score, rotated": turned(discs)}),
        "6.8": settings_work(known["6.8"], discs, paths),
        "6.9": cost(known["6.9"], costs),
    }


def far_highest(claim: claims.Claim, errors: pd.DataFrame) -> Verdict:
    """6.1: error in scenario #4 over that of the others against 2; one below 2 but not below 1 decides nothing."""
    names = {f"#4 / {name}": name for name in SCENARIOS if name != WORST}
    ratios, relative = (
        {key: find(errors, column, network=NETWORK, scenario=name) for key, name in names.items()}
        for column in ("ratio", "ratio_relative")
    )
    parts = twice(claim, ratios).parts
    whys = {name: f"{part.why}; of the relative errors {relative[name]}" for name, part in parts.items()}
    return claims.combine(claim, {name: replace(part, why=whys[name]) for name, part in parts.items()})


def covered(claim: claims.Claim, coverage: pd.DataFrame) -> Verdict:
    """6.2: coverage of the drawn labels, as labels that are read from images are; that of the exact ones beside."""
    drawn, exact = (
        {name: find(coverage, column, network=NETWORK, scenario=name) for name in SCENARIOS}
        for column in ("drawn", "exact")
    )
    parts = claims.decide(claim, drawn).parts
    return claims.combine(
        claim, {name: replace(part, why=f"{part.why}; of exact labels {exact[name]}") for name, part in parts.items()}
    )


def only_ours(claim: claims.Claim, discs: pd.DataFrame, pairs: pd.DataFrame) -> Verdict:
    """6.3: a difference fails only where the other map's AUC excludes 0.5 from above; OMIG's own decides nothing then.

    So OMIG's AUC below 0.5 leaves the claim open: there is no map that shows more.
    """
    where = {key: value for key, value in MAP.items() if key != "method"} | {"scenario": FIRST} | DISCS
    areas = {name: find(discs, "auc", method=name, **where) for name in (OURS, *OTHERS)}
    ours = {"AUC - 0.5, OMIG": shifted(areas[OURS], -0.5)}
    ours |= {f"AUC, OMIG - {name}": find(pairs, "auc", first=OURS, second=name, **where) for name in OTHERS}
    parts = dict(claims.decide(claim, ours).parts)
    own = parts["AUC - 0.5, OMIG"]
    if own.verdict == FAILS:
        parts["AUC - 0.5, OMIG"] = replace(own, verdict=UNDECIDED)
    for name in OTHERS:
        key = f"AUC, OMIG - {name}"
        low, gain = areas[name].low, ours[key].low
        shows = low is not None and low > 0.5
        outcome = parts[key].verdict
        if outcome != HOLDS and gain is not None:
            outcome = FAILS if shows else UNDECIDED
        said = f"{parts[key].why}; AUC of {name} {areas[name]}"
        parts[key] = replace(parts[key], verdict=outcome, why=said)
    return claims.combine(claim, parts)


def weighs_more(claim: claims.Claim, ranks: pd.DataFrame) -> Verdict:
    """6.5: fails only where both correlations lie below 0; where they disagree, nothing is decided."""
    columns = {"total weight": "total", "mean per pixel": "mean"}
    ours = {name: find(ranks, column, scenario=FIRST, chosen=SEEN, **MAP) for name, column in columns.items()}
    verdict = claims.decide(claim, ours)
    outcomes = {part.verdict for part in verdict.parts.values()}
    if verdict.verdict == FAILS and outcomes != {FAILS}:
        return replace(verdict, verdict=UNDECIDED)
    return verdict


def fades(claim: claims.Claim, discs: pd.DataFrame, grid: pd.DataFrame, fading: pd.DataFrame) -> Verdict:
    """6.6: the grid of #4 lies on either side of 0, its discs do not; only discs above 0 make the claim fail."""
    of_grid = find(grid, "score", scenario=WORST, **MAP)
    of_discs = find(discs, "score", scenario=WORST, **MAP, **DISCS)
    fall = find(fading, "difference", network=NETWORK, method=OURS, what="discs", second=WORST)
    ours = {"grid in #4, size": towards(of_grid, of_grid), "discs in #4": of_discs, "discs, #1 - #4": fall}
    parts = dict(claims.decide(claim, ours).parts)
    absent = {HOLDS: FAILS, FAILS: UNDECIDED, UNDECIDED: HOLDS}  # from "above 0" to "not to be seen"
    for name, part in parts.items():
        known = part.ours is not None and part.ours.low is not None and part.ours.low != part.ours.high
        if name == "discs in #4" and known:
            parts[name] = replace(part, verdict=absent[part.verdict])
        elif part.verdict == FAILS:
            parts[name] = replace(part, verdict=UNDECIDED)
    return claims.combine(claim, parts)


def turned(discs: pd.DataFrame) -> Estimate:
    """6.7: score of the discs in rotated images, times the sign that it has in unrotated ones.

    Not defined where the score of the unrotated ones does not exclude 0: it then has no side.
    """
    plain, rotated = (
        find(discs, "score", scenario=FIRST, **{**MAP, "view": view}, **DISCS) for view in ("plain", "rotated")
    )
    if plain.low is None or plain.high is None or plain.low <= 0 <= plain.high:
        return Estimate(math.nan, method="unrotated images have no side")
    return towards(rotated, plain)


def settings_work(claim: claims.Claim, discs: pd.DataFrame, paths: pd.DataFrame) -> Verdict:
    """6.8: the discs at c = 1, the steps, and the limit of a small c, as printed: the first step is not clipped."""
    there = {"network": NETWORK, "scenario": FIRST}
    path = main_path(paths, STEPS)
    own = printed(paths)
    small = own[own["c"] == own["c"].min()] if len(own) and own["c"].min() < C else own.iloc[:0]
    small = small[small["steps"] == small["steps"].max()]
    ours = {
        "AUC of the discs": find(discs, "auc", scenario=FIRST, **MAP, **DISCS),
        "correlation, L = 50 and 200": find(path, "with_reference", **there),
        "correlation with sensitivity, smallest c": find(small, "with_sensitivity", **there),
        "its rise from c = 1": find(small, "rise", **there),
    }
    levels = dict(zip(ours, (0.5, LIKE, LIKE, 0.0), strict=True))
    verdict = claims.decide(claim, ours, levels)
    clipped = find(small, "with_clipped", **there)
    smallest = f"{small['c'].iloc[0]:g}" if len(small) else "none"
    return replace(verdict, why=f"{verdict.why}. With the clipped sensitivity, c = {smallest}: {clipped}")


def cost(claim: claims.Claim, costs: pd.DataFrame) -> Verdict:
    """6.9: always not decidable here; gradients of the paper's settings beside those of ours."""
    counted = {"gradients": Estimate(float(GRADIENTS), method="counted")}
    said = [
        f"{row['what']}: {row['gradients']:.0f} gradients"
        + (f", {row['seconds']:.0f} s on {row['device']}" if not math.isnan(row["seconds"]) else ", not run")
        for row in costs.to_dict("records")
    ]
    verdict = claims.decide(claim, counted)
    return replace(verdict, verdict=UNDECIDED, why="another machine than the paper's. " + "; ".join(said))


def printed(paths: pd.DataFrame) -> pd.DataFrame:
    """The rows of NETWORK in scenario #1 by the algorithm as printed, its first gradient not clipped."""
    if not len(paths):
        return pd.DataFrame(columns=["c", "steps"])
    there = (paths["network"] == NETWORK) & (paths["scenario"] == FIRST) & ~paths["first_clipped"].astype(bool)
    return paths[there]


def main_path(paths: pd.DataFrame, steps: int | None = None) -> pd.DataFrame:
    """The printed path at c = 1 with so many steps; without `steps` 50, or as many as were run at most."""
    own = printed(paths)
    own = own[own["c"] == C]
    if steps is None and len(own):
        steps = STEPS if (own["steps"] == STEPS).any() else int(own["steps"].max())
    return own[own["steps"] == steps]


def towards(e: Estimate, side: Estimate) -> Estimate:
    """An estimate times the sign of another."""
    return negative(e) if side.value < 0 else e
