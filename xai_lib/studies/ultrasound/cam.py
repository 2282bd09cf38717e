"""Study 3, the maps: class activation maps of a trained network, their extreme points, and what these hit.

Usage::

    areas = region_maps(dataset)                                  # the paper's regions, one array per image
    logits, maps = explain(model, images, runtime)                # signed class activation maps, one per image
    frame = points(runs, areas, dataset)                          # one row per test image, run and map: what was hit

Tables, intervals and verdicts are in `pointing_tables`.

Reference: Byra et al. 2022, "Evaluations".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from xai_lib import localization, models, training
from xai_lib.attribution import alignment, cam
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.studies.ultrasound.runs import Run

OFFSET_IMAGES = 12  # as many as the offset check needs
UNTRAINED = ("random_network", "linear_head")  # control networks in `Run.extras`, the same at every epoch
CAMERAS_SCALES = (1, 10 / 7, 2)  # of the image's size: 224, 320 and 448 at 224
OTHER_CELLS = ("layer_cam", "cameras", "random_network")  # maps whose cells the measured offset says nothing about


def region_maps(dataset: CaseDataset, progress: bool = True, **options: Any) -> list[NDArray[np.uint8]]:
    """The regions (H, W) of every image at its own resolution; `options` go to `localization.regions`.

    Raises:
        ValueError: a case has no mask, or its regions cannot be drawn; the message names it.
    """
    out = []
    for i in tqdm(range(len(dataset)), desc="regions", disable=not progress, leave=False):
        case = dataset[i]
        if case.mask is None:
            raise ValueError(f"{case.source}: it has no mask, so there are no regions")
        try:
            out.append(localization.regions(case.mask.numpy(), case.pixel_mm, **options))
        except ValueError as error:
            raise ValueError(f"{case.source}: {error}") from error
    return out


def explain(
    model: models.Classifier, images: training.Stack, runtime: Runtime, batch_size: int = 32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N,) and signed class activation maps (N, h, w), in float32."""
    model.eval()
    parts = [cam.class_activation_map(model, x) for x, _ in images.batches(batch_size, runtime)]
    return tuple(torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))  # type: ignore[return-value]


def relative_points(maps: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Centres of the largest and smallest cell of maps (N, h, w), as shares of height and width: (N, 2, 2)."""
    out = []
    for m in np.asarray(maps):
        found = localization.extremes(m, m.shape)
        out.append([(np.array(p) + 0.5) / m.shape for p in (found.maximum, found.minimum)])
    return np.array(out)


def first_points(maps: NDArray[Any] | Tensor, size: int = 224) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Naive reading: first extreme pixel of each map resized to `size`, (N, 2, 2), and whether it was tied, (N, 2)."""
    resized = cam.resize_map(torch.as_tensor(np.asarray(maps)), (size, size)).numpy()
    found = [localization.extremes(m, (size, size)) for m in resized]
    where = np.array([[f.maximum, f.minimum] for f in found])
    return (where + 0.5) / size, np.array([f.ties for f in found]) > 1


def measured_offset(model: models.Classifier, images: training.Stack, runtime: Runtime) -> NDArray[np.float64]:
    """Offset (2,) of a cell, rows and columns, as shares of the image, measured on the first images without labels."""
    x, _ = next(images.batches(OFFSET_IMAGES, runtime))
    found = alignment.cell_offset(model, x)
    return np.array([found.rows / x.shape[2], found.cols / x.shape[3]])


def other_maps(
    model: models.Classifier, images: training.Stack, layer: str, runtime: Runtime
) -> dict[str, NDArray[Any]]:
    """Extreme points of the maps that the paper's discussion asks for: Grad-CAM, LayerCAM at `layer`, CAMERAS."""
    found: dict[str, list[NDArray[Any]]] = {"grad_cam": [], "layer_cam": [], "cameras": []}
    model.eval()
    for x, _ in images.batches(8, runtime):
        found["grad_cam"].append(relative_points(cam.grad_cam(model, x).cpu()))
        found["layer_cam"].append(relative_points(cam.layer_cam(model, x, layer).cpu()))
        sizes = [round(scale * x.shape[2]) for scale in CAMERAS_SCALES]
        found["cameras"].append(relative_points(cam.cameras(model, x, sizes).cpu()))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def points(
    runs: Sequence[Run],
    areas: Sequence[NDArray[np.uint8]],
    dataset: CaseDataset,
    which: str = "cam",
    early_stopping: str = "validation",
    epoch: int | None = None,
    align: str = "resize",
) -> pd.DataFrame:
    """One row per run and test image: its logit, its label, and which region each extreme point hit.

    Args:
        runs: from `train_run` or `cross_validate`.
        areas: from `region_maps`, for the whole data set.
        dataset: the whole data set; with `which` an external one, that one, and runs whose `test` counts its images.
        which: "cam", "cam_first" (first pixel of the resized map), or a key of `Run.extras`.
        early_stopping: "validation" or "test".
        epoch: look at this epoch (or the last before it) instead.
        align: "resize" draws the map as the paper does; "measured" adds the network's offset to its points.

    Returns:
        Columns seed, fold, index, source, patient_id, label, logit, and ``max_mass ... min_any`` (bool).

    Raises:
        ValueError: no run, an unknown option, or a combination that the runs cannot answer.
    """
    if align not in ("resize", "measured"):
        raise ValueError(f"align: {align!r} is not 'resize' or 'measured'")
    if align == "measured" and which in OTHER_CELLS:
        raise ValueError(f"align: the offset was measured on the last layer of the trained network, not on {which!r}")
    if which not in ("cam", "cam_first", *UNTRAINED) and (early_stopping != "validation" or epoch is not None):
        raise ValueError(f"which: {which!r} is known for the network that validation stopping keeps, and no other")
    if not runs:
        raise ValueError("runs: there is none")
    if len(areas) != len(dataset):
        raise ValueError(f"areas: {len(areas)} for the {len(dataset)} cases of {dataset.name}")
    rows = []
    for run in runs:
        e = run.epoch(early_stopping) if epoch is None else min(epoch, len(run.logits) - 1)
        logits = run.extras.get(f"logits_{which}", run.logits[e])
        where = _points_of(run, which, e) + (run.offset if align == "measured" else 0)
        if not len(where) == len(logits) == len(run.test):
            raise ValueError(f"which: {which!r} has points on {len(where)} images, the run tested {len(run.test)}")
        for i, index in enumerate(run.test):
            area = areas[index]
            row = {"seed": run.seed, "fold": run.fold, "index": int(index), "logit": float(logits[i])}
            for name, place in zip(("max", "min"), where[i], strict=True):
                pixel = np.clip(place * area.shape - 0.5, 0, np.array(area.shape) - 1)
                hits = localization.region_hits(tuple(pixel), area)
                row |= {f"{name}_{region}": hit for region, hit in hits.items()}
                row[f"{name}_any"] = any(hits.values())
            rows.append(row)
    frame = pd.DataFrame(rows)
    facts = dataset.table.reset_index(drop=True)[["source", "patient_id", "label"]]
    return frame.join(facts, on="index")


def _points_of(run: Run, which: str, epoch: int) -> NDArray[Any]:
    if which == "cam":
        return relative_points(run.maps[epoch])
    if which == "cam_first":
        return first_points(run.maps[epoch])[0]
    known = [name for name in run.extras if not name.startswith("logits_")]
    if which not in known:
        raise ValueError(f"which: {which!r} is unknown, expected one of {', '.join(['cam', 'cam_first', *known])}")
    return run.extras[which]
