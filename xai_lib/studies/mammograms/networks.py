"""Studies 1 and 2, the networks: what they learn from, and how they are trained on synthetic mammograms.

Usage::

    images = patch_images(PATCHES, seed=0)                              # study 1: lesion-centred patches
    model, history = train_patches(PATCHES, "resnet50", images, 0, runtime())
    images = whole_images(WHOLE, seed=0)                                # study 2: whole mammograms
    model, history = train_whole(WHOLE, images, 0, runtime())

The malignant training images come with their healthy twins: the pair differs in nothing but the lesion, so the
gradient is about the lesion. On whole images a pair shares its batch, flipped alike, each with its own gain. Stopping
and testing sets have no pairs: there the two classes are different breasts. Study 2's network sees patches first.

Reference: Sam-Millan et al. 2023, sections 3.2.2 (patches) and 3.2.3 (whole mammograms).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.ops import StochasticDepth

from xai_lib import data, models, training
from xai_lib.config import Runtime, numpy_generator, torch_generator
from xai_lib.data import CaseDataset, splits
from xai_lib.data.synthetic.mammogram_patches import patches
from xai_lib.training import FitConfig, FitResult, Stack

SYNTHETIC = "synthetic_mammogram"


@dataclass(frozen=True)
class PatchSettings:
    """Study 1; patches are cut from images of `image_size`.

    `fit` is 3.2.2's but for the schedule: a lab run is too short for the loss to reach a plateau.
    """

    patients: int = 400
    image_size: tuple[int, int] = (1024, 512)
    size: int = 224
    contrast: tuple[float, float] = (0.20, 0.45)
    benign: float = 0.0
    parts: tuple[float, float, float] = (0.80, 0.10, 0.10)
    architectures: tuple[str, ...] = ("resnet50", "mobilenet_v2")
    weights: str | None = None
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=6, batch_size=32, learning_rate=1e-3, schedule="onecycle", patience=None, augment="patch"
        )
    )


@dataclass(frozen=True)
class WholeSettings:
    """Study 2. `patch_fit` trains on squares of `patch` pixels, `fit` on whole images.

    `fit` is 3.2.3's but for the schedule: a lab run is shorter than the first cycle of warm restarts.
    """

    patients: int = 500
    size: tuple[int, int] = (512, 256)
    contrast: tuple[float, float] = (0.20, 0.45)
    benign: float = 0.0
    parts: tuple[float, float, float] = (0.80, 0.10, 0.10)
    architecture: str = "efficientnet_b0"
    weights: str | None = None
    patch: int = 112
    jitter: int = 10
    copies: int = 2
    patch_fit: FitConfig | None = field(
        default_factory=lambda: FitConfig(
            epochs=3,
            batch_size=32,
            learning_rate=2e-3,
            optimizer="adamw",
            weight_decay=0.01,
            schedule="onecycle",
            patience=None,
            keep="last",
            augment="patch",
        )
    )
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            epochs=3,
            batch_size=16,
            learning_rate=0.01,
            weight_decay=1e-4,
            optimizer="sgd",
            schedule="cosine",
            patience=None,
            augment="mammogram",
            group=2,
        )
    )


@dataclass(frozen=True)
class Images:
    """A data set, its parts by patient, and the parts' images in memory, "train" (in pairs for study 2) and "val"."""

    dataset: CaseDataset
    parts: Mapping[str, NDArray[np.int64]]
    stacks: Mapping[str, Stack]
    centres: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


def cases(chosen: PatchSettings | WholeSettings, seed: int, twins: bool = False) -> CaseDataset:
    """The synthetic mammograms of a study, or their healthy twins."""
    size = chosen.image_size if isinstance(chosen, PatchSettings) else chosen.size
    return data.load(
        SYNTHETIC,
        seed=seed,
        twins=twins,
        patients=chosen.patients,
        size=size,
        contrast=chosen.contrast,
        benign=chosen.benign,
    )


def split(chosen: PatchSettings | WholeSettings, dataset: CaseDataset, seed: int) -> dict[str, NDArray[np.int64]]:
    """Indices of train, val and test; patients stay whole."""
    parts = splits.by_patient(dataset, dict(zip(("train", "val", "test"), chosen.parts, strict=True)), seed)
    splits.check_disjoint(dataset, **parts)
    return parts


