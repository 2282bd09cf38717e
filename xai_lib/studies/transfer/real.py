"""Study 4 on real images: the five folds of Tab. 2 with the controls it lacks, patch replacement, and Fig. 6.

Usage::

    real = RealTransfer(weights="mobilenet_v2.pth", padding="tensorflow")
    record, result = transfer_record(real, seed=0, runtime=runtime())          # BUSI under XAI_DATA_DIR

Of BUSI the benign and malignant images are used, with the groups of near-duplicates as patients. It is ultrasound, not
mammography, and masses are dark there: *Lesion* and *Background* are made of the negative. Where a window reaches over
the edge of an image the edge is repeated; a mirror would show a second mass that the mask does not have.

What cannot be had: confounders that are known or can be moved, and so claim 4.6 on them. The recipes of Tab. 1 are not
compared here.

Reference: Li et al. 2025, sections 3.3, 4.1, 4.2 and 5.
"""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from xai_lib import checkpoints, data, records
from xai_lib import knowledge_transfer as kt
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset, splits
from xai_lib.data.rois import rois
from xai_lib.models import Classifier
from xai_lib.patch_replacement import pixels_alone
from xai_lib.studies.mammograms.folds import Start
from xai_lib.studies.real_record import record_of
from xai_lib.studies.transfer.computed import PATCH, replaced_cells
from xai_lib.studies.transfer.inputs import METHODS, Settings, roi_stack
from xai_lib.studies.transfer.maps import PIXELS
from xai_lib.studies.transfer.scores import FINE, TRANSFER
from xai_lib.studies.transfer.summary import Summary, Tables, summarise
from xai_lib.studies.transfer.training import cross_validated, networks
from xai_lib.training import FitConfig, Stack

RECIPE = "mass_centred"
DARK = ("busi", "breast", "oasbud")  # data sets of ultrasound
IMAGENET, MAMMOGRAMS, RANDOM = "ImageNet", "mammograms", "random"


@dataclass(frozen=True)
class RealTransfer:
    """Settings. `weights` is the start "ImageNet"; `checkpoint` (``.safetensors``) the start "mammograms", if given.

    `fit` turns and flips by quarters, so that the frozen part is computed once for each image and position: 0.2 GB for
    BUSI. `size` is that of the networks of `lab`. `images` counts those that patch replacement looks at, at most.
    """

    dataset: str = "busi"
    root: str | None = None
    weights: str | None = "imagenet"
    padding: str = "torchvision"
    checkpoint: str | None = None
    architecture: str = "mobilenet_v2"
    size: int = 160
    folds: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(20, 32, 1e-3, 1e-4, "adamw", "constant", patience=5, augment="turn")
    )
    images: int = 40
    replicates: int = 1000

    @property
    def starts(self) -> dict[str, Settings]:
        """Settings of the trainings, by name of their start."""
        found = {IMAGENET: Start(self.architecture, self.weights, self.padding)}
        if self.checkpoint:
            found[MAMMOGRAMS] = Start(checkpoints.read_card(self.checkpoint)["architecture"], self.checkpoint)
        return {name: Settings(start, self.size, fit=self.fit) for name, start in found.items()}


def transfer_tables(
    real: RealTransfer, seed: int, runtime: Runtime, progress: bool = True
) -> tuple[Tables, CaseDataset]:
    """Train in folds from every start, replace patches of unseen images, and measure the distances of Fig. 6.

    Returns:
        The tables (folds, distances and cells), and the ROIs. The images of `cells` are those of fold 0; the networks
        start from the last start and have learned from the other folds.
    """
    dataset = rois(data.load(real.dataset, real.root), RECIPE, real.size)
    stack = roi_stack(dataset, real.size, progress)
    folds = []
    for name, chosen in real.starts.items():
        options: dict[str, Any] = {"split_seed": seed, "distances": True, "progress": progress}
        found = cross_validated(chosen, dataset, runtime, METHODS, real.seeds, real.folds, **options)
        folds.append(found.assign(start=name))
    disc = pd.Series(_disc(stack), dataset.table["source"])
    table = pd.concat(folds, ignore_index=True)
    return Tables(
        table.assign(disc=table["case"].map(disc)),
        distances=_distances(real, dataset, stack, seed, runtime),
        cells=_cells(real, dataset, seed, runtime, progress),
    ), dataset


