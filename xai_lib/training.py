"""One training loop for every study: mixed precision, early stopping, a progress bar, and resuming after a kill.

Usage::

    images = stack(dataset, size=224)                       # whole data set in memory, 8 bit
    result = fit(model, images.subset(train), images.subset(val), FitConfig(epochs=30), runtime(), seed=0)
    logits = predict(model, images, runtime())

The random numbers of epoch e depend on the seed and on e alone, so a run that was killed and resumed ends with the
same weights as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from xai_lib import statistics, training_state
from xai_lib.augmentations import AUGMENTATIONS
from xai_lib.config import Runtime, torch_generator
from xai_lib.data.images import resize
from xai_lib.losses import LOSSES, loss
from xai_lib.schedules import SCHEDULES, learning_rate


@dataclass(frozen=True)
class Stack:
    """Images of a data set, resized and in memory: `images` (N, C, S, S), `labels` int64 (N).

    Images are uint8, which networks see divided by 255, or floating-point numbers, which they see as they are.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Any) -> "Stack":
        """The images at `indices`: whole numbers, or one boolean per image."""
        index = np.asarray(indices)
        where = torch.from_numpy(np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64))
        return Stack(self.images[where], self.labels[where])

    def batches(self, size: int, runtime: Runtime) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order, as float32 on the runtime's device; images of 8 bits in [0, 1]."""
        for start in range(0, len(self), size):
            yield _to_device(self, slice(start, start + size), runtime)


def stack(dataset: Dataset[Any], size: int | tuple[int, int] = 224, progress: bool = True) -> Stack:
    """Read every case of `dataset`, resize to `size` (bilinear, antialiased; one number: square), keep as 8 bit."""
    images, labels = [], []
    for i in tqdm(range(len(dataset)), desc="images", disable=not progress, leave=False):  # type: ignore[arg-type]
        case = dataset[i]
        images.append((resize(case.image, size) * 255).round().clamp(0, 255).to(torch.uint8))
        labels.append(-1 if case.label is None else case.label)
    if not images:
        raise ValueError("dataset: it is empty")
    return Stack(torch.stack(images), torch.tensor(labels))


def _to_device(data: Stack, index: Any, runtime: Runtime) -> tuple[Tensor, Tensor]:
    images = data.images[index].to(runtime.device)
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout), data.labels[index].to(runtime.device)


