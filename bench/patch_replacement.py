"""Study 4's two loops that need none: GLCM variance per pixel, and eq. 6 for 49 places and 2 contents.

Run ``make bench``. One thread, 224 x 224, random weights, processor seconds. The GLCM reference calls
`skimage.feature.graycomatrix` for every pixel of `ROWS` rows and is scaled to the whole image. The patch reference is a
plain loop, one replaced image at a time, on the same network; whole images in batches stand beside it. The ways take
turns, and the best of `ROUNDS` rounds counts; the ratios are the figures to quote.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from form import line
from skimage.feature import graycomatrix

from xai_lib import models
from xai_lib.glcm import glcm_variance, lesion_background
from xai_lib.patch_replacement import patch_replacement

SIZE, PATCH, ROWS, ROUNDS = 224, 32, 8, 2
NETWORKS = ("densenet121", "mobilenet_v2", "resnet50")


def mass(size: int = SIZE) -> np.ndarray:
    """A bright blob on coarse noise, in [0, 1]."""
    rng, away = np.random.default_rng(0), np.hypot(*(np.indices((size, size)) - size / 2))
    coarse = np.kron(rng.random((size // 8, size // 8)), np.ones((8, 8)))
    return np.clip(0.2 + 0.5 / (1 + np.exp((away - size / 5) / 6)) + 0.2 * coarse, 0, 1)


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """Processor seconds, and what was computed."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def by_windows(roi: np.ndarray, rows: range, window: int = 7, levels: int = 32) -> np.ndarray:
    """Textbook variance of one matrix per pixel."""
    m, half, i = np.minimum((roi * levels).astype(np.uint8), levels - 1), window // 2, np.arange(levels)[:, None]
    found = np.zeros((len(rows), roi.shape[1]))
    for k, row in enumerate(rows):
        for col in range(roi.shape[1]):
            cut = m[max(row - half, 0) : row + half + 1, max(col - half, 0) : col + half + 1]
            p = graycomatrix(cut, [1], [0], levels, symmetric=True, normed=True)[:, :, 0, 0]
            found[k, col] = ((i - (i * p).sum()) ** 2 * p).sum()
    return found


def glcm() -> dict[str, Any]:
    """Print and return the row of the GLCM variance."""
    roi, lines = mass(), range(0, SIZE, SIZE // ROWS)
    glcm_variance(roi, "textbook")  # first-call work is not counted
    slow, expected = seconds(lambda: by_windows(roi, lines))
    own = []
    for _ in range(5):
        taken, found = seconds(lambda: glcm_variance(roi, "textbook"))
        own.append(taken)
    slow, error = slow * SIZE / len(lines), np.abs(np.asarray(found)[lines] - expected).max()
    print(f"glcm_variance   {1000 * min(own):6.1f} ms   one matrix per pixel {slow:6.1f} s", end="")
    print(f"   {slow / min(own):6.0f} times   largest difference {error:.1g}  (>= 500)", flush=True)
    each = (f"{SIZE} x {SIZE}, window 7, 32 levels", min(own), slow, "s", "scikit-image's graycomatrix, pixel by pixel")
    return line("04", "GLCM variance", *each, note=f"timed on {len(lines)} rows, largest difference {error:.0e}")


def plain_loop(model: models.Classifier, roi: np.ndarray, contents: dict[str, np.ndarray]) -> np.ndarray:
    """Eq. 6 with one image at a time."""
    x, cells = torch.as_tensor(roi, dtype=torch.float32)[None, None], SIZE // PATCH
    found = np.zeros((2, cells, cells))
    with torch.no_grad():
        before = model.feature_maps(x)
        for k, content in enumerate(contents.values()):
            for p, q in np.ndindex(cells, cells):
                at = (slice(p * PATCH, (p + 1) * PATCH), slice(q * PATCH, (q + 1) * PATCH))
                replaced = x.clone()
                replaced[0, 0][at] = torch.as_tensor(content[at])
                found[k, p, q] = (model.feature_maps(replaced) - before).norm(dim=1).mean()
    return found


def replacement(name: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Print and return the row of one network."""
    torch.manual_seed(0)
    model, roi = models.build(name), mass()
    contents = lesion_background(roi)
    ways: dict[str, Callable[[], object]] = {
        "own": lambda: patch_replacement(model, roi, contents).distances,
        "whole images": lambda: patch_replacement(model, roi, contents, local=False).distances,
        "plain loop": lambda: plain_loop(model, roi, contents),
    }
    best, found = dict.fromkeys(ways, np.inf), {}
    for _ in range(rounds):
        for way, work in ways.items():
            taken, found[way] = seconds(work)
            best[way] = min(best[way], taken)
    loop, own = np.asarray(found["plain loop"]), np.asarray(found["own"])
    text = "   ".join(f"{way} {value:5.2f} s" for way, value in best.items())
    error = np.abs(own - loop).max() / loop.max()
    print(f"{name:13s}   {text}   {best['plain loop'] / best['own']:.2f} times", end="")
    print(f"   largest difference {error:.1g} of the largest distance  (>= 1.8)", flush=True)
    each = (f"{loop[0].size} places, 2 contents, {SIZE} x {SIZE}", best["own"], best["plain loop"], "s", "plain loop")
    batches = f"whole images in batches {best['whole images']:.2f} s"
    return line("04", f"patch replacement (eq. 6), {name}", *each, note=batches)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Print and return one row per measurement; `quick`: one network, one round."""
    torch.set_num_threads(1)
    return [glcm(), *(replacement(name, 1 if quick else ROUNDS) for name in (NETWORKS[1:2] if quick else NETWORKS))]


if __name__ == "__main__":
    rows()
