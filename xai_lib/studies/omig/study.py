"""Study 6, the settings: what a profile means, and the ensembles that are explained.

Usage::

    study = settings("lab")
    ready = prepare(study, seed=0, folder="outputs")         # shipped ensembles, or trained anew
    ready.ensembles["paper-like"].members

Two ensembles stand side by side. The paper-like one is trained as the paper says; in its scenarios the brightness and
the noise already fix the curve. The disc reader is trained so that only the discs do. Controls: bright discs (the other
polarity), shuffled labels, and untrained networks.

Reference: Amanova et al. 2022, section 2.2, appendices C and D.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xai_lib import checkpoints
from xai_lib.cdmam.phantom import Detector, Phantom, build
from xai_lib.cdmam.simulate import MARGINS
from xai_lib.config import profile, repository_dir
from xai_lib.iqa_network import IqaNetwork, Prediction, predict
from xai_lib.studies.omig import iqa_training
from xai_lib.studies.omig.iqa_training import Course, disc_reader, paper_like

PAPER, READER, BRIGHT, SHUFFLED, UNTRAINED = (
    "paper-like",
    "disc reader",
    "bright discs",
    "shuffled labels",
    "untrained",
)


@dataclass(frozen=True)
class Study:
    """What a profile means.

    `courses` names the ensembles and how they are trained; "untrained" has none. `tested` virtual images of each
    scenario are predicted. An upsampled map has `virtual_images` of them (`few` for controls, `occluded` for
    occlusion), paths of length `c` and `steps` (`map_steps` for the first map); `paths` virtual images are walked for
    the sweep over c and L. `checkpoint` is the folder of shipped ensembles and tables.
    """

    profile: str
    courses: Mapping[str, Course]
    tested: int = 96
    virtual_images: int = 1000
    few: int = 400
    occluded: int = 64
    c: float = 1.0
    steps: int = 10
    map_steps: int = 50
    paths: int = 8
    replicates: int = 1000
    checkpoint: str | None = None


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks of one course, in eval mode, with the mean and sd of the grey levels they were trained on."""

    name: str
    course: Course
    members: tuple[IqaNetwork, ...]
    mean: float
    sd: float
    card: Mapping[str, Any]

    def normalise(self, images: NDArray[np.float32]) -> Tensor:
        """Images (N, S, S) in grey levels as the networks' input (N, 1, S, S), on their device."""
        return iqa_training.normalised(images, self.mean, self.sd).to(self.members[0].curve_mean.device)

    def predict(self, images: NDArray[np.float32]) -> Prediction:
        """Curves of images (N, S, S) in grey levels."""
        return predict(self.members, self.normalise(images))


@dataclass(frozen=True, eq=False)
class Ready:
    """The ensembles by name, the phantom with its widest margin, and the seed of all."""

    study: Study
    ensembles: Mapping[str, Ensemble]
    phantom: Phantom
    seed: int


def settings(profile_name: str) -> Study:
    """The study at a profile: `lab` has shipped ensembles and tables, `smoke` trains for a few steps.

    `paper` has the paper's network, ensemble, epochs and rates, and its N = 5000 with L = 50; its training settings are
    our draw, because the paper does not give its own.

    Raises:
        ValueError: an unknown profile.
    """
    name = profile(profile_name).name
    few: dict[str, Any] = {"images": 24000, "members": 1}
    controls = {BRIGHT: paper_like(inverted=True, **few), SHUFFLED: paper_like(shuffled=True, **few)}
    if name == "lab":
        courses = {PAPER: paper_like(images=40000), READER: disc_reader(images=60000), **controls}
        return Study(name, courses, checkpoint=str(repository_dir() / "data" / "checkpoints"))
    if name == "smoke":
        quick: dict[str, Any] = {"size": 25, "hidden": 8, "settings": 8, "images": 64, "batch": 8, "members": 2}
        courses = {PAPER: paper_like(**quick), READER: disc_reader(**quick)}
        return Study(
            name, courses, tested=6, virtual_images=6, few=6, occluded=1, steps=2, map_steps=2, paths=1, replicates=20
        )
    slow: dict[str, Any] = {
        "size": 250, "hidden": 512, "batch": 50, "images": 57600 * 300, "learning_rate": 1e-5, "sigma_rate": 1e-5,
        "schedule": "constant", "refit_sigma": False, "members": 10,
    }  # fmt: skip
    full = paper_like(settings=44, **slow)
    courses = {PAPER: full, READER: disc_reader(**slow), **{k: replace(full, **_own(v)) for k, v in controls.items()}}
    return Study(name, courses, tested=1200, virtual_images=5000, few=1000, steps=50, paths=64)


