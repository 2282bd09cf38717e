"""Study 5's search: several images in one optimisation against one after the other, and what is not network time.

Run ``make bench``. One thread (a GPU where there is one), the shipped classifier and inpainter, 320 x 160, `STEPS`
steps. The ways take turns; the best of `ROUNDS` rounds counts. *Pass efficiency* is the time of the network passes
alone (the inpainter forward, the classifier forward and backward, on the same images) over the time of the search.
Memory is the process's largest, by the number of images that a chunk holds.
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from form import line

from xai_lib.config import runtime
from xai_lib.deletion_region import DeletionConfig, log_odds, smallest_deletion_region
from xai_lib.studies.deletion import study as study_of
from xai_lib.studies.deletion.searches import score, with_mass

IMAGES, STEPS, ROUNDS = 4, 10, 2


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def passes(ready: study_of.Ready, x: torch.Tensor, steps: int) -> None:
    """The network passes of a search and nothing else."""
    keep = torch.ones_like(x)
    keep[..., ::24, ::24] = 0
    for _ in range(steps):
        with torch.no_grad():
            drawn = ready.inpainter(x, keep)
        drawn.requires_grad_()
        torch.autograd.grad(log_odds(ready.classifier, drawn).sum(), drawn)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Print the table, and return it as one row; `quick`: three steps, one round."""
    steps, rounds = (3, 1) if quick else (STEPS, ROUNDS)
    machine = runtime(threads=None if torch.cuda.is_available() else 1)
    ready = study_of.prepare(study_of.settings("lab"), 0, machine, "outputs", progress=False)
    called = [s for s in with_mass(ready) if score(ready.classifier, s.case.image[None])[0] > 0][:IMAGES]
    x = torch.stack([s.case.image for s in called]).to(machine.device)
    config = DeletionConfig(learning_rate=0.01, lambda2=0.05, spacing=3, steps=steps)
    ways: dict[str, Callable[[], object]] = {
        "together": lambda: smallest_deletion_region(ready.classifier, ready.inpainter, x, config=config),
        "one by one": lambda: [
            smallest_deletion_region(ready.classifier, ready.inpainter, image[None], config=config) for image in x
        ],
        "passes alone": lambda: passes(ready, x, steps),
    }
    best = {name: min(seconds(way) for _ in range(rounds)) for name, way in ways.items()}
    for name, taken in best.items():
        print(f"{name:14s} {taken / steps / len(x) * 1000:7.1f} ms per image and step")
    print(f"one by one / together {best['one by one'] / best['together']:.2f}   (>= 5 on a GPU)")
    print(f"pass efficiency       {best['passes alone'] / best['together']:.2f}   (>= 0.85)")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory        {memory:.2f} GiB, {len(x)} images")
    each = {name: taken / steps / len(x) * 1000 for name, taken in best.items()}
    size, unit = f"{len(x)} images, {x.shape[2]} x {x.shape[3]}", "ms per image and step"
    figures = (each["together"], each["one by one"], unit, "one image after the other")
    efficiency = best["passes alone"] / best["together"]
    return [line("05", "smallest deletion region", size, *figures, efficiency=efficiency)]


if __name__ == "__main__":
    rows()
