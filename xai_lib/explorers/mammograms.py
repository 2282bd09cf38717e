"""Study 2, hands on: a mammogram, a method's box beside the annotation, and an occlusion window moved by hand.

Usage::

    boxes_and_window(study, [3, 17], known={3: maps})

The grey window is what Occlusion moves over the image, and the change of the score is what it draws there: every window
that was visited leaves a square in that colour, so that a map grows under the hand.

Reference: Sam-Millan et al. 2023, sections 3.2.4 and 3.2.5; Zeiler and Fergus 2014 (occlusion).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from xai_lib import boxes, plotting, training
from xai_lib.box_scores import best_iou
from xai_lib.data import Case
from xai_lib.explorers.common import Explorer, dropdown, slider
from xai_lib.plotting.common import BLACK, GREEN, ORANGE
from xai_lib.plotting.mammograms import draw_boxes
from xai_lib.studies.mammograms.maps import DEFAULT
from xai_lib.studies.mammograms.study import Study
from xai_lib.studies.mammograms.variants import THE_SEVEN, Scene, as_seen, explain, few_samples

LEAST = 0.05  # log odds: a smaller change has a paler colour


@dataclass(frozen=True)
class Window:
    """A square of `size` pixels around (row, col), cut at the image's border."""

    row: int
    col: int
    size: int

    def box(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Half-open row0, col0, row1, col1 in an image of `shape` (H, W)."""
        corners = [(max(at - self.size // 2, 0), min(at - self.size // 2 + self.size, n)) for at, n in self._on(shape)]
        (row0, row1), (col0, col1) = corners
        return row0, col0, row1, col1

    def _on(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        return [(min(self.row, shape[0] - 1), shape[0]), (min(self.col, shape[1] - 1), shape[1])]


def covered(image: Tensor, window: Window, fill: float) -> Tensor:
    """The image (1, H, W) with the window in one grey."""
    row0, col0, row1, col1 = window.box(tuple(image.shape[1:]))
    changed = image.clone()
    changed[:, row0:row1, col0:col1] = fill
    return changed


def log_odds(model: nn.Module, image: Tensor) -> float:
    """Log odds of malignant of one image (1, H, W)."""
    with torch.no_grad():
        return float(training.scores(model(image[None].to(next(model.parameters()).device)).float().cpu().numpy())[0])


def boxes_and_window(
    study: Study,
    indices: Sequence[int],
    precision: str = "",
    known: Mapping[int, Mapping[str, NDArray[Any]]] | None = None,
) -> Explorer:
    """Choose image, method and quantile of the box; move a window and read the network's score.

    Args:
        study: images, networks and parameters.
        indices: the images to choose from.
        precision: of occlusion, LIME and SHAP; empty: the study's.
        known: maps (H, W) by method, by image, which then are not computed again.
    """
    model, setup = study.networks["trained"], study.setup
    seen: dict[tuple[int, int], dict[Window, float]] = {}

    @lru_cache(maxsize=32)
    def case_of(image: int) -> tuple[Case, float]:
        case = study.dataset[image]
        case = replace(case, image=as_seen(case.image))
        return case, log_odds(model, case.image)

    @lru_cache(maxsize=128)
    def map_of(image: int, method: str) -> NDArray[Any]:
        if method in (known or {}).get(image, {}):
            return np.asarray((known or {})[image][method])
        case = case_of(image)[0]
        scene = Scene(case, None, np.ones(case.image.shape[1:], bool))  # the seven need no twin and no breast
        with few_samples():
            return explain(THE_SEVEN[method], scene, study.networks, setup, precision or study.precision).map

    def draw(image: int, method: str, quantile: float, row: int, col: int, size: int) -> Figure:
        case, score = case_of(image)
        window, visited = Window(row, col, size), seen.setdefault((image, size), {})
        if window not in visited:
            visited[window] = log_odds(model, covered(case.image, window, setup.baseline))
        here = visited.pop(window)
        visited[window] = here  # the last one is where the window is
        return mammogram_figure(case, score, visited, setup.baseline, method, map_of(image, method), quantile)

    height, width = case_of(int(indices[0]))[0].image.shape[1:]
    step = max(setup.window // 4, 1)
    controls = {
        "image": dropdown("image", {f"image {i}": int(i) for i in indices}, int(indices[0])),
        "method": dropdown("method", {plotting.label(name): name for name in THE_SEVEN}, "saliency"),
        "quantile": slider("quantile", 0.9, 0.999, 0.001, DEFAULT),
        "row": slider("window, row", 0, height - 1, step, _near(height // 2, step)),
        "col": slider("window, column", 0, width - 1, step, _near(width // 4, step)),
        "size": slider("window, size", step, 4 * setup.window, step, _near(2 * setup.window, step)),
    }
    return Explorer(draw, controls, "a mammogram with a window over it, a map and the box made of it")


def _near(value: int, step: int) -> int:
    return value // step * step


def mammogram_figure(
    case: Case,
    score: float,
    visited: Mapping[Window, float],
    fill: float,
    method: str,
    values: NDArray[Any],
    quantile: float,
) -> Figure:
    """The image under the window; the scores of all windows; the map with the box made of it.

    Args:
        case: the image (1, H, W) with its annotated boxes.
        score: log odds of malignant of the whole image.
        visited: log odds with each window in place, in the order of the visits; the last one is drawn.
        fill: grey of the window.
        method: of the map.
        values: the map (H, W), signed.
        quantile: of the box, see `boxes.binarise`.
    """
    window, now = list(visited.items())[-1]
    figure, axes = plt.subplots(1, 3, figsize=(6.2, 3.8), width_ratios=(1, 0.75, 1), layout="constrained")
    plotting.show_image(axes[0], replace(case, image=covered(case.image, window, fill)), False, "window", bar=False)
    draw_boxes(axes[0], case.boxes, GREEN)
    _trail(axes[0], case, score, visited)
    draw_boxes(axes[0], [window.box(values.shape)], ORANGE)
    _scores(axes[1], score, list(visited.values()))
    axes[1].set_title(f"log odds {score:+.2f}, here {now:+.2f}", fontsize=8)
    found = boxes.paper_rule(method, len(values), quantile)(values)
    merged = boxes.merge(found)
    plotting.overlay(axes[2], replace(case, mask=None), values)
    draw_boxes(axes[2], found, ORANGE, ":", 0.8)
    draw_boxes(axes[2], merged, ORANGE)
    draw_boxes(axes[2], case.boxes, GREEN)
    said = f"IOU {best_iou(merged, case.boxes):.2f}" if len(merged) else "no box"
    axes[2].set_title(f"{plotting.label(method)}, {quantile:.3f}: {said}", fontsize=8)
    figure.supxlabel("green: annotation; orange: window, and box of the map", fontsize=8)
    return figure


def _trail(axes: Axes, case: Case, score: float, visited: Mapping[Window, float]) -> None:
    """A small square where each window was, red where covering it lowers the score."""
    change = np.array([score - value for value in visited.values()])
    limit = max(float(np.abs(change).max()), LEAST)
    places = [window.box(tuple(case.image.shape[1:])) for window in visited]
    rows, cols = ([(box[k] + box[k + 2] - 1) / 2 for box in places] for k in (0, 1))
    look: dict[str, Any] = {"cmap": "RdBu_r", "norm": TwoSlopeNorm(0, -limit, limit)}
    axes.scatter(cols, rows, c=change, s=22, marker="s", edgecolors="white", linewidths=0.4, **look)


def _scores(axes: Axes, score: float, visited: Sequence[float]) -> None:
    """The score without a window as a line, with every window so far as a point, the present one larger."""
    axes.axhline(score, color=BLACK, lw=1.4)
    axes.axhline(0, color="grey", lw=1, ls=":")
    axes.plot(range(1, len(visited) + 1), visited, "o-", color="0.6", ms=3, lw=0.7)
    axes.plot(len(visited), visited[-1], "o", color=ORANGE, ms=8)
    axes.set(xlabel="windows visited", xlim=(0, max(len(visited) + 1, 6)))
    axes.set_ylabel("log odds of malignant", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.xaxis.label.set_fontsize(8)
    axes.text(0.03, score, " no window", transform=axes.get_yaxis_transform(), fontsize=7, va="bottom")
