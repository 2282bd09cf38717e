"""Training and inference speed of study 3's networks: images per second of processor time, float32 against bfloat16.

Run ``make bench``. One thread, batch 12, 224 x 224, random weights; the two precisions take turns, the best of three
rounds counts, and the ratio is the figure to quote (absolute times depend on the machine).
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from form import line
from torch.nn import functional as F

from xai_lib import models
from xai_lib.config import Runtime, runtime

BATCH, STEPS, ROUNDS = 12, 2, 3


def _rate(work: Callable[[], None]) -> float:
    """Images per second of processor time."""
    began = time.process_time()
    for _ in range(STEPS):
        work()
    return STEPS * BATCH / (time.process_time() - began)


def _jobs(name: str, drs: bool, where: Runtime) -> dict[str, Callable[[], None]]:
    """A training step and an inference pass of one network."""
    layout = torch.channels_last if where.channels_last else torch.contiguous_format
    model = models.build(name)
    if drs:
        models.add_representation_scaling(model)
    model.to(memory_format=layout)
    x = torch.rand(BATCH, 1, 224, 224).to(memory_format=layout)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)

    def train() -> None:
        model.train()
        with where.autocast():
            logits = model(x)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits[:, 0].float(), torch.ones(BATCH)).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.inference_mode(), where.autocast():
            model(x)

    return {"training": train, "inference": infer}


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Print and return one row per network and job; `quick`: one network, one round."""
    networks, found = (("squeezenet1_1", True), ("mobilenet_v2", True), ("resnet10", False)), []
    settings = {"float32": runtime("cpu", 1, False), "bfloat16": runtime("cpu", 1, True)}
    print("network         job        float32  bfloat16  ratio   (images/s of processor time, one thread)")
    for name, drs in networks[:1] if quick else networks:
        jobs = {precision: _jobs(name, drs, where) for precision, where in settings.items()}
        for job in ("training", "inference"):
            best = dict.fromkeys(settings, 0.0)
            for work in jobs.values():
                work[job]()  # warm up
            for _ in range(1 if quick else ROUNDS):
                for precision, work in jobs.items():
                    best[precision] = max(best[precision], _rate(work[job]))
            a, b = best["float32"], best["bfloat16"]
            print(f"{name:15s} {job:10s} {a:7.1f}  {b:8.1f}  {b / a:5.2f}", flush=True)
            each = (f"batch {BATCH}, 224 x 224", b, a, "images/s", "float32")
            found.append(line("03", f"{job}, {name}, bfloat16", *each, more=True))
    return found


if __name__ == "__main__":
    rows()
