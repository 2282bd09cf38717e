"""Explorers: the notebooks' studies under the reader's hands, one function for each notebook.

Usage::

    explorers.patch_maps(model, sets, picks, setup)      # the last line of a cell: it shows itself

| notebook | function | one moves |
|---|---|---|
| 01 | `patch_maps` | patch, method, share of the map that counts as its top |
| 02 | `boxes_and_window` | image, method, quantile of the box; an occlusion window |
| 03 | `pointing` | image, extreme, tolerance, alignment |
| 04 | `activations` | mass, network, group |
| 05 | `threshold` | image, theta |
| 06 | `omig_path` | virtual image, c, L |

Without a person at the kernel each is one static figure; see `common`.
"""

from xai_lib.explorers.common import Explorer, interactive
from xai_lib.explorers.deletion import threshold
from xai_lib.explorers.mammograms import boxes_and_window
from xai_lib.explorers.omig import omig_path
from xai_lib.explorers.patches import patch_maps
from xai_lib.explorers.transfer import activations
from xai_lib.explorers.ultrasound import pointing

__all__ = [
    "Explorer",
    "activations",
    "boxes_and_window",
    "interactive",
    "omig_path",
    "patch_maps",
    "pointing",
    "threshold",
]
