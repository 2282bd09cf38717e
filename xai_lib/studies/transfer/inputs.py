"""Study 4, what goes into a training: settings, methods, and images with their masks as networks get them.

Usage::

    chosen = Settings(Start("densenet121", "imagenet"))
    stack = roi_stack(dataset, chosen.size)                                   # (N, 2, S, S): image and mask
    network = reader(chosen, seed=0)
    found = inputs(network, stack, chosen, runtime())

Where a network's input is turned by quarter turns only (``augment="turn"``), or not at all, the frozen part is computed
once for each image and position, and shared by all methods, folds and (with given weights) seeds. With other
augmentations it runs anew in every epoch; it needs no gradient, so nothing is kept of it.

Reference: Li et al. 2025, sections 3.3, 4.1 and 5.1.1.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from xai_lib import knowledge_transfer as kt
from xai_lib import models
from xai_lib.augmentations import TURNS, turned
from xai_lib.config import Runtime, numpy_generator, torch_generator
from xai_lib.data import CaseDataset
from xai_lib.data.images import resize
from xai_lib.studies.mammograms.folds import Start
from xai_lib.training import FitConfig, Stack

AUGMENTED = ("roi", "roi_gain", "turn", "none")
TEACHERS = ("masks", "shuffled", "disc", "untrained")


@dataclass(frozen=True)
class Settings:
    """What all methods share. `train_from` is the first group that trains, or "all"; `size` the side of the images.

    The paper gives no optimiser, rate, batch or number of epochs. Ours: Adam at 1e-4, usual for the end of a trained
    network; batches of 16; the epoch of the lowest validation loss, and an end after 8 epochs without a lower one.
    """

    start: Start = field(default_factory=lambda: Start("densenet121", "imagenet"))
    size: int = 224
    train_from: str = "group4"
    pre_norm: bool = False
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=40, batch_size=16, learning_rate=1e-4, patience=8, augment="roi")
    )

    def __post_init__(self) -> None:
        if self.fit.augment not in AUGMENTED:
            raise ValueError(f"augment: {self.fit.augment!r} does not suit masks, expected {', '.join(AUGMENTED)}")

    @property
    def cached(self) -> bool:
        """Whether the frozen part is computed once for each image."""
        return self.train_from != kt.ALL and self.fit.augment in ("turn", "none")


@dataclass(frozen=True)
class Method:
    """How a network is trained: what it reads ("image" | "mask"), equation 5's beta and groups, equation 4's form.

    `teacher` says what the teacher sees: "masks", each case's own; "shuffled", another training case's; "disc", the
    same centred disc; or "untrained": the own mask, but the teacher is the network before training.
    """

    beta: float = 0.0
    groups: tuple[str, ...] = ("group4",)
    form: str = "printed"
    teacher: str = "masks"
    reads: str = "image"

    def __post_init__(self) -> None:
        for name, known in (("form", kt.FORMS), ("teacher", TEACHERS), ("reads", kt.READS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        if not self.beta >= 0 or (self.beta > 0 and not self.groups):
            raise ValueError(f"beta: {self.beta} with groups {self.groups}; expected at least 0, with a group if above")
        if self.beta and self.reads == "mask":
            raise ValueError(f"beta: {self.beta} for a network that reads masks; nothing is transferred to it")

    @property
    def key(self) -> dict[str, Any]:
        """What the result depends on: without a transfer, nothing about it."""
        return asdict(self if self.beta else Method(reads=self.reads))


BETA = 10.0
METHODS = {
    "fine-tuning": Method(),
    "transfer": Method(BETA),
    "shuffled masks": Method(BETA, teacher="shuffled"),
    "centred disc": Method(BETA, teacher="disc"),
    "untrained teacher": Method(BETA, teacher="untrained"),
    "masks": Method(reads="mask"),
}


# ---------------------------------------------------------------------------------------- images with masks


def roi_stack(dataset: CaseDataset, size: int = 224, progress: bool = True) -> Stack:
    """Read every case: image (bilinear, antialiased) and mask (nearest) as two channels, (N, 2, size, size) uint8.

    Raises:
        ValueError: a case without a label or a mask, a mask that is not of the image's size, not binary, empty or full;
            the message names the case.
    """
    pairs, labels = [], []
    for i in tqdm(range(len(dataset)), desc="images", disable=not progress, leave=False):
        case = dataset[i]
        if case.label is None:
            raise ValueError(f"{case.source}: it has no label")
        mask = _binary(case.mask, case.image, case.source)
        small = nn.functional.interpolate(mask[None, None].float(), (size, size), mode="nearest-exact")[0]
        pairs.append((torch.cat((resize(case.image, size), small)) * 255).round().clamp(0, 255).to(torch.uint8))
        labels.append(case.label)
    return Stack(torch.stack(pairs), torch.tensor(labels))


def _binary(mask: Tensor | None, image: Tensor, source: str) -> Tensor:
    """The mask as bool (H, W), or a refusal."""
    if mask is None:
        raise ValueError(f"{source}: it has no mask; knowledge transfer needs one for every case")
    if mask.shape != image.shape[-2:]:
        raise ValueError(f"{source}: the mask has shape {tuple(mask.shape)}, the image {tuple(image.shape[-2:])}")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{source}: the mask is not binary, it has other values than 0 and 1")
    if not mask.any() or mask.all():
        raise ValueError(f"{source}: the mask is {'full' if mask.any() else 'empty'}")
    return mask.bool()


# ---------------------------------------------------------------------------------------- what networks get


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images, masks and one centred disc: pixels, uint8, or the frozen part's output in k positions, float16.

    `image` and `mask` (N, k, C, H, W), `disc` (1, k, C, H, W), `labels` (N).
    """

    image: Tensor
    mask: Tensor
    disc: Tensor
    labels: Tensor

    def first_position(self, index: NDArray[np.int64]) -> Stack:
        """Image and mask of the cases at `index` (M,), as they are: a stack of M times both, one behind the other."""
        pair = torch.stack((self.image[index, :1], self.mask[index, :1]), 2)
        return Stack(pair.flatten(1, 3), self.labels[index])

    def guided(self, index: NDArray[np.int64], teacher: str, seed: int) -> Stack:
        """The cases at `index` (M,) in all positions, each with the mask that this kind of teacher looks at."""
        mask = self.mask[index]
        if teacher == "disc":
            mask = self.disc.expand_as(mask)
        if teacher == "shuffled":  # everybody gets the mask of the next one in a random ring: nobody keeps its own
            ring = torch.from_numpy(numpy_generator(seed, "shuffled masks").permutation(len(index)))
            mask = mask[ring.roll(1)[ring.argsort()]]
        return Stack(torch.stack((self.image[index], mask), 2).flatten(1, 3), self.labels[index])


