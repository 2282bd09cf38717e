"""Study 1, the measuring: scores of both networks, and a row for every map, its relatives and its controls.

Usage::

    tables = build_tables(ready, runtime())               # shipped, cached, or computed (an hour or more)
    maps, pairs = measure(ready.first.model, ready.sets["centred"], [3, 7], Setup())

The maps themselves are never kept. Maps of the sets "centred", "twin" and "shifted" are measured (see `study`);
"untrained" are the maps of a network with random weights on the centred patches. Images are rounded to 8 bit, as in
training.

Reference: Sam-Millan et al. 2023, sections 3.2.4 and 4.1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from tqdm.auto import tqdm

from xai_lib import stored_tables, training
from xai_lib.attribution import measures, sanity
from xai_lib.attribution.core import completeness_gap
from xai_lib.boxes import SEGMENT_METHODS, dilate
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms.thesis_methods import MALIGNANT, THESIS, Setup, method_maps
from xai_lib.studies.patches.study import CHEAP, Ready, choose

SETS = ("centred", "twin", "shifted", "untrained")
COMPLETE = ("integrated_gradients", "deeplift")  # their maps sum to f(x) - f(baseline)
CHUNK = 2  # patches that are measured and kept together: all that a kill can cost
SMOOTH = 1 / 56  # blur before the peak is looked for, as a share of the patch's side; none for maps of segments
VERSION = 1  # of the measures; part of every table's key


@dataclass(frozen=True)
class Tables:
    """`scores`: test patch x set x network; `maps`: patch x set x method; `pairs`: also x second method; `sanity`."""

    scores: pd.DataFrame
    maps: pd.DataFrame
    pairs: pd.DataFrame
    sanity: pd.DataFrame


def read(dataset: CaseDataset, indices: Iterable[int]) -> tuple[Tensor, NDArray[np.bool_]]:
    """Images (N, 1, S, S) as the network was trained on them, rounded to 8 bit, and masks (N, S, S)."""
    found = [dataset[int(i)] for i in indices]
    images = torch.stack([(case.image * 255).round() / 255 for case in found])
    return images, np.stack([np.asarray(case.mask, bool) for case in found])


def scored(ready: Ready, runtime: Runtime, progress: bool = True) -> pd.DataFrame:
    """Logits of every network on the test patches.

    Twins are those of malignant patches (the others are their own twins), benign masses stand in normal patches.

    Returns:
        Columns network, set, index, patient_id, label and kind (of the centred patch), logit_0, logit_1, score.
    """
    table = ready.sets["centred"].table.iloc[ready.test].assign(index=ready.test)
    rows = []
    for name, dataset in ready.sets.items():
        wanted = {"twin": "malignant", "benign": "normal"}.get(name)
        part = table if wanted is None else table[table["kind"] == wanted]
        if part.empty:
            continue
        images = training.stack(dataset.subset(part["index"].to_numpy()), ready.study.patches.size, progress)
        for network, trained in ready.networks.items():
            logits = training.predict(trained.model, images, replace(runtime, bf16=False))
            frame = part[["index", "patient_id", "label", "kind"]].assign(network=network, set=name)
            rows.append(frame.assign(logit_0=logits[:, 0], logit_1=logits[:, 1], score=training.scores(logits)))
    return pd.concat(rows, ignore_index=True)


def measure(
    model: nn.Module,
    dataset: CaseDataset,
    indices: Sequence[int],
    setup: Setup,
    names: Sequence[str] = THESIS,
    middle: CaseDataset | None = None,
    precision: str = "float32",
    maps_of: Callable[..., Mapping[str, Tensor]] = method_maps,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Maps of some patches for the class malignant, measured; the maps themselves are not kept.

    Where a measure asks for mass, it is the positive part of the map, what argues for malignant (Saliency has no sign).

    Args:
        model: a network with two outputs.
        dataset: patches.
        indices: which ones; all are in memory at once.
        setup: parameters of the methods.
        names: methods.
        middle: the centred patches of the same breasts; their masks say where the middle's lesion is. None: `dataset`.
        precision: of occlusion, LIME and Kernel SHAP.
        maps_of: makes the maps.

    Returns:
        Maps: columns index, method, score (log odds of malignant), and per map, NaN where it is not defined:
        `area`, the lesion's share of the patch, and `top_lesion`, `energy_lesion`, the share of the top decile and of
        the mass inside it (where the lesion lies, or in a twin would lie); `top_middle`, `energy_middle`, the same for
        the lesion of the centred patch; `gini`, `entropy`, `effective_area`; `central`, the mass in the central quarter
        of the patch; `peak_centre`, `peak_lesion`, pixels from the peak to the patch's centre and to the lesion's;
        `gap`, incompleteness of those that promise completeness.
        Pairs: index, first, second, `rank_correlation`, `absolute_rank_correlation`, `top_overlap`.
    """
    images, own = read(dataset, indices)
    middles = own if middle is None else read(middle, indices)[1]
    lesions = np.where(own.any((1, 2), keepdims=True), own, middles)
    images = images.to(next(model.parameters()).device)
    with torch.no_grad():
        logits = model(images).double().cpu()
        empty = model(torch.full_like(images[:1], setup.baseline)).double().cpu()[0, MALIGNANT]
    maps = maps_of(model, images, names, setup, precision=precision, progress=False)
    rows = []
    for name, signed in maps.items():
        frame = pd.DataFrame({"index": np.asarray(indices), "method": name, "score": logits[:, 1] - logits[:, 0]})
        frame["gap"] = np.nan
        if name in COMPLETE:
            known = zip(signed.double().sum((1, 2)), logits[:, MALIGNANT], strict=True)
            frame["gap"] = [completeness_gap(total[None], (f - empty)[None], f) for total, f in known]
        smooth = 0.0 if name in SEGMENT_METHODS else SMOOTH * images.shape[-1]
        rows.append(frame.assign(**_measured(signed.clamp(min=0).double().numpy(), lesions, middles, smooth)))
    pairs = pd.DataFrame()
    if len(maps) > 1:
        pairs = measures.agreement(maps)
        pairs.insert(0, "index", np.asarray(indices)[pairs.pop("image")])
    return pd.concat(rows, ignore_index=True), pairs


