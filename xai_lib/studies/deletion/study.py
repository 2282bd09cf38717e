"""Study 5, the settings: what a profile means, the images, and the classifier and inpainter that are explained.

Usage::

    study = settings("lab")
    ready = prepare(study, seed=0, runtime=runtime(), folder="outputs")      # shipped networks, or trained anew
    ready.classifier, ready.inpainter, ready.sets.parts["test"]

The paper's classifier tells scans with a mass from healthy ones, so the label here is *a mass*, benign or malignant. It
learns from pairs, an image with a mass and its healthy twin, first on patches, then on whole images; it stops and is
tested on images that are no pairs. The inpainter learns from the healthy training images alone.

Reference: Major et al. 2020, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from xai_lib import checkpoints, data, models, training
from xai_lib.config import Runtime, numpy_generator, profile, repository_dir
from xai_lib.data import CaseDataset, splits
from xai_lib.data.case import Case
from xai_lib.deletion_region import DeletionConfig
from xai_lib.inpainting import PartialUNet
from xai_lib.perturbation_maps import Extremal, Meaningful, Rise
from xai_lib.studies.deletion import inpainting_training
from xai_lib.studies.deletion.inpainting_losses import stages
from xai_lib.studies.deletion.inpainting_training import Settings, feature_network, save_preview
from xai_lib.studies.mammograms import networks as mn
from xai_lib.training import FitConfig, FitResult


@dataclass(frozen=True)
class Study:
    """What a profile means.

    `size` in pixels; `benign` is the share of the breasts without a malignant mass that have a benign one. The
    classifier sees `copies` squares of `patch` pixels of every training image, then whole images. The inpainter has
    `depth` halvings and learns by `inpainting`; `features` names the network of its perceptual loss
    (None: `lab` goes without, see DEVIATIONS.md). `region` holds the
    parameters of the deletion region, chosen on validation images. `runs` of random holes, `roc` test images of each
    class for Fig. 2, `tested` with a mass for everything else; `searched` of them get the variants of the search, and
    `perturbed` the perturbation methods. `checkpoint` is the folder of shipped networks and tables.
    """

    profile: str
    size: tuple[int, int] = (320, 160)
    patients: int = 500
    prevalence: float = 0.35
    benign: float = 0.25
    contrast: tuple[float, float] = (0.25, 0.60)
    parts: tuple[float, float, float] = (0.70, 0.10, 0.20)
    architecture: str = "mobilenet_v1"
    weights: str | None = None
    padding: str = "tensorflow"
    patch: int = 96
    jitter: int = 16
    copies: int = 4
    patch_fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            4, 32, 2e-3, 0.01, "adamw", "onecycle", None, keep="last", augment="patch", group=2
        )
    )
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(6, 16, 1e-3, 0.01, "adamw", "onecycle", None, augment="mammogram", group=2)
    )
    depth: int = 5
    base: int = 16
    inpainting: Settings = field(
        default_factory=lambda: Settings((20, 5), (2e-3, 3e-4), 4, share=0.2, rows=160, perceptual=0.0, style=0.0)
    )
    features: str | None = None
    region: DeletionConfig = field(default_factory=lambda: DeletionConfig(learning_rate=0.01, lambda2=0.05, spacing=3))
    rise: Rise = field(default_factory=lambda: Rise(masks=1000))
    meaningful: Meaningful = field(default_factory=Meaningful)
    extremal: Extremal = field(default_factory=Extremal)
    runs: int = 10
    roc: int = 150
    tested: int = 40
    searched: int = 8
    perturbed: int = 3
    replicates: int = 1000
    checkpoint: str | None = None


@dataclass(frozen=True, eq=False)
class Sets:
    """Mammograms labelled by "a mass", their healthy twins, and the indices of train, val and test."""

    cases: CaseDataset
    twins: CaseDataset
    parts: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Ready:
    """Networks in eval mode, their cards, the images, and the seed of all."""

    study: Study
    classifier: models.Classifier
    inpainter: PartialUNet
    cards: Mapping[str, Mapping[str, Any]]
    sets: Sets
    seed: int


def settings(profile_name: str) -> Study:
    """The study at a profile: `lab` has shipped networks and tables, `smoke` trains for an epoch.

    `paper` has the paper's size, depth, epochs and rates; its images are synthetic too, and its networks start from
    ImageNet.

    Raises:
        ValueError: an unknown profile.
    """
    name = profile(profile_name).name
    base = Study(name)
    if name == "lab":
        return replace(base, checkpoint=str(repository_dir() / "data" / "checkpoints"))
    if name == "smoke":
        quick = replace(base.fit, epochs=1, batch_size=4, schedule="constant")
        return replace(
            base,
            size=(128, 64),
            patients=6,
            parts=(0.34, 0.33, 0.33),
            architecture="squeezenet1_1",
            padding="torchvision",
            patch=32,
            jitter=3,
            copies=1,
            patch_fit=replace(quick, augment="patch"),
            fit=quick,
            depth=3,
            base=4,
            inpainting=Settings((1, 1), (2e-3, 3e-4), 2),
            features="random",
            region=replace(base.region, steps=4),
            rise=Rise(masks=8),
            meaningful=Meaningful(steps=3),
            extremal=Extremal(steps=3),
            runs=2,
            roc=4,
            tested=2,
            searched=1,
            perturbed=1,
            replicates=20,
        )
    slow = replace(base.fit, epochs=250, batch_size=4, learning_rate=1e-5, schedule="constant", patience=20)
    return replace(
        base,
        size=(576, 448),
        patients=800,
        weights="imagenet",
        patch=224,
        copies=20,
        patch_fit=replace(base.patch_fit, epochs=10),
        fit=slow,
        depth=8,
        base=64,
        inpainting=Settings(),
        features="vgg16",
        region=DeletionConfig(),
        rise=Rise(),
        tested=334,
        searched=100,
        perturbed=100,
    )


def prepare(
    study: Study, seed: int, runtime: Runtime, folder: str | Path, retrain: bool = False, progress: bool = True
) -> Ready:
    """Load or train classifier and inpainter, and lay out the images that go with them.

    Args:
        study: from `settings`.
        seed: of images, networks and training; shipped networks bring the seed that they were trained with.
        runtime: device and precision of the training.
        folder: where new checkpoints and previews of the inpainter are written.
        retrain: train anew although the networks are shipped.
        progress: show bars.

    Raises:
        CheckpointError: a shipped network is missing or damaged, or was trained on other images.
    """
    shipped = None if retrain or study.checkpoint is None else Path(study.checkpoint)
    names = {"classifier": f"deletion_{study.architecture}", "inpainter": "deletion_inpainter"}
    files = {name: (shipped or Path(folder)) / f"{stem}.safetensors.gz" for name, stem in names.items()}
    seed = int(checkpoints.read_card(files["classifier"])["seed"]) if shipped else seed
    sets = images(study, seed)
    if shipped is None:
        card = {"profile": study.profile, "seed": seed, "data": sets.cases.fingerprint}
        state = Path(folder) / "training"
        model, _ = train_classifier(study, sets, seed, runtime, state, progress)
        checkpoints.save(model, files["classifier"], card, precision="int8")
        drawn, history = train_inpainter(study, sets, seed, runtime, state, progress)
        inpainting_training.save(drawn, files["inpainter"], card | {"history": history}, precision="float16")
    classifier, own = checkpoints.load(files["classifier"], {"architecture": study.architecture})
    inpainter, its = inpainting_training.load(files["inpainter"])
    for name, card in (("classifier", own), ("inpainter", its)):
        if card.get("data") != sets.cases.fingerprint:
            raise checkpoints.CheckpointError(f"{files[name]}: made for other images; retrain")
    for network in (classifier, inpainter):
        network.to(runtime.device).requires_grad_(False)
    return Ready(study, classifier, inpainter, {"classifier": own, "inpainter": its}, sets, seed)


def images(study: Study, seed: int) -> Sets:
    """The study's mammograms; patients stay whole."""
    cases, twins = (
        data.load(
            "synthetic_mammogram",
            seed=seed,
            twins=healthy,
            patients=study.patients,
            size=study.size,
            prevalence=study.prevalence,
            benign=study.benign,
            contrast=study.contrast,
        )
        for healthy in (False, True)
    )
    cases = relabelled(cases, cases.table["kind"].to_numpy() != "normal")  # benign masses too
    parts = splits.by_patient(cases, dict(zip(("train", "val", "test"), study.parts, strict=True)), seed)
    splits.check_disjoint(cases, **parts)
    return Sets(cases, twins, parts)


