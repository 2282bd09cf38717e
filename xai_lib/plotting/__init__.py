"""Figures. Functions take arrays and results, compute nothing, and return the matplotlib figure.

Usage::

    figure = image_grid(cases, columns=6)
    save(figure, output / "figures", "fig1_examples")
"""

from xai_lib.plotting.cdmam import (
    contrast_detail,
    coverage_bars,
    error_and_uncertainty,
    hit_matrices,
    hit_matrix,
    psychometric,
)
from xai_lib.plotting.cdmam_images import phantom_figure, virtual_images
from xai_lib.plotting.common import CLASS_NAMES, image_grid, save, show_image, show_source
from xai_lib.plotting.deletion import fill_points, loss_curves, sweep_curves, tissue_rocs, training_curves
from xai_lib.plotting.deletion_images import fills_row, inpainting_rows, result_rows, way_gif
from xai_lib.plotting.knowledge_transfer import (
    accuracy_rows,
    beta_curves,
    cell_points,
    confusion_matrices,
    distance_groups,
    recipe_points,
    shift_lines,
)
from xai_lib.plotting.knowledge_transfer_images import activation_rows, recipe_rows, replacement_panels
from xai_lib.plotting.mammograms import (
    before_after,
    dots,
    iou_boxplots,
    label,
    peak_offsets,
    pipeline,
    quantile_sweep,
    sheet,
    tpr_curves,
    twins,
)
from xai_lib.plotting.maps import explained, methods, overlay
from xai_lib.plotting.omig import c_sweep, disc_scores, intervention_figure, weights, whole_map_step
from xai_lib.plotting.omig_maps import maps_on_virtual, polarity_pair, upsampled
from xai_lib.plotting.patches import agreement_matrix, method_points, patch_rows, randomisation
from xai_lib.plotting.sweep import sweep_figure
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
    "accuracy_rows",
    "activation_rows",
    "agreement_matrix",
    "before_after",
    "beta_curves",
    "c_sweep",
    "cam_cases",
    "cam_scheme",
    "cell_points",
    "confusion_matrices",
    "contrast_detail",
    "coverage",
    "coverage_bars",
    "cue_matrix",
    "disc_scores",
    "distance_groups",
    "dots",
    "error_and_uncertainty",
    "estimates",
    "explained",
    "fill_points",
    "fills_row",
    "hit_matrices",
    "hit_matrix",
    "image_grid",
    "inpainting_rows",
    "intervention_figure",
    "iou_boxplots",
    "label",
    "loss_curves",
    "maps_on_virtual",
    "method_points",
    "methods",
    "offsets",
    "overlay",
    "patch_rows",
    "peak_offsets",
    "phantom_figure",
    "pipeline",
    "pointing",
    "polarity_pair",
    "psychometric",
    "quantile_sweep",
    "randomisation",
    "recipe_points",
    "recipe_rows",
    "regions_figure",
    "replacement_panels",
    "result_rows",
    "roc",
    "save",
    "sheet",
    "shift_lines",
    "show_image",
    "show_source",
    "sweep_curves",
    "sweep_figure",
    "tissue_rocs",
    "tpr_curves",
    "training_curves",
    "training_length",
    "twins",
    "upsampled",
    "virtual_images",
    "way_gif",
    "weights",
    "whole_map_step",
]
