"""Study 6 at its smallest: what the tests of networks, training, maps and tables share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from xai_lib.cdmam import detectability
from xai_lib.cdmam.geometry import DIAMETERS_MM
from xai_lib.cdmam.phantom import Detector
from xai_lib.studies.omig import study as cdmam_study
from xai_lib.studies.omig.iqa_training import disc_reader, paper_like

QUICK = {"size": 20, "hidden": 8, "settings": 8, "images": 64, "batch": 8, "members": 2}
STUDY = replace(
    cdmam_study.settings("smoke"),
    courses={
        cdmam_study.PAPER: paper_like(**QUICK, second_system=0.25),
        cdmam_study.READER: disc_reader(**QUICK | {"members": 1}),
    },
    tested=3,
)


def quick_table(detector: Detector, seed: int = 0) -> NDArray[np.float64]:
    """A smooth stand-in for `detectability.table`, (16, 60): at the threshold where depth times diameter is 0.5."""
    depth = np.log(detectability.DEPTHS) + np.log(DIAMETERS_MM)[:, None]
    return 0.25 + 0.75 * expit(3 * (depth - np.log(0.5)))


@contextmanager
def coarse() -> Iterator[None]:
    """Pixels of 0.48 mm for every detector: the plate has 457 x 290 of them; and no simulation of the observer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detector, "px_per_mm", property(lambda self: self.magnification / 0.48))
        patch.setattr(detectability, "table", quick_table)
        yield


@cache
def trained() -> tuple[cdmam_study.Ready, Path]:
    """Ensembles of a few steps on the coarse phantom, and the folder they were written to."""
    folder = Path(mkdtemp(prefix="cdmam"))
    with coarse():
        return cdmam_study.prepare(STUDY, 0, folder, progress=False), folder