def _own(course: Course) -> dict[str, Any]:
    return {"inverted": course.inverted, "shuffled": course.shuffled, "members": course.members}


def stem(name: str) -> str:
    """Name of an ensemble's file."""
    return "cdmam_" + name.replace("-", "_").replace(" ", "_")


def prepare(
    study: Study,
    seed: int,
    folder: str | Path,
    retrain: bool = False,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> Ready:
    """Load or train the ensembles, and draw the phantom.

    Args:
        study: from `settings`.
        seed: of settings, labels and training; shipped ensembles bring the seed that they were trained with.
        folder: where new checkpoints are written.
        retrain: train anew although the ensembles are shipped.
        progress: show bars.
        device: of the networks.

    Raises:
        CheckpointError: a shipped ensemble is missing or damaged, or was trained by another course.
    """
    shipped = None if retrain or study.checkpoint is None else Path(study.checkpoint)
    files = {name: (shipped or Path(folder)) / f"{stem(name)}.safetensors.gz" for name in study.courses}
    seed = int(checkpoints.read_card(files[PAPER], ("seed",))["seed"]) if shipped else seed
    if shipped is None:
        for name, course in study.courses.items():
            train(name, course, seed, files[name], study.profile, progress, device)
    ensembles = {name: load(name, course, files[name]) for name, course in study.courses.items()}
    ensembles[UNTRAINED] = untrained(ensembles[PAPER], seed)
    for ensemble in ensembles.values():
        for member in ensemble.members:
            member.to(device)
    return Ready(study, ensembles, build(Detector(), max(MARGINS)), seed)


def train(
    name: str,
    course: Course,
    seed: int,
    file: Path,
    profile_name: str,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> None:
    """Train all members of a course and write them as one checkpoint, its weights in 8 bits per output channel."""
    lessons = iqa_training.prepare_lessons(course, seed)
    weights: dict[str, Tensor] = {}
    for member in range(course.members):
        network = iqa_training.train(course, lessons, member, seed, progress, device)
        weights |= {f"{member}.{key}": value for key, value in network.state_dict().items()}
    card = {"profile": profile_name, "seed": seed, "name": name, "course": _plain(course)}
    checkpoints.save_state(weights, file, card | {"mean": lessons.mean, "sd": lessons.sd}, precision="int8")


def load(name: str, course: Course, file: Path) -> Ensemble:
    """The ensemble of a checkpoint.

    Raises:
        CheckpointError: missing, damaged, or trained by another course.
    """
    weights, card = checkpoints.load_state(file, fields=("seed", "course", "mean", "sd"))
    if card["course"] != _plain(course):
        raise checkpoints.CheckpointError(f"{file}: trained by another course than {name!r} has now; retrain")
    members = []
    for member in range(course.members):
        network = IqaNetwork(course.size, course.hidden, dropout=course.dropout, sigma=course.sigma, unit=course.unit)
        own = {k.removeprefix(f"{member}."): v for k, v in weights.items() if k.startswith(f"{member}.")}
        network.load_state_dict(own)
        members.append(network.eval().requires_grad_(False))
    return Ensemble(name, course, tuple(members), float(card["mean"]), float(card["sd"]), card)


def untrained(like: Ensemble, seed: int) -> Ensemble:
    """Networks with random weights, and the other's normalisation and mean curve."""
    members = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for member in like.members:
            course = like.course
            fresh = IqaNetwork(course.size, course.hidden, dropout=course.dropout, sigma=course.sigma, unit=course.unit)
            fresh.curve_mean.copy_(member.curve_mean)
            fresh.curve_sd.copy_(member.curve_sd)
            members.append(fresh.eval().requires_grad_(False))
    return replace(like, name=UNTRAINED, members=tuple(members))


def _plain(course: Course) -> dict[str, Any]:
    """A course as JSON keeps it: lists for tuples."""
    plain: dict[str, Any] = {}
    for key, value in asdict(course).items():
        plain[key] = [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
    return plain
