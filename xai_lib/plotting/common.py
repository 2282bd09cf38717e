"""What all figures share: colours, an image with its outline and scale bar, saving, and source code in a notebook.

Colours are the colour-blind safe set of Okabe and Ito; signed maps go from blue (against the class) over white to red
(for it), with the same scale on both sides of zero.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from IPython.display import Markdown
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xai_lib.data import Case

BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000"
CLASS_NAMES = {0: "benign", 1: "malignant"}


def show_source(function: Callable[..., Any]) -> Markdown:
    """Source of a function or class, to be shown in a notebook beside the text that explains it."""
    return Markdown(f"```python\n{inspect.getsource(function)}```")


def save(figure: Figure, folder: str | Path, name: str) -> None:
    """Write `figure` as ``<folder>/<name>.png`` at 150 dots per inch; the folder is made where it is missing."""
    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def show_image(axes: Axes, case: Case, outline: bool = True, title: str | None = None, bar: bool = True) -> None:
    """Draw one case in grey, the outline of its mass, and a 10 mm scale bar where the pixel size is known."""
    height, width = case.image.shape[1:]
    axes.imshow(case.image[0].numpy(), cmap="gray", vmin=0, vmax=1)
    if outline and case.mask is not None:
        axes.contour(case.mask.numpy(), levels=[0.5], colors=[GREEN], linewidths=1.2)
    if bar and case.pixel_mm:
        length = 10 / case.pixel_mm
        axes.plot([0.05 * width, 0.05 * width + length], [0.95 * height] * 2, color="white", lw=2.5)
        axes.text(0.05 * width, 0.92 * height, "10 mm", color="white", fontsize=7, va="bottom")
    axes.set_title(title if title is not None else class_name(case), fontsize=8)
    axes.set_axis_off()


def class_name(case: Case) -> str:
    """Name of the case's class, "" where the label is unknown."""
    return "" if case.label is None else CLASS_NAMES.get(case.label, "")


def image_grid(
    cases: Sequence[Case], columns: int = 6, outline: bool = True, title: str = "", width: float = 7.2
) -> Figure:
    """Cases side by side, with mass outlines and class names (Fig. 1)."""
    rows = -(-len(cases) // columns)
    size = (width, rows * (width / columns + 0.22) + 0.3)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, case in zip(grid.flat, cases, strict=False):
        show_image(axes, case, outline)
    figure.suptitle(title, fontsize=10)
    return figure
