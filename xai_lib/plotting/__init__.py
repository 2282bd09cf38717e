"""Figures. Functions take arrays and results, compute nothing, and return the matplotlib figure.

Usage::

    figure = image_grid(cases, columns=6)
    save(figure, output / "figures", "fig1_examples")
"""

from xai_lib.plotting.common import CLASS_NAMES, image_grid, save, show_image, show_source
from xai_lib.plotting.maps import explained, methods, overlay
from xai_lib.plotting.ultrasound import (
    REGION_COLOURS,
    cam_cases,
    cam_scheme,
    coverage,
    cue_matrix,
    estimates,
    offsets,
    pointing,
    regions_figure,
    roc,
    training_length,
)

__all__ = [
    "CLASS_NAMES",
    "REGION_COLOURS",
    "cam_cases",
    "cam_scheme",
    "coverage",
    "cue_matrix",
    "estimates",
    "explained",
    "image_grid",
    "methods",
    "offsets",
    "overlay",
    "pointing",
    "regions_figure",
    "roc",
    "save",
    "show_image",
    "show_source",
    "training_length",
]
