"""The readout of CDMAM scores: how often its intervals hold the truth, how far it is off, what labels and images cost.

Run ``make bench``. An observer whose thresholds lie on a curve of third order reads 16 images, `SEEDS` times; the
interval comes from `REPLICATES` resamplings of the images. Without smoothing the truth is the observer's own curve;
with smoothing it is the curve that very many images would give (smoothing itself moves it by up to 3 %).
"""

import time
from typing import Any

import numpy as np
from form import line
from numpy.typing import NDArray

from xai_lib.cdmam.geometry import CELLS, CURVE_MM, DIAMETERS_MM, THICKNESSES_UM
from xai_lib.cdmam.limits import bootstrap
from xai_lib.cdmam.phantom import build
from xai_lib.cdmam.readout import HUMAN_FACTORS, curve_from_probabilities, draw_label, read_out
from xai_lib.cdmam.simulate import simulate
from xai_lib.config import numpy_generator
from xai_lib.studies.omig.iqa_training import draw, paper_like, prepare_lessons

SEEDS, REPLICATES, IMAGES, LABELS = 200, 200, 16, 1000
CUBIC = (0.0085, 0.0181, 0.00315, 0.00053)  # automatic threshold in um, polynomial in 1 / diameter


def observer(slope: float = 3.0) -> NDArray[np.float64]:
    """Chances (16, 16) of an observer whose thresholds lie on `CUBIC`."""
    thresholds = np.polynomial.polynomial.polyval(1 / np.array(DIAMETERS_MM), CUBIC)
    return (0.25 + 0.75 / (1 + (thresholds[:, None] / np.array(THICKNESSES_UM)) ** slope)) * CELLS


def trial(p: NDArray, truth: NDArray, smooth: bool, seed: int) -> tuple[NDArray, bool, NDArray]:
    """Which intervals of one reading hold the truth, whether that of the midpoint does, and the relative errors."""
    scores = numpy_generator(seed, "bench", "cdmam").random((IMAGES, 16, 16)) < p
    found = bootstrap(scores, REPLICATES, seed, smooth)
    low, high = found.midpoint_um
    curve = read_out(scores.sum(axis=0), IMAGES, smooth).fitted_um
    return (found.low_um <= truth) & (truth <= found.high_um), low <= truth.mean() <= high, curve / truth - 1


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Print the tables and return their main figures; `quick`: fewer readings, labels and images."""
    return [*intervals(20 if quick else SEEDS), labels(200 if quick else LABELS), *simulation(2 if quick else 10)]


def intervals(readings: int) -> list[dict[str, Any]]:
    """Print coverage, bias and scatter."""
    p, found = observer(), []
    known = np.polynomial.polynomial.polyval(1 / np.array(CURVE_MM), CUBIC) * np.array(HUMAN_FACTORS)
    print(f"{readings} readings of {IMAGES} images; coverage of nominal 95 % intervals, bias and scatter of the curve")
    for smooth, truth in ((False, known), (True, curve_from_probabilities(p))):
        inside, middle, errors = zip(*(trial(p, truth, smooth, seed) for seed in range(readings)), strict=True)
        print(f"\n{'smoothed' if smooth else 'not smoothed'}   all points {np.mean(inside):.3f}   "
              f"midpoint {np.mean(middle):.3f}")  # fmt: skip
        columns = zip(CURVE_MM, np.mean(inside, axis=0), np.mean(errors, axis=0), np.std(errors, axis=0), strict=True)
        for diameter, held, bias, scatter in columns:
            print(f"  {diameter:5.2f} mm  coverage {held:.3f}  bias {bias:+.3f}  sd {scatter:.3f}")
        what = f"CDMAM readout, coverage of its intervals, {'smoothed' if smooth else 'not smoothed'}"
        each = (f"{IMAGES} images, {readings} readings", float(np.mean(inside)), 0.95, "share", "nominal")
        found.append(line("06", what, *each, more=True))
    return found


def labels(count: int) -> dict[str, Any]:
    """Print what a label costs."""
    p, taken = observer(), {}
    rng = np.random.default_rng(0)
    stack = np.broadcast_to(p, (count, 16, 16))
    for name, work in (("one by one", lambda: [draw_label(p, IMAGES, rng) for _ in range(count // 5)]),
                       ("together", lambda: draw_label(stack, IMAGES, rng))):  # fmt: skip
        began = time.perf_counter()
        work()
        taken[name] = (time.perf_counter() - began) / (count if name == "together" else count // 5) * 1000
        print(f"\nlabels drawn {name}: {taken[name]:.2f} ms each", end="")
    print()
    each = (f"{count} labels of {IMAGES} images", taken["together"], taken["one by one"], "ms", "one after the other")
    return line("06", "CDMAM training label", *each)


def simulation(count: int) -> list[dict[str, Any]]:
    """Images a second, on the threads that NumPy takes: whole phantoms, and the virtual images that a network sees."""
    began = time.perf_counter()
    phantom = build()
    print(f"\nphantom drawn in {time.perf_counter() - began:.1f} s, {phantom.shape[0]} x {phantom.shape[1]} pixels")
    course = paper_like(settings=2, second_system=0.0, stages=((0.0,),))
    lessons = prepare_lessons(course, 0, [phantom])
    which, rng, found = np.zeros(50 * count, np.int64), np.random.default_rng(0), []
    for name, images, work in (
        ("whole", count, lambda: [simulate("#1", seed, phantom) for seed in range(count)]),
        ("virtual, 125 x 125", len(which), lambda: draw(course, lessons, which, rng, (0.0,))),
    ):
        began = time.perf_counter()
        work()
        speed = images / (time.perf_counter() - began)
        print(f"images, {name}: {speed:.1f} a second")
        each = (f"{images} images", speed, None, "images/s", "none")
        found.append(line("06", f"CDMAM images, {name}", *each, more=True))
    return found


if __name__ == "__main__":
    rows()
