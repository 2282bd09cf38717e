"""Study 1, the settings: what a profile means, its two networks, and the test patches in four versions.

Usage::

    study = settings("lab")
    ready = prepare(study, seed=0, runtime=runtime(), folder="outputs")     # the shipped networks, or trained anew
    ready.sets["twin"][7]                                                   # patch 7 without its lesion

Every test patch has a lesion, or a place where one could be, in its middle: the set "centred". In "twin" the lesions
are missing; in "shifted" they lie 50 of 224 pixels off the middle; in "benign" every normal patch has a benign mass in
its middle. A patch has the same index, and is the same place of the same breast, in all sets.

Reference: Sam-Millan et al. 2023, sections 3.2.2 and 3.2.4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import checkpoints, models
from xai_lib.config import Runtime, numpy_generator, profile, repository_dir
from xai_lib.data import CaseDataset
from xai_lib.data.synthetic.mammogram_patches import patches
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms.thesis_methods import Setup

CHEAP = ("saliency", "occlusion", "guided_grad_cam", "deeplift")  # seconds a patch, not minutes


@dataclass(frozen=True)
class Study:
    """What a profile means.

    `malignant` and `others` count the test patches whose maps are measured; the untrained network gets the quick
    methods only (`CHEAP`). `shift` is a share of the patch's side. `sanity` patches are explained by the methods `sane`
    while the network is randomised. `checkpoint` is the folder of shipped networks.
    """

    profile: str
    patches: mn.PatchSettings = field(default_factory=mn.PatchSettings)
    setup: Setup = field(default_factory=Setup)
    malignant: int = 16
    others: int = 16
    shift: float = 50 / 224
    sanity: int = 2
    sane: tuple[str, ...] = CHEAP
    precision: str = "float32"
    replicates: int = 1000
    checkpoint: str | None = None


@dataclass(frozen=True)
class Trained:
    """A network and the card of its checkpoint."""

    model: models.Classifier
    card: dict[str, Any]


@dataclass(frozen=True)
class Ready:
    """Networks by architecture (the first is explained), patches by set, and the indices of the test part."""

    study: Study
    networks: dict[str, Trained]
    sets: dict[str, CaseDataset]
    test: NDArray[np.int64]
    seed: int  # of the patches

    @property
    def first(self) -> Trained:
        """The network whose maps are measured."""
        return next(iter(self.networks.values()))


def settings(profile_name: str) -> Study:
    """The study at a profile: `lab` uses the shipped networks, `smoke` trains tiny ones, `paper` the thesis's protocol.

    Raises:
        ValueError: an unknown profile.
    """
    name = profile(profile_name).name
    base = Study(name)
    if name == "lab":
        return replace(base, precision="bf16", checkpoint=str(repository_dir() / "data" / "checkpoints"))
    fit = base.patches.fit
    if name == "smoke":
        tiny = replace(base.patches, patients=8, image_size=(128, 64), size=64, parts=(0.5, 0.25, 0.25))
        tiny = replace(tiny, architectures=("squeezenet1_1", "resnet10"), fit=replace(fit, epochs=1, batch_size=8))
        setup = Setup(window=16, stride=16, steps=4, segments=8, samples=8)
        return replace(
            base, patches=tiny, setup=setup, malignant=2, others=2, sanity=1, sane=("saliency",), replicates=20
        )
    full = replace(base.patches, patients=1904, parts=(0.70, 0.10, 0.20), weights="imagenet")
    return replace(
        base, patches=replace(full, fit=replace(fit, epochs=30, schedule="plateau")), malignant=100, others=100
    )


def patch_sets(study: Study, seed: int) -> dict[str, CaseDataset]:
    """The patches "centred", "twin", "shifted" and "benign"; index i is the same breast in all of them."""
    chosen = study.patches
    images = mn.cases(chosen, seed)
    return {
        "centred": patches(images, chosen.size),
        "twin": patches(mn.cases(chosen, seed, twins=True), chosen.size),
        "shifted": patches(images, chosen.size, shift_px=study.shift * chosen.size, seed=seed),
        "benign": patches(mn.cases(replace(chosen, benign=1.0), seed), chosen.size),
    }


def prepare(
    study: Study, seed: int, runtime: Runtime, folder: str | Path, retrain: bool = False, progress: bool = True
) -> Ready:
    """Load or train the networks, and lay out the patches that go with them.

    Args:
        study: from `settings`.
        seed: of patches, networks and training; shipped networks bring the seed that they were trained with.
        runtime: device and precision.
        folder: where new checkpoints, and the state that a killed training goes on from, are written.
        retrain: train anew although the networks are shipped.
        progress: show bars.

    Raises:
        CheckpointError: a shipped network is missing or damaged, or was trained on other patches.
    """
    names = study.patches.architectures
    if len(names) < 2:
        raise ValueError(f"architectures: expected two networks to compare, got {', '.join(names) or 'none'}")
    files = {name: f"patch_{name}.safetensors.gz" for name in names}
    shipped = None if retrain or study.checkpoint is None else Path(study.checkpoint)
    if shipped:
        seed = int(checkpoints.read_card(shipped / files[names[0]])["seed"])
    sets = patch_sets(study, seed)
    if shipped is None:
        shipped = Path(folder)
        _train(study, sets["centred"], seed, runtime, {name: shipped / file for name, file in files.items()}, progress)
    found = {}
    for name, file in files.items():
        model, card = checkpoints.load(shipped / file, expect={"architecture": name})
        if card.get("data") != sets["centred"].fingerprint or card.get("parts") != list(study.patches.parts):
            raise checkpoints.CheckpointError(f"{shipped / file}: made for other patches, or another split; retrain")
        found[name] = Trained(model.to(runtime.device).requires_grad_(False), card)
    return Ready(study, found, sets, mn.split(study.patches, sets["centred"], seed)["test"], seed)


def _train(
    study: Study, cut: CaseDataset, seed: int, runtime: Runtime, files: Mapping[str, Path], progress: bool
) -> None:
    """Train every network and store it with its card."""
    images = mn.patch_images(study.patches, seed, progress)
    for name, file in files.items():
        state = file.with_suffix(".state.safetensors")
        model, _ = mn.train_patches(study.patches, name, images, seed, runtime, state, progress)
        card = {"profile": study.profile, "seed": seed, "data": cut.fingerprint, "parts": list(study.patches.parts)}
        checkpoints.save(model, file, card, precision="int8")  # as they are shipped


def choose(dataset: CaseDataset, test: NDArray[np.int64], malignant: int, others: int, seed: int) -> NDArray[np.int64]:
    """Indices of `malignant` and `others` test patches, ascending; as many patients as possible, drawn without scores.

    Fewer where the test part has fewer.
    """
    part, rng = dataset.table.iloc[test], numpy_generator(seed, "patches to explain")
    found: list[int] = []
    for label, count in ((1, malignant), (0, others)):
        drawn = pd.Series(rng.permutation(test[part["label"] == label]))
        turn = drawn.groupby(dataset.patient_ids[drawn]).cumcount()  # 0 for a patient's first patch, 1 for the second
        found += drawn.iloc[np.argsort(turn, kind="stable")[:count]].tolist()
    return np.sort(np.array(found, dtype=np.int64))
