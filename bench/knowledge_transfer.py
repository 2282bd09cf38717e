"""Study 4's training: frozen groups that are computed once, or in every step, or that train; and its GLCM variance.

Run ``make bench``. One thread, processor seconds. DenseNet121 at 96 x 96, random weights, batch 12: a step of
fine-tuning and one of transfer, whose teacher reads the masks. The last group trains, from stored outputs of the others
("cached") or with the others run without gradient ("frozen"), or all layers train; augmentation is left out. The three
take turns, and the best of `ROUNDS` rounds counts. The GLCM reference calls `skimage.feature.graycomatrix` for
`WINDOWS` of the ROI's pixels, drawn at random, and is scaled to all of them (bench/patch_replacement.py does so for
the textbook's mean, here it is the paper's). The ratios are the figures to quote.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from form import line
from skimage.feature import graycomatrix
from torch.nn import functional as F

from xai_lib import knowledge_transfer as kt
from xai_lib.config import runtime
from xai_lib.data.synthetic.mammogram_masses import load_synthetic_masses
from xai_lib.glcm import glcm_variance
from xai_lib.studies.mammograms.folds import Start
from xai_lib.studies.transfer.inputs import Inputs, Settings, inputs, reader, roi_stack
from xai_lib.training import FitConfig

SIZE, BATCH, ROUNDS, WINDOWS = 96, 12, 3, 2000
START = Start("densenet121")
WAYS = {
    "cached": Settings(START, SIZE, fit=FitConfig(augment="turn")),
    "frozen": Settings(START, SIZE, fit=FitConfig(augment="roi")),
    "all": Settings(START, SIZE, "all", fit=FitConfig(augment="roi")),
}


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """Processor seconds, and what was computed."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def pixels_of(data: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as the networks get it, image and mask behind each other, and its labels."""
    batch = data.first_position(np.arange(BATCH))
    images = batch.images.float() / (255 if batch.images.dtype == torch.uint8 else 1)
    return images, batch.labels.long()


def step_of(settings: Settings, data: Inputs, transfer: bool) -> Callable[[], None]:
    """One training step."""
    student, (x, labels) = reader(settings, 0), pixels_of(data)
    objective = kt.transfer_objective(reader(settings, 0, "mask"), student) if transfer else None
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], 1e-4)
    student.train()

    def step() -> None:
        logits, term = objective(student, x) if objective else (student(x), torch.zeros(()))
        optimizer.zero_grad()
        (F.cross_entropy(logits, labels) + term).backward()
        optimizer.step()

    return step


def training(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Print and return a row for fine-tuning and one for transfer."""
    found = []
    stack = roi_stack(load_synthetic_masses(patients=BATCH, size=SIZE), SIZE, progress=False)
    where, data = runtime("cpu", 1), {}
    for way, settings in WAYS.items():
        taken, data[way] = seconds(lambda s=settings: inputs(reader(s, 0), stack, s, where))
        if way == "cached":
            print(f"frozen part, image and mask in 8 positions, once: {1000 * taken / len(stack):.0f} ms a case")
    with torch.no_grad():
        logits = {way: reader(settings, 0)(pixels_of(data[way])[0]) for way, settings in WAYS.items()}
    error = (logits["cached"] - logits["all"]).abs().max() / logits["all"].abs().max()
    for transfer in (False, True):
        steps = {way: step_of(settings, data[way], transfer) for way, settings in WAYS.items()}
        for step in steps.values():
            step()  # first-call work is not counted
        best = dict.fromkeys(steps, np.inf)
        for _ in range(rounds):
            for way, step in steps.items():
                best[way] = min(best[way], seconds(step)[0])
        name = "transfer" if transfer else "fine-tuning"
        text = "   ".join(f"{way} {BATCH / value:6.1f}" for way, value in best.items())
        print(f"{name:12s} {text}   images/s   ", end="")
        print(f"cached is {best['frozen'] / best['cached']:.1f} and {best['all'] / best['cached']:.1f} times as fast")
        each = (f"batch {BATCH}, {SIZE} x {SIZE}", BATCH / best["cached"], BATCH / best["all"], "images/s")
        other = f"frozen groups run in every step: {BATCH / best['frozen']:.1f} images/s"
        what = f"{name} of DenseNet121's last block, the others stored"
        found.append(line("04", what, *each, "training all layers", more=True, note=other))
    print(f"largest difference of logits, cached in half precision, before training: {error:.1g} of the largest")
    return found


def by_windows(roi: np.ndarray, places: np.ndarray, window: int = 7, levels: int = 32) -> np.ndarray:
    """The paper's variance from one matrix for each of the pixels `places` (N, 2)."""
    m, half, i = np.minimum((roi * levels).astype(np.uint8), levels - 1), window // 2, np.arange(levels)[:, None]
    found = np.zeros(len(places))
    for k, (row, col) in enumerate(places):
        cut = m[max(row - half, 0) : row + half + 1, max(col - half, 0) : col + half + 1]
        p = graycomatrix(cut, [1], [0], levels, symmetric=True, normed=True)[:, :, 0, 0]
        found[k] = ((i - (i * p).sum() / levels**2) ** 2 * p).sum()
    return found


def glcm(size: int = 224, windows: int = WINDOWS) -> dict[str, Any]:
    """Print and return the row of the GLCM variance."""
    dataset, rng = load_synthetic_masses(patients=1, size=size), np.random.default_rng(0)
    roi = dataset[0].image[0].double().numpy()
    places = np.concatenate([rng.integers(0, size, (windows - 2, 2)), [[0, 0], [size - 1, size - 1]]])
    glcm_variance(roi)  # first-call work is not counted
    slow, expected = seconds(lambda: by_windows(roi, places))
    own, found = min((seconds(lambda: glcm_variance(roi)) for _ in range(5)), key=lambda pair: pair[0])
    if not np.allclose(np.asarray(found)[tuple(places.T)], expected, rtol=1e-9, atol=1e-9):
        raise ValueError("glcm_variance is not the variance of scikit-image's matrices")
    slow *= size**2 / windows
    print(f"glcm_variance {1000 * own:.1f} ms   one matrix per pixel {slow:.1f} s (from {windows} pixels)", end="")
    print(f"   {slow / own:.0f} times, equal to 1e-9")
    each = (f"{size} x {size}, window 7, 32 levels", own, slow, "s", "scikit-image's graycomatrix, pixel by pixel")
    return line("04", "GLCM variance, the printed mean", *each, note=f"timed on {windows} pixels, equal to 1e-9")


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Print and return one row per measurement; `quick`: one round, fewer pixels."""
    torch.set_num_threads(1)
    return [*training(1 if quick else ROUNDS), glcm(windows=500 if quick else WINDOWS)]


if __name__ == "__main__":
    rows()
