"""The CDMAM phantom of mammography: simulate its image, read it, and say how good the system is.

Usage::

    images = [simulate("#1", seed) for seed in range(16)]
    curve = read_out(images)                                 # automatic, human and fitted thresholds

`geometry`, `beam`, `phantom`, `simulate`, `cell`: from tube voltage to grey levels. `observer`, `locate`: from an image
to hits. `readout`, `limits`, `report`: from hits to a curve, its interval and the guidelines' limits. `detectability`:
the chance of a hit without any image.
"""

from collections.abc import Iterable

from numpy.typing import ArrayLike

from xai_lib.cdmam import observer, readout
from xai_lib.cdmam.locate import locate
from xai_lib.cdmam.phantom import Detector, Phantom, build
from xai_lib.cdmam.readout import Readout
from xai_lib.cdmam.simulate import SCENARIOS, Scenario, simulate

__all__ = ["SCENARIOS", "Detector", "Phantom", "Readout", "Scenario", "build", "locate", "read_out", "simulate"]


def read_out(images: Iterable[ArrayLike], progress: bool = True) -> Readout:
    """The contrast-detail curve of images (H, W) of the phantom, at least 16 of them for a curve as the guidelines ask.

    Args:
        images: grey levels; the phantom is looked for in each, so turned or mirrored ones may be among them.
        progress: show a bar.

    Raises:
        NoPhantom: in one of them the phantom is not found (a ValueError).
    """
    every = list(images)
    hits = observer.detect_many(every, [locate(image) for image in every], progress=progress)
    return readout.read_out(hits.corner.sum(0), len(every))
