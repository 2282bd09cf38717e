"""Study 6, virtual images of a tested setting: what a network is shown of a whole phantom.

Usage::

    images = virtual(ensemble, phantom, SCENARIOS["#1"], 32, rng, contrast=0.5)          # (32, S, S) grey levels

Reference: Amanova et al. 2022, sections 2.2 and 2.3.2, Fig. 1.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xai_lib.cdmam.geometry import CURVE_MM
from xai_lib.cdmam.phantom import Phantom, build
from xai_lib.cdmam.simulate import MARGINS, SCENARIOS, Scenario, levels, noise_sd
from xai_lib.config import numpy_generator
from xai_lib.studies.omig.iqa_training import SECOND_SYSTEM, Lessons, draw
from xai_lib.studies.omig.study import PAPER, Ensemble, Ready

TESTED = {**SCENARIOS, SECOND_SYSTEM.name: SECOND_SYSTEM}
SHOWN = {SECOND_SYSTEM.name: 0.07, "#1": 0.0, "OOD": 0.0}  # in Fig. 3, with their margins


def phantoms(ready: Ready) -> dict[str, Phantom]:
    """The phantom of each tested setting's system."""
    other = build(SECOND_SYSTEM.detector, max(MARGINS))
    return {name: other if name == SECOND_SYSTEM.name else ready.phantom for name in TESTED}


def virtual(
    ensemble: Ensemble,
    phantom: Phantom,
    setting: Scenario,
    count: int,
    rng: np.random.Generator,
    margins: Sequence[float] = (0.0,),
    contrast: float = 1.0,
    noise: float = 1.0,
    grid: float = 1.0,
) -> NDArray[np.float32]:
    """Virtual images (count, S, S) of one setting as an ensemble is trained on them, with each margin in turn.

    `contrast`, `noise` and `grid` are factors on the discs, the noise and the grid.
    """
    course = replace(ensemble.course, mirror=False)
    lessons = Lessons(
        phantoms=(phantom,),
        settings=(setting,),
        contrasts=np.ones(1),
        grey=levels(setting, contrast, grid)[None],
        spread=np.array([noise_sd(setting.noise * noise, setting.detector)]),
        labels=np.zeros((1, len(CURVE_MM))),
        system=np.zeros(1, np.int64),
        mean=ensemble.mean,
        sd=ensemble.sd,
    )
    drawn = [draw(course, lessons, np.zeros(1, np.int64), rng, (margins[i % len(margins)],)) for i in range(count)]
    return np.concatenate(drawn)


def shown_images(ready: Ready) -> dict[str, NDArray[np.float32]]:
    """One virtual image (S, S) of each of `SHOWN` for the paper-like ensemble, in grey levels."""
    plates = phantoms(ready)
    return {
        name: virtual(
            ready.ensembles[PAPER], plates[name], TESTED[name], 1, numpy_generator(ready.seed, "shown", name), (margin,)
        )[0]
        for name, margin in SHOWN.items()
    }