def fresh(
    architecture: str, weights: str | None, seed: int, padding: str = "torchvision", outputs: int = 2
) -> models.Classifier:
    """A network without stochastic depth, drawn from `seed`; its two outputs are "not malignant" and "malignant"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(numpy_generator(seed, "weights").integers(2**62)))  # torchvision draws globally
        model = models.build(architecture, outputs=outputs, weights=weights, padding=padding)
    models.reset_head(model, torch_generator(seed, "head"))
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    return model


# ---------------------------------------------------------------------------------------- study 1


def patch_images(chosen: PatchSettings, seed: int, progress: bool = True) -> Images:
    """Patches with a lesion, or a place where one could be, in the middle: training pairs and a stopping set."""
    cut, twins = (patches(cases(chosen, seed, twins=healthy), chosen.size) for healthy in (False, True))
    parts = split(chosen, cut, seed)
    stack, _ = pairs(cut, twins, parts["train"], chosen.size, progress)
    return Images(cut, parts, {"train": stack, "val": training.stack(cut.subset(parts["val"]), chosen.size, progress)})


def pairs(
    dataset: CaseDataset, twins: CaseDataset, indices: NDArray[np.int64], size: int | tuple[int, int], progress: bool
) -> tuple[Stack, NDArray[np.int64]]:
    """Each case at `indices` with label 1, then its healthy twin; and the indices of those cases."""
    malignant = indices[dataset.labels[indices] == 1]
    sick, healthy = (training.stack(part.subset(malignant), size, progress) for part in (dataset, twins))
    images = torch.stack((sick.images, healthy.images), 1).flatten(0, 1)
    return Stack(images, torch.stack((sick.labels, healthy.labels), 1).flatten()), malignant


def train_patches(
    chosen: PatchSettings,
    architecture: str,
    images: Images,
    seed: int,
    runtime: Runtime,
    state: str | Path | None = None,
    progress: bool = True,
) -> tuple[models.Classifier, FitResult]:
    """Train one of study 1's networks (3.2.2)."""
    model = fresh(architecture, chosen.weights, seed)
    train, val = images.stacks["train"], images.stacks["val"]
    return model, training.fit(model, train, val, chosen.fit, runtime, seed, state, progress=progress)


# ---------------------------------------------------------------------------------------- study 2


def whole_images(chosen: WholeSettings, seed: int, progress: bool = True) -> Images:
    """Training pairs (a malignant image, then its healthy twin) and an unpaired stopping set."""
    dataset, twins = cases(chosen, seed), cases(chosen, seed, twins=True)
    parts = split(chosen, dataset, seed)
    stack, malignant = pairs(dataset, twins, parts["train"], chosen.size, progress)
    val = training.stack(dataset.subset(parts["val"]), chosen.size, progress)
    centre = dataset.table[["centre_row", "centre_col"]].to_numpy(np.int64)
    centres = {"train": centre[malignant].repeat(2, 0), "val": centre[parts["val"]]}
    return Images(dataset, parts, {"train": stack, "val": val}, centres)


def train_whole(
    chosen: WholeSettings,
    images: Images,
    seed: int,
    runtime: Runtime,
    state: str | Path | None = None,
    progress: bool = True,
) -> tuple[models.Classifier, dict[str, FitResult]]:
    """Train study 2's network (3.2.3): on patches first if `patch_fit` is set, then on whole images."""
    model = fresh(chosen.architecture, chosen.weights, seed)
    results = {}
    if chosen.patch_fit is not None:
        rng, cut = numpy_generator(seed, "patches"), (chosen.patch, chosen.jitter, chosen.copies)
        stacks = {
            "train": cut_patches(images.stacks["train"], images.centres["train"], *cut, rng, elsewhere=True),
            "val": cut_patches(images.stacks["val"], images.centres["val"], *cut, rng),
        }
        file = f"{state}-patches.safetensors" if state else None
        results["patches"] = training.fit(
            model, stacks["train"], stacks["val"], chosen.patch_fit, runtime, seed, file, progress=progress
        )
    file = f"{state}-whole.safetensors" if state else None
    train, val = images.stacks["train"], images.stacks["val"]
    results["whole"] = training.fit(model, train, val, chosen.fit, runtime, seed, file, progress=progress)
    return model, results


def cut_patches(
    stack: Stack,
    centres: NDArray[np.int64],
    size: int,
    jitter: int,
    copies: int,
    rng: np.random.Generator,
    elsewhere: bool = False,
) -> Stack:
    """`copies` squares of `size` pixels of every image, each around its centre (row, col) and `jitter` off at most.

    With `elsewhere` half of the healthy patches lie where another image has its lesion.
    """
    half, images = size // 2, functional.pad(stack.images, [size] * 4)
    found: list[Tensor] = []
    for _ in range(copies):
        where = centres + rng.integers(-jitter, jitter + 1, centres.shape)
        if elsewhere:
            moved = (stack.labels.numpy() == 0) & (rng.random(len(stack)) < 0.5)
            where[moved] = rng.permutation(where)[moved]
        corners = where + size - half
        found += [
            image[:, row : row + size, col : col + size] for image, (row, col) in zip(images, corners, strict=True)
        ]
    return Stack(torch.stack(found), stack.labels.repeat(copies))
