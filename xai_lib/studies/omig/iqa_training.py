"""Training of the ensemble: settings, honest labels, virtual images drawn as they are needed, incremental learning.

Usage::

    course = paper_like(settings=300)                        # or disc_reader()
    lesson = prepare_lessons(course, seed=0)                 # settings, their labels, the phantom
    member = train(course, lessons, member=0, seed=0)

A setting is a tube voltage, a noise level and a contrast of the discs; all its images share one label, so settings, not
images, are split. An image shows only the pixels that the downsampling picks: their grey levels are looked up and given
independent noise, because picked neighbours lie far apart.

Reference: Amanova et al. 2022, section 2.2 and appendix D; Kretz et al., IEEE TBME 67 (2020) 3317.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm.auto import tqdm

from xai_lib.cdmam.beam import Beam
from xai_lib.cdmam.detectability import probabilities
from xai_lib.cdmam.phantom import BACKGROUND, PLATE_MM, Detector, Phantom, build
from xai_lib.cdmam.readout import curve_from_probabilities, draw_label
from xai_lib.cdmam.simulate import MARGINS, Scenario, levels, noise_sd
from xai_lib.config import numpy_generator
from xai_lib.iqa_network import IqaNetwork
from xai_lib.omig_upsampling import Sampling, pick

SCHEDULES = ("onecycle", "constant")
SECOND_SYSTEM = Scenario(
    "system 2", 28, 115, 10.0,
    Beam(28, "molybdenum", {"beryllium": 0.3, "pmma": 2.35, "rhodium": 0.025}),
    Detector(blur_px=0.9, noise_blur_px=0.7, scatter=0.10),
)  # fmt: skip


@dataclass(frozen=True)
class Course:
    """What a network learns from, and how.

    `settings` have a tube voltage of `kvp` (from, to, step), a noise level from `noise` and a factor on the discs'
    contrast from `contrast` (both log-uniform). A label is read from `label_images` images, 0 for the exact label.
    Images of `size` pixels are picked by `sampling` from `region`, (top, bottom, left, right) as shares of the plate,
    and mirrored. `stages` lists the margins allowed in each stage; `second_system` is the share of another system's
    settings, shown in the last stage as the paper shows recorded images. `images` are shown in all, `batch` at a time.
    `sigma_rate` is the learning rate of the variance; `refit_sigma` sets it to its optimum at the end.
    """

    size: int = 125
    hidden: int = 64
    unit: str = "um"
    sigma: str = "constant"
    settings: int = 300
    kvp: tuple[float, float, float] = (24.0, 30.0, 0.5)
    noise: tuple[float, float] = (6.5, 20.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    label_images: int = 16
    sampling: Sampling = "anywhere"
    region: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)
    mirror: bool = True
    inverted: bool = False
    shuffled: bool = False
    stages: tuple[tuple[float, ...], ...] = (MARGINS[:1], MARGINS[:3], MARGINS, MARGINS)
    second_system: float = 0.08
    images: int = 30000
    batch: int = 32
    learning_rate: float = 1e-3
    sigma_rate: float = 3e-2
    weight_decay: float = 1e-4
    dropout: float = 0.2
    schedule: str = "onecycle"  # a name in SCHEDULES
    refit_sigma: bool = True
    members: int = 5

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: {self.schedule!r} is not one of {', '.join(SCHEDULES)}")
        for name in ("settings", "images", "batch", "members"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")


def paper_like(**changes: object) -> Course:
    """The paper's course at a size for a laptop: the whole plate, sorted random rows and columns, labels in um."""
    return replace(Course(), **changes)  # type: ignore[arg-type]