OPTIMIZERS = ("adam", "adamw", "sgd")
Objective = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FitConfig:
    """Settings of `fit`. The defaults are those of Byra et al. 2022: Adam 1e-3, batch 12, patience 8.

    `patience` epochs without a lower loss on the stopping set end the training; None trains all `epochs`. The weights
    of the epoch with the lowest loss are kept (`keep="best"`) or those of the last one (`keep="last"`).
    `positive_weight` is the weight of label 1 in the loss. `group` consecutive images (2: an image and its healthy
    twin) stay together in a batch.
    """

    epochs: int = 60
    batch_size: int = 12
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    optimizer: str = "adam"  # adam | adamw | sgd
    schedule: str = "constant"  # constant | cosine | onecycle | plateau | warm_restarts
    patience: int | None = 8
    keep: str = "best"  # best | last
    augment: str = "ultrasound"  # a name in augmentations.AUGMENTATIONS
    loss: str = "cross_entropy"  # cross_entropy | focal
    positive_weight: float = 1.0
    group: int = 1

    def __post_init__(self) -> None:
        choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "keep": ("best", "last")}
        choices |= {"augment": tuple(AUGMENTATIONS), "loss": LOSSES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        for name in ("learning_rate", "positive_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")
        if self.group < 1 or self.batch_size % self.group:
            raise ValueError(f"group: {self.group} does not divide the batch_size {self.batch_size}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience: {self.patience} is below 1; None trains all epochs")


@dataclass(frozen=True)
class FitResult:
    """What `fit` did: one row per epoch (`train_loss, loss, auc, seconds`), the kept epoch (from 1), the time."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    stopped_early: bool = False


def predict(model: nn.Module, data: Stack, runtime: Runtime, batch_size: int = 32) -> np.ndarray:
    """Logits (N,) of a network with one output, (N, outputs) otherwise; float32, eval mode, mode restored."""
    was_training = model.training
    model.eval()
    with torch.inference_mode(), runtime.autocast():
        out = torch.cat([model(x).float().cpu() for x, _ in data.batches(batch_size, runtime)])
    model.train(was_training)
    return out.squeeze(1).numpy() if out.shape[1] == 1 else out.numpy()


def scores(logits: NDArray[Any]) -> NDArray[Any]:
    """Log odds (N,) of label 1 from logits (N,) of one output or (N, 2) of two."""
    return logits if logits.ndim == 1 else logits[:, 1] - logits[:, 0]


def _evaluate(model: nn.Module, data: Stack, config: FitConfig, runtime: Runtime) -> tuple[float, float]:
    """Loss, and AUC (one or two outputs and both classes present; else NaN)."""
    logits = predict(model, data, runtime)
    both = torch.from_numpy(logits).reshape(len(data), -1)
    value = float(loss(both, data.labels, config.loss, config.positive_weight))
    if not math.isfinite(value):
        raise FloatingPointError("the loss on the stopping set is not finite; try a lower learning_rate")
    binary = both.shape[1] < 3 and len(data.labels.unique()) == 2
    return value, statistics.auc(data.labels.numpy(), scores(logits)) if binary else math.nan


def _optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)
    make = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return make(weights, config.learning_rate, weight_decay=config.weight_decay)


def _augmented(images: Tensor, config: FitConfig, generator: torch.Generator) -> Tensor:
    """A batch with random changes, the same for all images of a group: they become channels of one image."""
    groups = images.unflatten(0, (-1, config.group)).flatten(1, 2)  # (N / group, group * C, H, W)
    changed = AUGMENTATIONS[config.augment](groups, generator)
    return changed.unflatten(1, (config.group, -1)).flatten(0, 1)


def _train_epoch(
    model: nn.Module,
    data: Stack,
    config: FitConfig,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    seed: int,
    history: list[dict[str, float]],
    objective: Objective | None = None,
) -> float:
    """One pass over `data`, the epoch after those of `history`; returns the mean loss."""
    e, losses = len(history), [row["loss"] for row in history]
    generator = torch_generator(seed, "epoch", e)
    groups = torch.randperm(len(data) // config.group, generator=generator)
    order = (groups[:, None] * config.group + torch.arange(config.group)).flatten()
    starts = range(0, len(order), config.batch_size)
    model.train()
    total = 0.0
    for k, start in enumerate(starts):
        for group in optimizer.param_groups:
            now = e + k / len(starts)
            group["lr"] = learning_rate(config.schedule, config.learning_rate, now, config.epochs, losses)
        images, labels = _to_device(data, order[start : start + config.batch_size], runtime)
        if len(images) == 1 < config.batch_size:
            continue  # batch normalisation cannot train on the single image that is left over
        images = _augmented(images, config, generator)
        with runtime.autocast():
            logits, term = objective(model, images) if objective else (model(images), 0.0)
        value = loss(logits, labels, config.loss, config.positive_weight) + term
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        total += value.item() * len(images)
    if not math.isfinite(total):
        raise FloatingPointError(f"the training loss is not finite in epoch {e + 1}; try a lower learning_rate")
    return total / len(order)


def fit(
    model: nn.Module,
    train: Stack,
    val: Stack,
    config: FitConfig,
    runtime: Runtime,
    seed: int,
    state: str | Path | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    progress: bool = True,
    objective: Objective | None = None,
) -> FitResult:
    """Train `model` in place and leave the kept epoch's weights in it.

    Args:
        model: network with one output (labels 0 and 1) or several.
        train: images to learn from.
        val: the stopping set: a validation set, or, to repeat Byra et al. 2022, the test set.
        config: settings.
        runtime: device and precision.
        seed: of order and augmentation.
        state: file to continue from if it exists, rewritten after each epoch and removed at the end.
        on_epoch: called with the number of finished epochs and the model, also before the first (0). An epoch counts
            as finished when this returns: after a kill inside it, the epoch is trained and reported again.
        progress: show a bar with loss and AUC.
        objective: called with the model and a batch (N, C, S, S) after augmentation; gives the logits and a term that
            is added to the loss in training. None: the model's logits and 0. `state` does not know it.

    Raises:
        ValueError: an empty set, images without a label, one class only or a part of a group in `train`, or a `state`
            that is damaged or of another training.
        FloatingPointError: a loss is not finite.
    """
    _check(train, val, config.group)
    began = time.perf_counter()
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    model.to(runtime.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = _optimizer(model, config)
    path = Path(state) if state else None
    own = {"config": asdict(config), "seed": seed}
    history: list[dict[str, float]] = []
    best = training_state.copy(model)
    if path and path.is_file():
        history, best = training_state.resume(path, model, optimizer, own)
    if on_epoch and not history:
        on_epoch(0, model)
    bar = tqdm(range(len(history), config.epochs), desc="training", disable=not progress, leave=False)
    for e in bar:
        if _patience_over(history, config):
            break
        tick = time.perf_counter()
        train_loss = _train_epoch(model, train, config, optimizer, runtime, seed, history, objective)
        val_loss, auc = _evaluate(model, val, config, runtime)
        history.append(dict(train_loss=train_loss, loss=val_loss, auc=auc, seconds=time.perf_counter() - tick))
        bar.set_postfix(train=f"{train_loss:.3f}", stop=f"{val_loss:.3f}", auc=f"{auc:.3f}")
        if _best_epoch(history) == len(history) or config.keep == "last":
            best = training_state.copy(model)
        if on_epoch:
            on_epoch(e + 1, model)
        if path:
            training_state.save(path, model, optimizer, best, history, own)
    model.load_state_dict({**model.state_dict(), **best})
    model.eval()
    if path:
        path.unlink(missing_ok=True)
    kept = _best_epoch(history) if config.keep == "best" else len(history)
    return FitResult(history, kept, time.perf_counter() - began, len(history) < config.epochs)


def _check(train: Stack, val: Stack, group: int) -> None:
    """Refuse sets that cannot be trained or stopped on."""
    for name, data in (("train", train), ("val", val)):
        if not len(data):
            raise ValueError(f"{name}: it is empty")
        if (data.labels < 0).any():
            raise ValueError(f"{name}: {int((data.labels < 0).sum())} of {len(data)} images have no label")
    if len(train.labels.unique()) < 2:
        raise ValueError("train: it holds one class only")
    if len(train) % group:
        raise ValueError(f"train: {len(train)} images do not make whole groups of {group}")


def _best_epoch(history: list[dict[str, float]]) -> int:
    """Epoch (from 1) of the lowest loss; the first of equal ones."""
    return 1 + min(range(len(history)), key=lambda i: history[i]["loss"])


def _patience_over(history: list[dict[str, float]], config: FitConfig) -> bool:
    return bool(history) and config.patience is not None and len(history) - _best_epoch(history) >= config.patience
