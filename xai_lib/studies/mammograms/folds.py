"""Studies 1 and 2 on real data: networks trained in folds over patients, and their test images.

Usage::

    start = Start("mobilenet_v2", weights="imagenet.pth", padding="tensorflow")
    folds = cross_validate(dataset, stack, start, config, seed=0, runtime=runtime())
    folds.logits                                  # (N, 2): every image by the network that has not seen its patient
    model = folds.model(0)                        # the network of fold 0, which was tested on folds.parts[0]["test"]

A training that was killed goes on from its last epoch, and a finished fold is read from the cache.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from xai_lib import checkpoints, models, training
from xai_lib.config import Runtime, cache_dir
from xai_lib.data import CaseDataset, splits
from xai_lib.data.case import file_digest
from xai_lib.studies.mammograms.networks import fresh
from xai_lib.training import FitConfig, Stack


@dataclass(frozen=True)
class Start:
    """What a network starts from: the arguments of `networks.fresh`, or a checkpoint (``.safetensors``)."""

    architecture: str = "mobilenet_v2"
    weights: str | None = None
    padding: str = "torchvision"

    def build(self, seed: int) -> models.Classifier:
        """The network before training."""
        if str(self.weights).endswith(checkpoints.SUFFIXES):
            return checkpoints.load(str(self.weights), expect={"architecture": self.architecture})[0]
        return fresh(self.architecture, self.weights, seed, self.padding)

    @property
    def key(self) -> dict[str, Any]:
        """What determines the network: a file counts by its bytes, not by its name."""
        path = Path(self.weights) if self.weights else None
        return asdict(self) | {"weights": file_digest(path) if path and path.is_file() else self.weights}


@dataclass(frozen=True)
class Folds:
    """Trained folds: `parts` (train, val and test indices of each), `logits` (N, 2), `fold_of` (N,), and the files.

    Logits are (N,) from networks with one output.
    """

    parts: list[dict[str, NDArray[np.int64]]]
    logits: NDArray[np.float32]
    fold_of: NDArray[np.int64]
    files: list[Path]

    def model(self, fold: int) -> models.Classifier:
        """The network of a fold, in eval mode."""
        return checkpoints.load(self.files[fold])[0]

    @property
    def scores(self) -> NDArray[np.float32]:
        """Log odds of malignant (N,)."""
        return training.scores(self.logits)


def cross_validate(
    dataset: CaseDataset,
    images: Stack,
    start: Start,
    config: FitConfig,
    seed: int,
    runtime: Runtime,
    folds: int = 5,
    progress: bool = True,
) -> Folds:
    """Grouped, stratified cross-validation; within a fold 80 % of the other patients train and 20 % stop.

    Args:
        dataset: the cases.
        images: the same cases in memory.
        start: what the networks start from.
        config: training settings.
        seed: of folds, heads and training.
        runtime: device and precision of the training; the logits are computed in float32.
        folds: how many.
        progress: show bars.
    """
    what = [start.key, asdict(config), dataset.fingerprint, list(images.images.shape[1:]), folds, seed, runtime.bf16]
    folder = cache_dir() / "mammograms" / sha256(json.dumps(what).encode()).hexdigest()[:16]
    parts, files = splits.fold_parts(dataset, folds, seed), []
    found, fold_of = {}, np.full(len(images), -1)
    exact = Runtime(runtime.device, runtime.threads, False, runtime.channels_last)
    for fold, part in enumerate(tqdm(parts, desc="folds", disable=not progress)):
        file = folder / f"fold{fold}.safetensors"
        if not file.is_file():
            model = start.build(seed)
            train, val = images.subset(part["train"]), images.subset(part["val"])
            state = folder / f"part{fold}.safetensors"
            training.fit(model, train, val, config, runtime, seed, state, progress=progress)
            checkpoints.save(model, file, {"seed": seed, "fold": fold, "data": dataset.fingerprint})
        model, _ = checkpoints.load(file)
        test = part["test"]
        found[fold] = training.predict(model.to(runtime.device), images.subset(test), exact)
        fold_of[test] = fold
        files.append(file)
    logits = np.full((len(images), *found[0].shape[1:]), np.nan, np.float32)
    for fold, part in enumerate(parts):
        logits[part["test"]] = found[fold]
    return Folds(parts, logits, fold_of, files)
