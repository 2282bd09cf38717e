"""Learning rates over a training, as functions of the time passed; `training` asks for one before every step.

Usage::

    learning_rate("warm_restarts", 0.01, epoch=12.5, epochs=30)
    learning_rate("plateau", 1e-3, epoch=8.0, epochs=30, losses=[0.7, 0.6, ...])

They hold no state: a training that was killed goes on with the rate that it would have had.

References: Loshchilov and Hutter 2017 (warm restarts); Sam-Millan et al. 2023, sections 3.2.2 (plateau, patience 5) and
3.2.3 (warm restarts; first cycle 10 epochs, each next one twice as long: our reading).
"""

import math
from collections.abc import Sequence

SCHEDULES = ("constant", "cosine", "onecycle", "plateau", "warm_restarts")
FIRST_CYCLE, CYCLE_GROWTH = 10, 2  # of the warm restarts, in epochs
PATIENCE, FACTOR, THRESHOLD = 5, 0.1, 1e-4  # of the plateau; factor and threshold are torch's defaults


def learning_rate(schedule: str, rate: float, epoch: float, epochs: int, losses: Sequence[float] = ()) -> float:
    """Learning rate at the time `epoch` (whole and begun epochs) of a training of `epochs` epochs.

    Args:
        schedule: one of `SCHEDULES`.
        rate: the highest learning rate.
        epoch: 0 at the start, `epochs` at the end.
        epochs: length of the training.
        losses: on the stopping set after each finished epoch, for "plateau".

    Raises:
        ValueError: an unknown schedule.
    """
    progress = epoch / epochs
    if schedule == "constant":
        return rate
    if schedule == "cosine":
        return _half_cosine(rate, progress)
    if schedule == "onecycle":
        rising = progress < 0.2
        return rate * (0.05 + 0.95 * progress / 0.2) if rising else _half_cosine(rate, (progress - 0.2) / 0.8)
    if schedule == "plateau":
        return rate * FACTOR ** reductions(losses)
    if schedule == "warm_restarts":
        start, length = 0, FIRST_CYCLE
        while epoch >= start + length:
            start, length = start + length, length * CYCLE_GROWTH
        return _half_cosine(rate, (epoch - start) / length)
    raise ValueError(f"schedule: {schedule!r} is not one of {', '.join(SCHEDULES)}")


def _half_cosine(rate: float, progress: float) -> float:
    """From `rate` at 0 to 0 at 1."""
    return rate * 0.5 * (1 + math.cos(math.pi * progress))


def reductions(losses: Sequence[float]) -> int:
    """How often the rate has been reduced: once for each `PATIENCE` + 1 epochs without a loss 0.01 % below the best."""
    best, bad, count = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - THRESHOLD):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > PATIENCE:
            bad, count = 0, count + 1
    return count
