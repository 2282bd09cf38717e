"""Study 4, the settings: what a profile means, the images, and the networks that its figures are made with.

Usage::

    study = settings("lab")
    ready = prepare(study, seed=0, runtime=runtime(), folder="outputs")      # the shipped networks, or trained anew
    ready.networks["transfer"]                                               # start, masks, fine-tuning and transfer
    ready.sets["moved"]["shifted"]                                           # masses 10 mm off the middle

The paper's mammograms are not free to ship, so `lab` has as many synthetic masses (two views of each) as the paper has
lesions. Its network, DenseNet121, starts from other synthetic masses, in the place of DDSM. The weights of ImageNet are
not shipped either: of the start ``ImageNet`` (a MobileNetV2) `lab` has the results, and a file repeats them.

Reference: Li et al. 2025, sections 3 and 4.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from xai_lib import checkpoints, models
from xai_lib.config import Runtime, profile, repository_dir
from xai_lib.data import CaseDataset
from xai_lib.data.case import Case
from xai_lib.data.synthetic.mammogram_masses import confounders, load_synthetic_masses
from xai_lib.studies.mammograms.folds import Start
from xai_lib.studies.transfer.inputs import METHODS, Method, Settings
from xai_lib.studies.transfer.training import networks
from xai_lib.training import FitConfig

IMAGENET, MAMMOGRAMS = "ImageNet", "mammograms"
KEPT = ("fine-tuning", "transfer", "masks")  # networks that are stored, beside the start
# sha256 of the file of ImageNet weights that the shipped results were made with
WEIGHTS = "09ff479bc87beccce0b3dcdbc141db7b27a870c09f104424d4aaf4e97135fb13"
DEEPER = ("group3", "group4")


@dataclass(frozen=True)
class Study:
    """What a profile means.

    `size` and `pixel_mm` are those of a ROI; `patients` have two views in training and folds, `tested` one each.
    `start_patients` and `start_fit` are those of the network that stands for DDSM; `imagenet` is the other start, its
    weights a file or the hash of one. The confounder shift has harder masses (`separation`) whose calcifications hint
    at malignancy (`correlation`). `betas` are swept by form of equation 4. `explained` ROIs are
    given to patch replacement. `checkpoint` is the folder of shipped networks and tables.
    """

    profile: str
    architecture: str = "densenet121"
    size: int = 160
    pixel_mm: float = 0.28125
    patients: int = 140
    tested: int = 150
    start_patients: int = 500
    start_fit: FitConfig = field(
        default_factory=lambda: FitConfig(14, 16, 1e-3, 1e-4, "adamw", "onecycle", None, augment="roi")
    )
    imagenet: Start | None = None
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(20, 16, 1e-3, 1e-4, "adamw", "constant", patience=5, augment="turn")
    )
    methods: Mapping[str, Method] = field(default_factory=lambda: METHODS)
    folds: int = 5
    seeds: tuple[int, ...] = (0, 1)
    separation: float = 1.2
    correlation: float = 0.9
    betas: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: {"printed": (1.0, 10.0, 100.0), "mean_squared": (1000.0,)}
    )
    explained: int = 40
    replicates: int = 1000
    checkpoint: str | None = None

    def transfer(self, start: Start) -> Settings:
        """Network and recipe of every training that is compared."""
        return Settings(start, self.size, fit=self.fit)

    def masses(self, seed: int, patients: int, **options: Any) -> CaseDataset:
        """Synthetic masses in ROIs of this study's size."""
        return load_synthetic_masses(patients, seed, self.size, self.size * self.pixel_mm, **options)


@dataclass(frozen=True, eq=False)
class Sets:
    """The images: `main` for folds and final networks; `shift` and `moved` by name; `large` for the ROI recipes."""

    main: CaseDataset
    shift: dict[str, CaseDataset]
    moved: dict[str, CaseDataset]
    large: CaseDataset


@dataclass(frozen=True, eq=False)
class Ready:
    """Starts by name, networks by name (see `KEPT`), the card of the start, the images, and the seed of all."""

    study: Study
    starts: dict[str, Start]
    networks: dict[str, models.Classifier]
    card: dict[str, Any]
    sets: Sets
    seed: int


def settings(profile_name: str, imagenet: str | None = None) -> Study:
    """The study at a profile: `lab` has shipped networks and results, `smoke` trains for an epoch, `paper` is 224 wide.

    Args:
        profile_name: "smoke", "lab" or "paper".
        imagenet: a file of ImageNet weights of MobileNetV2, with TensorFlow's padding, to repeat the results of `lab`.

    Raises:
        ValueError: an unknown profile.
    """
    name = profile(profile_name).name
    base = Study(name, imagenet=Start("mobilenet_v2", imagenet or WEIGHTS, "tensorflow"))
    if name == "lab":
        return replace(base, checkpoint=str(repository_dir() / "data" / "checkpoints"))
    if name == "smoke":
        quick = replace(base.fit, epochs=1, batch_size=8)
        chosen = {key: METHODS[key] for key in ("fine-tuning", "transfer", "centred disc", "masks")}
        return replace(
            base,
            architecture="resnet10",
            size=96,
            pixel_mm=0.375,
            patients=8,
            tested=8,
            start_patients=8,
            start_fit=replace(quick, augment="none"),
            imagenet=None,
            fit=replace(quick, augment="none"),
            methods=chosen,
            folds=2,
            seeds=(0,),
            betas={"printed": (10.0,), "mean_squared": (1000.0,)},
            explained=2,
            replicates=20,
        )
    slow = replace(base.fit, epochs=60, learning_rate=1e-4, patience=8, augment="roi")
    densenet = Start("densenet121", "imagenet")
    return replace(base, size=224, start_patients=1600, imagenet=densenet, fit=slow, explained=100)