def _disc(stack: Stack) -> np.ndarray:
    """Share of a centred disc, as large as the mean mask, that lies inside each mask, (N,)."""
    masks = stack.images[:, 1] > 0
    disc = kt.centred_disc(masks.shape[-1], min(float(masks.float().mean()), np.pi / 4))
    return kt.share_inside(disc.float().expand(len(masks), -1, -1), masks).numpy()


def _random(real: RealTransfer, seed: int) -> Classifier:
    return Start(real.architecture, None, real.padding).build(seed + 1)


def _distances(real: RealTransfer, dataset: CaseDataset, stack: Stack, seed: int, runtime: Runtime) -> pd.DataFrame:
    """Fig. 6: distance of image and mask after every group of the networks before training, and of a random one."""
    nets = {name: chosen.start.build(seed) for name, chosen in real.starts.items()} | {RANDOM: _random(real, seed)}
    facts, frames = _facts(dataset), []
    for name, net in nets.items():
        by_form = {form: _by_group(net.to(runtime.device), stack, form) for form in kt.FORMS}
        for group in by_form[kt.FORMS[0]]:
            frames.append(facts.assign(network=name, group=group, **{form: by_form[form][group] for form in kt.FORMS}))
    return pd.concat(frames, ignore_index=True)


def _by_group(net: Classifier, stack: Stack, form: str) -> dict[str, np.ndarray]:
    """`group_distances` in parts that fit into memory."""
    found: dict[str, list[np.ndarray]] = {}
    for part in stack.images.split(32):
        x = part.to(net.head.weight.device).float() / 255
        for group, values in kt.group_distances(net, x[:, :1], x[:, 1:], form).items():
            found.setdefault(group, []).append(values.cpu().numpy())
    return {group: np.concatenate(parts) for group, parts in found.items()}


def _cells(real: RealTransfer, dataset: CaseDataset, seed: int, runtime: Runtime, progress: bool) -> pd.DataFrame:
    """Patch replacement in images that the networks have not seen, a row for each network and cell."""
    test = splits.fold_parts(dataset, real.folds, seed)[0]["test"]
    rest = np.setdiff1d(np.arange(len(dataset)), test)
    chosen = list(real.starts.values())[-1]
    methods = {name: METHODS[name] for name in (TRANSFER, FINE)}
    nets: dict[str, nn.Module] = dict(networks(chosen, dataset.subset(rest), runtime, methods, seed, progress))
    nets |= {"start": chosen.start.build(seed), RANDOM: _random(real, seed), PIXELS: pixels_alone(PATCH)}
    nets = {name: net.to(runtime.device).eval() for name, net in nets.items()}
    found = replaced_cells(nets, dataset, test[: real.images], real.dataset in DARK, progress)
    return found.merge(_facts(dataset), on="case", validate="many_to_one")


def _facts(dataset: CaseDataset) -> pd.DataFrame:
    return dataset.table[["source", "patient_id", "label"]].rename(columns={"source": "case"})


def transfer_record(
    real: RealTransfer, seed: int, runtime: Runtime, command: str = "", progress: bool = True
) -> tuple[records.Record, Summary]:
    """Carry the study out and put what it says into a record."""
    started = time.perf_counter()
    tables, dataset = transfer_tables(real, seed, runtime, progress)
    result = summarise(tables, real.replicates, seed)
    known: dict[str, Any] = asdict(real)
    record = record_of(
        result,
        dataset,
        name=real.dataset,
        study="04_knowledge_transfer_densenet",
        title="Knowledge transfer from masks: does it help, and what does the help come from?",
        parameters={
            "backbone": real.architecture,
            "transfer": "last group and classifier",
            "starts": list(real.starts),
            "epochs": real.fit.epochs,
            "recipe": RECIPE,
            **{name: known[name] for name in ("padding", "size", "folds", "seeds", "images")},
        },
        seed=seed,
        started=started,
        command=command,
    )
    return record, result
