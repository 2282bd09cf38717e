"""Study 3, one network: where it starts, which images it trains on, and what it leaves.

Usage::

    model = Backbone("squeezenet1_1", "imagenet").build(seed=0)
    save_run(run, Path("seed0-fold0.npz")); run = load_run(Path("seed0-fold0.npz"))

One `Run` is one network and its test images. It keeps the logits and the (small) activation maps of every epoch, so
that both ways of early stopping, the pointing game against training length, and every table are read from the same
training. Training is in `training`, maps and points are in `cam`.

Reference: Byra et al. 2022, "Deep learning methods".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xai_lib import models
from xai_lib.config import numpy_generator, torch_generator


@dataclass(frozen=True)
class Backbone:
    """A network to start from: the arguments of `models.build`, and what trains (drs | head | all)."""

    name: str = "squeezenet1_1"
    weights: str | None = None
    padding: str = "torchvision"
    transfer: str = "drs"
    layer: str = "features"  # for LayerCAM

    def build(self, seed: int, pretrained: bool = True) -> models.Classifier:
        """A fresh network whose head (and, without weights, everything) is drawn from `seed`.

        Raises:
            ValueError: an unknown way of transfer.
        """
        if self.transfer not in ("drs", "head", "all"):
            raise ValueError(f"transfer: {self.transfer!r} is not 'drs', 'head' or 'all'")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(numpy_generator(seed, "weights").integers(2**62)))  # torchvision draws globally
            weights = self.weights if pretrained else None
            model = models.build(self.name, weights=weights, padding=self.padding)
        models.reset_head(model, torch_generator(seed, "head"))
        if self.transfer == "drs":
            models.add_representation_scaling(model)
        elif self.transfer == "head":
            models.freeze_backbone(model)
        return model


@dataclass(frozen=True)
class Run:
    """One trained network and what it says about its test images.

    `logits` (E, N) and `maps` (E, N, h, w) run over epochs, 0 being the untrained network, as do `test_loss` (E,) and
    `val_loss` (E,; NaN at 0). `offset` is the measured offset of a cell as a share of the image (rows, columns), `gap`
    the largest deviation from ``logit = mean(map) + bias``. `extras` holds, by name, the extreme points (N, 2, 2) of
    further maps as shares of the image (maximum and minimum; row and column), and ``logits_<name>`` where a map comes
    from another network.
    """

    seed: int
    fold: int
    test: NDArray[np.int64]
    logits: NDArray[np.float32]
    maps: NDArray[np.float32]
    val_loss: NDArray[np.float64]
    test_loss: NDArray[np.float64]
    offset: NDArray[np.float64]
    gap: NDArray[np.float64]
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def epoch(self, early_stopping: str = "validation", patience: int | None = None) -> int:
        """Epoch that early stopping keeps: on the validation loss, or, as in the paper, on the test loss.

        Of the epochs that were trained the one with the lowest loss, which on the validation loss is the kept network;
        with `patience`, as if training had ended after so many epochs without a lower loss.
        """
        if early_stopping not in ("validation", "test"):
            raise ValueError(f"early_stopping: {early_stopping!r} is not 'validation' or 'test'")
        losses = (self.val_loss if early_stopping == "validation" else self.test_loss)[1:]
        if not len(losses):
            return 0
        best = 0
        for e, loss in enumerate(losses):
            if loss < losses[best]:
                best = e
            elif patience is not None and e - best >= patience:
                break
        return best + 1


def log_loss(labels: NDArray[Any], logits: NDArray[Any]) -> float:
    """Mean binary cross-entropy of logits (N,) and labels (N,), 0 or 1."""
    return float(np.mean(np.logaddexp(0, logits.astype(float)) - labels * logits))


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an .npz whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp.npz")
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def save_run(run: Run, path: Path) -> None:
    """Store a run as .npz."""
    names = ("test", "logits", "maps", "val_loss", "test_loss", "offset", "gap")
    arrays = {name: getattr(run, name) for name in names} | {"run": np.array([run.seed, run.fold])}
    save_arrays(path, arrays | {f"extra/{name}": value for name, value in run.extras.items()})


def load_run(path: Path) -> Run:
    """Read a run."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    extras = {name.removeprefix("extra/"): arrays.pop(name) for name in list(arrays) if name.startswith("extra/")}
    seed, fold = (int(v) for v in arrays.pop("run"))
    return Run(seed=seed, fold=fold, extras=extras, **arrays)