def disc_reader(**changes: object) -> Course:
    """A network that has to read discs: their contrast varies, and every pixel is picked from its own block.

    It sees the upper right quarter of the plate, where the thick discs are, unmirrored and without margins.
    """
    own = Course(
        unit="log um", settings=1500, contrast=(0.5, 2.0), label_images=0, sampling="blocks",
        region=(0.0, 0.5, 0.5, 1.0), mirror=False, stages=(MARGINS[:1],), second_system=0.0, images=40000, members=3,
    )  # fmt: skip
    return replace(own, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Lessons:
    """Settings with their labels, and the phantoms of both systems.

    `grey` (n, 19) levels and `spread` (n,) noise of a pixel, in grey levels; `labels` (n, 12) in um; `system` (n,) 0 or
    1. `mean` and `sd` normalise the grey levels (of the training pixels, section 2.2).
    """

    phantoms: tuple[Phantom, ...]
    settings: tuple[Scenario, ...]
    contrasts: NDArray[np.float64]
    grey: NDArray[np.float32]
    spread: NDArray[np.float64]
    labels: NDArray[np.float64]
    system: NDArray[np.int64]
    mean: float
    sd: float


def draw_settings(course: Course, seed: int) -> tuple[list[Scenario], NDArray[np.float64]]:
    """S settings and their contrasts (S,); the last share of them is the second system's."""
    rng = numpy_generator(seed, "cdmam settings")
    low, high, step = course.kvp

    def log_uniform(ends: tuple[float, float]) -> NDArray[np.float64]:
        return np.exp(rng.uniform(math.log(ends[0]), math.log(ends[1]), course.settings))

    voltages = rng.choice(np.arange(low, high + step / 2, step), course.settings)
    noises = log_uniform(course.noise)
    contrasts = log_uniform(course.contrast)
    first = course.settings - round(course.second_system * course.settings)
    drawn = []
    for k, (kvp, noise) in enumerate(zip(voltages, noises, strict=True)):
        other = SECOND_SYSTEM if k >= first else Scenario("", 28, 110, 10)
        beam = replace(other.beam, kvp=float(kvp)) if other.beam else None
        drawn.append(replace(other, name=f"setting {k}", kvp=float(kvp), noise=float(noise), beam=beam))
    return drawn, contrasts


def labels_of(
    settings: Sequence[Scenario], contrasts: ArrayLike, images: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The curves (n, 12) in um that a readout of so many images of each setting gives; 0 images: the exact ones."""
    factors = np.broadcast_to(contrasts, len(settings))
    chances = np.stack([probabilities(s, float(c)) for s, c in zip(settings, factors, strict=True)])
    return curve_from_probabilities(chances) if images == 0 else draw_label(chances, images, rng)


def prepare_lessons(course: Course, seed: int, phantoms: Sequence[Phantom] | None = None) -> Lessons:
    """Draw the settings and read their labels; the phantoms are drawn where none are given."""
    settings, contrasts = draw_settings(course, seed)
    rng = numpy_generator(seed, "cdmam labels")
    labels = labels_of(settings, contrasts, course.label_images, rng)
    keep = np.asarray(np.isfinite(labels).all(1))  # a curve with a point that could not be fitted is no label
    if course.shuffled:
        labels[keep] = rng.permutation(labels[keep])
    settings = [s for s, k in zip(settings, keep, strict=True) if k]
    widest = max(max(stage) for stage in course.stages)
    detectors = (Detector(), SECOND_SYSTEM.detector)[: 2 if course.second_system else 1]
    made = tuple(phantoms) if phantoms else tuple(build(d, widest) for d in detectors)
    grey = np.array([levels(s, c) for s, c in zip(settings, contrasts[keep], strict=True)])
    spread = np.array([noise_sd(s.noise, s.detector) for s in settings])
    system = np.array([int(s.detector != Detector()) for s in settings])
    lessons = Lessons(made, tuple(settings), contrasts[keep], grey, spread, labels[keep], system, 0.0, 1.0)
    some = draw(course, lessons, np.arange(0, len(settings), max(1, len(settings) // 64)), rng, course.stages[0])
    return replace(lessons, mean=float(some.mean()), sd=float(some.std()))


def window(phantom: Phantom, margin: float, region: Sequence[float]) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) of a region of the plate with a margin around, in `phantom`."""
    scale = phantom.detector.px_per_mm
    (height, width), ends = phantom.shape, []
    for full, side, first, last in ((height, PLATE_MM[0], *region[:2]), (width, PLATE_MM[1], *region[2:])):
        cut = round(phantom.margin * side * scale) - round(margin * side * scale)
        inside = full - 2 * cut
        ends += [cut + round(first * inside), cut + round(last * inside)]
    return ends[0], ends[1], ends[2], ends[3]


def picked(
    course: Course, phantom: Phantom, margin: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns (S,) of `phantom` that one virtual image shows."""
    top, bottom, left, right = window(phantom, margin, course.region)
    rows = top + pick(rng, bottom - top, course.size, course.sampling)
    return rows, left + pick(rng, right - left, course.size, course.sampling)


def draw(
    course: Course, lessons: Lessons, which: NDArray[np.int64], rng: np.random.Generator, margins: Sequence[float]
) -> NDArray[np.float32]:
    """Virtual images (len(which), S, S) of settings, in grey levels, each with a margin from `margins`."""
    images = np.empty((len(which), course.size, course.size), np.float32)
    for k, i in enumerate(which):
        phantom = lessons.phantoms[lessons.system[i]]
        rows, columns = picked(course, phantom, margins[int(rng.integers(len(margins)))], rng)
        grey = lessons.grey[i]
        where = np.ix_(rows, columns)
        image = grey[BACKGROUND] + phantom.coverage[where] * (grey - grey[BACKGROUND])[phantom.classes[where]]
        image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(lessons.spread[i])
        if course.inverted:
            image = 2 * grey[BACKGROUND] - image
        if course.mirror:
            image = image[:: 1 - 2 * rng.integers(2), :: 1 - 2 * rng.integers(2)]
        images[k] = image
    return images


def normalised(images: NDArray[np.float32], mean: float, sd: float) -> Tensor:
    """Images (N, S, S) in grey levels as the network's input (N, 1, S, S)."""
    return torch.from_numpy(np.asarray((images - np.float32(mean)) / np.float32(sd)))[:, None]


def negative_log_likelihood(network: IqaNetwork, x: Tensor, curves_um: Tensor) -> Tensor:
    """Gaussian negative log-likelihood of the labels (N, 12), mean over images and points, without its constant.

    Raises:
        FloatingPointError: it is not finite, or a variance has collapsed to nothing.
    """
    mean, log_variance = network.standardised(x)
    if not bool((log_variance > -20).all()):
        raise FloatingPointError("sigma: a learnt variance has collapsed (below exp(-20)); try a lower sigma_rate")
    loss = 0.5 * (log_variance + (network.targets(curves_um) - mean) ** 2 * torch.exp(-log_variance)).mean()
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError("loss: it is not finite; try a lower learning_rate")
    return loss


def train(
    course: Course, lessons: Lessons, member: int, seed: int, progress: bool = True, device: str | torch.device = "cpu"
) -> IqaNetwork:
    """One member, trained from its own weights on its own order of images; in eval mode, on `device`.

    Raises:
        FloatingPointError: as `negative_log_likelihood`.
    """
    torch.manual_seed(int(numpy_generator(seed, "member", member).integers(2**31)))
    network = IqaNetwork(course.size, course.hidden, dropout=course.dropout, sigma=course.sigma, unit=course.unit)
    network.to(device)
    labels = torch.from_numpy(lessons.labels).float().to(device)
    raw = labels.log() if course.unit == "log um" else labels
    network.curve_mean.copy_(raw.mean(0))
    network.curve_sd.copy_(raw.std(0))
    spread = [p for name, p in network.named_parameters() if name.startswith("log_variance")]
    rest = [p for name, p in network.named_parameters() if not name.startswith("log_variance")]
    rates, steps = [course.learning_rate, course.sigma_rate], max(1, course.images // course.batch)
    groups = [{"params": rest, "weight_decay": course.weight_decay}, {"params": spread, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group | {"lr": rate} for group, rate in zip(groups, rates, strict=True)])
    onecycle = None
    if course.schedule == "onecycle":
        rising = min(0.5, max(0.1, 2 / steps))  # a share of the steps, at least two of them
        onecycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=rising)
    rng = numpy_generator(seed, "images", member)
    first = np.flatnonzero(lessons.system == 0)
    network.to(memory_format=torch.channels_last)
    network.train()
    bar = tqdm(range(steps), desc=f"member {member}", disable=not progress, leave=False)
    for step in bar:
        stage = step * len(course.stages) // steps
        known = np.arange(len(lessons.labels)) if stage == len(course.stages) - 1 else first
        which = known[rng.integers(len(known), size=course.batch)]
        x = normalised(draw(course, lessons, which, rng, course.stages[stage]), lessons.mean, lessons.sd).to(device)
        loss = negative_log_likelihood(network, x, labels[which])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if onecycle:
            onecycle.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    network.eval()
    if course.refit_sigma:
        refit(course, lessons, network, rng)
    return network.to(memory_format=torch.contiguous_format).requires_grad_(False)


def refit(course: Course, lessons: Lessons, network: IqaNetwork, rng: np.random.Generator, images: int = 1024) -> None:
    """Set the homoscedastic variance to its optimum, the mean squared residual over fresh images of the settings.

    Raises:
        ValueError: the network's sigma is fed by the features.
    """
    if not isinstance(network.log_variance, torch.nn.Parameter):
        raise ValueError("refit_sigma: only a constant sigma has a closed form; set refit_sigma=False")
    device = network.curve_mean.device
    labels = torch.from_numpy(lessons.labels).float().to(device)
    squares = []
    with torch.no_grad():
        for _ in range(max(1, images // course.batch)):
            which = rng.integers(len(labels), size=course.batch)
            x = normalised(draw(course, lessons, which, rng, course.stages[-1]), lessons.mean, lessons.sd).to(device)
            squares.append((network.targets(labels[which]) - network.standardised(x)[0]) ** 2)
        network.log_variance.copy_(torch.cat(squares).mean(0).clamp_min(math.exp(-20)).log())