def reader(settings: Settings, seed: int, reads: str = "image") -> kt.Reader:
    """The network before training, in eval mode: the start's weights, and a head drawn from `seed`."""
    model = settings.start.build(seed)
    models.reset_head(model, torch_generator(seed, "head"))
    return kt.Reader(model, settings.train_from, settings.pre_norm, reads, settings.cached)


def inputs(network: kt.Reader, stack: Stack, settings: Settings, runtime: Runtime, trains: bool = True) -> Inputs:
    """What `network` and every network with the same frozen part get of a data set.

    The disc covers as much as the mean mask of the data set. Of a data set that is only tested (`trains` False) the
    frozen part is computed in one position.
    """
    image, mask = stack.images.split(1, 1)
    disc = kt.centred_disc(mask.shape[-1], min(float((mask > 0).float().mean()), math.pi / 4))
    pixels = (image, mask, 255 * disc[None, None].to(torch.uint8))
    if settings.cached:
        network.to(runtime.device)
        positions = range(TURNS if trains and settings.fit.augment == "turn" else 1)
        image, mask, disc = (_positions(network, part, positions, runtime) for part in pixels)
    else:
        image, mask, disc = (part[:, None] for part in pixels)
    return Inputs(image, mask, disc, stack.labels)


def _positions(network: kt.Reader, pixels: Tensor, positions: Iterable[int], runtime: Runtime) -> Tensor:
    """Frozen part's output for pixels (N, 1, S, S) in each position: (N, k, C, H, W), float16."""
    done = []
    with torch.no_grad():
        for part in pixels.split(32):
            x = part.to(runtime.device).float() / 255
            done.append(torch.stack([network.frozen_output(turned(x, n)).half().cpu() for n in positions], 1))
    return torch.cat(done)