def prepare(
    study: Study, seed: int, runtime: Runtime, folder: str | Path, retrain: bool = False, progress: bool = True
) -> Ready:
    """Load or train the start and the networks of `KEPT`, and lay out the images that go with them.

    Args:
        study: from `settings`.
        seed: of images, networks and training; shipped networks bring the seed that they were trained with.
        runtime: device and precision.
        folder: where new checkpoints are written.
        retrain: train anew although the networks are shipped.
        progress: show bars.

    Raises:
        CheckpointError: a shipped network is missing or damaged, or was trained on other images.
    """
    shipped = None if retrain or study.checkpoint is None else Path(study.checkpoint)
    files = {name: (shipped or Path(folder)) / checkpoint_name(study, name) for name in ("start", *KEPT)}
    seed = int(checkpoints.read_card(files["start"])["seed"]) if shipped else seed
    sets = images(study, seed)
    if shipped is None:
        train_start(study, seed, runtime, files["start"], progress)
        train_kept(study, sets.main, seed, runtime, files, progress)
    start, card = checkpoints.load(files["start"], expect={"architecture": study.architecture})
    found = {"start": start}
    for name in KEPT:
        found[name], own = checkpoints.load(files[name], base=start)
        if own.get("data") != sets.main.fingerprint:
            raise checkpoints.CheckpointError(f"{files[name]}: made for other images; retrain")
    starts = {MAMMOGRAMS: Start(study.architecture, str(files["start"]))}
    starts |= {IMAGENET: study.imagenet} if study.imagenet else {}
    ready = {name: model.to(runtime.device).requires_grad_(False) for name, model in found.items()}
    return Ready(study, starts, ready, card, sets, seed)


def checkpoint_name(study: Study, network: str) -> str:
    """File of a network of this study."""
    return f"transfer_{study.architecture}_{network.replace('-', '_')}.safetensors.gz"


def train_start(study: Study, seed: int, runtime: Runtime, path: Path, progress: bool = True) -> None:
    """Train the start, all weights, on other masses than this study's, and store it as it is shipped."""
    others = study.masses(seed + 1000, study.start_patients)
    weights = study.imagenet.weights if study.imagenet and study.imagenet.architecture == study.architecture else None
    whole = Settings(Start(study.architecture, weights), study.size, "all", fit=study.start_fit)
    start = networks(whole, others, runtime, {"start": Method()}, seed, progress)["start"]
    card = {"profile": study.profile, "seed": seed, "data": others.fingerprint}
    checkpoints.save(start, path, card, precision="int8")


def train_kept(
    study: Study, main: CaseDataset, seed: int, runtime: Runtime, files: Mapping[str, Path], progress: bool = True
) -> None:
    """Train the networks of `KEPT` from the stored start, and store what trained of each."""
    chosen = study.transfer(Start(study.architecture, str(files["start"])))
    found = networks(chosen, main, runtime, {name: METHODS[name] for name in KEPT}, seed, progress)
    card = {"profile": study.profile, "seed": seed, "data": main.fingerprint}
    for name, model in found.items():
        checkpoints.save(model, files[name], card, precision="int8", trainable_only=True)


# ---------------------------------------------------------------------------------------- images


def images(study: Study, seed: int) -> Sets:
    """All images of the study, each group from its own seed.

    The three tests of the shift show the same masses, and so do the three places of "moved", where the twin is the ROI
    without its mass; the twin's mask is where the mass was.
    """
    tie = {"separation": study.separation, "calcification_correlation": study.correlation}
    hints = {"same": tie, "none": tie | {"calcifications": 0.0, "calcification_correlation": 0.0}}
    hints["reversed"] = tie | {"calcification_correlation": -study.correlation}
    tests = {name: study.masses(seed + 3000, study.tested, view="CC", **hint) for name, hint in hints.items()}
    place: dict[str, dict[str, Any]] = {
        "shifted": {"shift_mm": 0.22 * study.size * study.pixel_mm},
        "twin": {"twins": True},
    }
    moved = {"centred": study.masses(seed + 4000, study.tested, view="CC")}
    moved |= {name: study.masses(seed + 4000, study.tested, view="CC", **what) for name, what in place.items()}
    moved["twin"] = _with_masks(moved["twin"], moved["centred"])
    wide = replace(study, size=round(1.8 * study.size))
    return Sets(
        study.masses(seed, study.patients),
        {"train": study.masses(seed + 2000, study.patients, **tie), **tests},
        moved,
        wide.masses(seed + 5000, study.patients),
    )


def _with_masks(twins: CaseDataset, originals: CaseDataset) -> CaseDataset:
    """The twins with the masks of what was taken out."""
    table = twins.table.assign(number=range(len(twins)))
    read = partial(_masked, twins=twins, originals=originals)
    return CaseDataset(twins.name, table, read, parameters=twins.parameters)


def _masked(row: pd.Series, twins: CaseDataset, originals: CaseDataset) -> Case:
    number = int(row["number"])
    return replace(twins[number], mask=originals[number].mask)


REACH = 7  # pixels: side of the square that a speck's mask is widened to, for an activation map is coarse


def calcified(dataset: CaseDataset) -> Tensor:
    """Where the calcifications are, a little widened: (N, size, size), bool; a region for `cross_validated`."""
    found = torch.stack([confounders(dataset, i).calcifications for i in range(len(dataset))])
    return functional.max_pool2d(found[:, None].float(), REACH, 1, REACH // 2)[:, 0] > 0


def dense(dataset: CaseDataset) -> Tensor:
    """Where the patch of dense tissue is: (N, size, size), bool; a region for `cross_validated`."""
    return torch.stack([confounders(dataset, i).dense for i in range(len(dataset))])