def relabelled(cases: CaseDataset, mass: NDArray[np.bool_]) -> CaseDataset:
    """The same cases with label 1 where `mass` (N,) is True."""
    table = cases.table.assign(label=mass.astype(int), number=np.arange(len(cases)))
    read = partial(_relabelled, cases=cases)
    return CaseDataset(cases.name, table, read, cases.skipped, cases.parameters | {"label": "mass"})


def _relabelled(row: pd.Series, cases: CaseDataset) -> Case:
    return replace(cases[int(row["number"])], label=int(row["label"]))


def train_classifier(
    study: Study, sets: Sets, seed: int, runtime: Runtime, state: str | Path | None = None, progress: bool = True
) -> tuple[models.Classifier, dict[str, FitResult]]:
    """MobileNet with one output, the log odds of a mass: on patches, then on whole images (section 3)."""
    stack, masses = mn.pairs(sets.cases, sets.twins, sets.parts["train"], study.size, progress)
    val = training.stack(sets.cases.subset(sets.parts["val"]), study.size, progress)
    centre = sets.cases.table[["centre_row", "centre_col"]].to_numpy(np.int64)
    rng, how = numpy_generator(seed, "patches"), (study.patch, study.jitter, study.copies)
    patches = mn.cut_patches(stack, centre[masses].repeat(2, 0), *how, rng)
    stop = mn.cut_patches(val, centre[sets.parts["val"]], *how, rng)
    model = mn.fresh(study.architecture, study.weights, seed, study.padding, outputs=1)
    found = {}
    for name, train, stopping, fit in (
        ("patches", patches, stop, study.patch_fit),
        ("whole", stack, val, study.fit),
    ):
        file = f"{state}-{name}.safetensors" if state else None
        found[name] = training.fit(model, train, stopping, fit, runtime, seed, file, progress=progress)
    return model.eval(), found


def train_inpainter(
    study: Study, sets: Sets, seed: int, runtime: Runtime, state: str | Path | None = None, progress: bool = True
) -> tuple[PartialUNet, list[dict[str, float]]]:
    """The inpainter, from the healthy training images; previews are written beside `state`."""
    labels = sets.cases.labels
    healthy, held_out = (
        training.stack(sets.cases.subset(part[labels[part] == 0]), study.size, progress)
        for part in (sets.parts["train"], sets.parts["val"])
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(numpy_generator(seed, "inpainter").integers(2**62)))  # torch draws weights globally
        model = PartialUNet(study.depth, study.base)
    features = None
    if study.features:
        network = feature_network(study.features, seed).to(runtime.device)
        features = stages(network, next(healthy.batches(16, runtime))[0], runtime)
    preview = partial(save_preview, images=held_out, settings=study.inpainting, folder=state) if state else None
    history = inpainting_training.train(
        model,
        healthy,
        held_out,
        study.inpainting,
        features,
        runtime,
        seed,
        f"{state}-inpainter.safetensors" if state else None,
        preview,
        progress,
    )
    return model, history