def displayed(name: str, signed: Tensor) -> NDArray[np.float64]:
    """A map (S, S) as the thesis shows it: the positive part, dilated 9x9 but for LIME and SHAP (3.2.4)."""
    return dilate(signed.clamp(min=0), 1 if name in SEGMENT_METHODS else 9)


def _measured(
    values: NDArray[np.float64], lesions: NDArray[np.bool_], middles: NDArray[np.bool_], smooth: float
) -> dict[str, Any]:
    """The measures of one method's maps (N, S, S); see `measure`."""
    size = values.shape[-1]
    quarter = np.zeros((size, size), bool)
    quarter[size // 4 : size - size // 4, size // 4 : size - size // 4] = True
    peaks = measures.peak(values, smooth)
    centroids = np.array([ndimage.center_of_mass(mask) if mask.any() else (np.nan, np.nan) for mask in lesions])
    spread = measures.dispersion(values).drop(columns="image")
    return {
        "area": np.where(lesions.any((1, 2)), lesions.mean((1, 2)), np.nan),
        "top_lesion": _inside(measures.top_inside, values, lesions),
        "energy_lesion": _inside(measures.mass_inside, values, lesions),
        "top_middle": _inside(measures.top_inside, values, middles),
        "energy_middle": _inside(measures.mass_inside, values, middles),
        **{name: spread[name].to_numpy() for name in ("gini", "entropy", "effective_area")},
        "central": measures.mass_inside(values, quarter),
        "peak_centre": np.hypot(*(peaks - (size - 1) / 2).T),
        "peak_lesion": np.hypot(*(peaks - centroids).T),
    }


def _inside(
    share: Callable[..., NDArray[np.float64]], values: NDArray[np.float64], masks: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """`share` of the maps inside their masks, NaN where a mask is empty."""
    found, known = np.full(len(values), np.nan), masks.any((1, 2))
    if known.any():
        found[known] = share(values[known], masks[known])
    return found


# ------------------------------------------------------------------------------------------- the tables


def randomised(ready: Ready, indices: Iterable[int], progress: bool = True) -> pd.DataFrame:
    """Cascading randomisation of the explained network, block after block; a row per method, block and image."""
    model, setup = ready.first.model, ready.study.setup
    images = read(ready.sets["centred"], indices)[0].to(next(model.parameters()).device)
    parts = [name for name, part in model.features.named_children() if list(part.parameters())]
    blocks = ["head", *(f"features.{name}" for name in reversed(parts))]
    rows = []
    for name in ready.study.sane:

        def explain(network: nn.Module, x: Tensor, target: Tensor, name: str = name) -> Tensor:
            return method_maps(network, x, [name], setup, target, progress=False)[name]  # type: ignore[arg-type]

        found = sanity.cascading_randomisation(
            explain, model, images, MALIGNANT, ready.seed, layers=blocks, how="permute", progress=progress
        )
        rows.append(found.assign(method=name, layer=found["layer"].replace("", "trained")))
    return pd.concat(rows, ignore_index=True)


def build_tables(
    ready: Ready,
    runtime: Runtime,
    recompute: bool = False,
    ship: str | Path | None = None,
    progress: bool = True,
) -> Tables:
    """All tables of the study: shipped with the networks, from the cache, or computed.

    The maps are measured a few patches at a time, and each part is cached: after a kill, call it again.

    Args:
        ready: from `prepare`.
        runtime: device.
        recompute: compute everything anew.
        ship: folder to write the tables and their keys to.
        progress: show a bar.
    """
    study, centred = ready.study, ready.sets["centred"]
    shas = {name: trained.card["sha256"] for name, trained in ready.networks.items()}
    base = {"version": VERSION, "data": centred.fingerprint, "parts": list(study.patches.parts), "seed": ready.seed}
    chosen = choose(centred, ready.test, study.malignant, study.others, ready.seed)
    explained = {"network": next(iter(shas.values())), "setup": asdict(study.setup), "precision": study.precision}
    keys: dict[str, dict[str, Any]] = {"patch_scores": {**base, "networks": shas, "shift": study.shift}}
    keys["patch_maps"] = {**base, **explained, "shift": study.shift, "indices": chosen.tolist(), "cheap": CHEAP}
    keys["patch_pairs"] = keys["patch_maps"]
    sick = chosen[centred.labels[chosen] == 1]
    sane = (sick if len(sick) else chosen)[: study.sanity]
    keys["patch_sanity"] = {**base, **explained, "indices": sane.tolist(), "methods": study.sane}
    both = cache(lambda: all_maps(ready, chosen, keys["patch_maps"], recompute, progress))
    made: dict[str, Callable[[], pd.DataFrame]] = {
        "patch_scores": lambda: scored(ready, runtime, progress),
        "patch_maps": lambda: both()[0],
        "patch_pairs": lambda: both()[1],
        "patch_sanity": lambda: randomised(ready, sane, progress),
    }
    tables = {
        name: stored_tables.table(name, keys[name], compute, study.checkpoint, recompute)
        for name, compute in made.items()
    }
    for name, table in tables.items() if ship else ():
        stored_tables.save(table, name, keys[name], str(ship))
    return Tables(*tables.values())


def all_maps(
    ready: Ready, chosen: NDArray[np.int64], key: Mapping[str, Any], recompute: bool = False, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Maps and pairs of the chosen patches in all sets that there are, in parts that are cached under `key`.

    See `measure`; with the columns set, and patient_id, label and kind of the centred patch.
    """
    study, centred = ready.study, ready.sets["centred"]
    sick = chosen[centred.labels[chosen] == 1]
    device = next(ready.first.model.parameters()).device
    untrained = mn.fresh(study.patches.architectures[0], None, ready.seed).eval().to(device)
    jobs = [
        (name, part[start : start + CHUNK].tolist())
        for name, part in (("centred", chosen), ("twin", sick), ("shifted", sick), ("untrained", chosen))
        if name == "untrained" or name in ready.sets
        for start in range(0, len(part), CHUNK)
    ]
    found: dict[str, list[pd.DataFrame]] = {"maps": [], "pairs": []}
    for name, part in tqdm(jobs, desc="maps", unit="parts", disable=not progress, leave=False):
        both = cache(partial(_part, ready, untrained, name, part))
        own = {**key, "set": name, "indices": part}
        for k, (kind, frames) in enumerate(found.items()):
            table = stored_tables.table(f"patch_{kind}", own, partial(_nth, both, k), recompute=recompute)
            frames.append(table.assign(set=name))
    labels = centred.table[["patient_id", "label", "kind"]]
    maps, pairs = (pd.concat(frames, ignore_index=True).join(labels, on="index") for frames in found.values())
    return maps, pairs


def _nth(made: Callable[[], tuple[pd.DataFrame, pd.DataFrame]], k: int) -> pd.DataFrame:
    return made()[k]


def _part(ready: Ready, untrained: nn.Module, name: str, part: list[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`measure` for one set."""
    study, bare = ready.study, name == "untrained"
    dataset = ready.sets["centred" if bare else name]
    model, names = (untrained, CHEAP) if bare else (ready.first.model, THESIS)
    return measure(model, dataset, part, study.setup, names, ready.sets["centred"], study.precision)
