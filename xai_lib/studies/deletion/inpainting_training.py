"""Teach a partial-convolution U-Net to fill holes with healthy tissue: the holes, and training in two phases.

Usage::

    model = PartialUNet(depth=5, base=16)
    features = stages(frozen_network, healthy.images[:16] / 255, runtime())
    history = train(model, healthy, held_out, Settings(), features, runtime(), seed=0, state="inpainter.state")
    save(model, "inpainter.safetensors", {"seed": 0})
    model, card = load("inpainter.safetensors")

The loss is that of `inpainting_losses`.

Reference: Major et al. 2020, section 3, "Inpainting".
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image
from tqdm.auto import tqdm

from xai_lib import checkpoints, models, training_state
from xai_lib.config import Runtime, numpy_generator, torch_generator
from xai_lib.inpainting import PartialUNet, inpaint
from xai_lib.studies.deletion.inpainting_losses import WEIGHTS, Features, losses
from xai_lib.studies.mammograms import networks as mn
from xai_lib.training import Stack

KIND = "partial_unet"


@dataclass(frozen=True)
class Settings:
    """Training in two phases, `epochs` and `learning_rates`; in the second the encoder's batch norms stay as they are.

    The paper's are (100, 50) epochs at (1e-5, 1e-6), batch 1, up to 400 holes of 8 x 8 pixels in 576 x 448: `share` is
    the part of the image that they cover at most. Half of the images get clusters of holes. `rows`: learn from a
    random band of so many rows of every image, for speed; None: from whole images, as the paper. `perceptual` and
    `style` are the weights of these terms, Liu's by default; where both are 0 no feature network is needed.
    """

    epochs: tuple[int, int] = (100, 50)
    learning_rates: tuple[float, float] = (1e-5, 1e-6)
    batch_size: int = 1
    side: int = 8
    share: float = 400 * 64 / (576 * 448)
    rows: int | None = None
    perceptual: float = WEIGHTS["perceptual"]
    style: float = WEIGHTS["style_out"]

    def __post_init__(self) -> None:
        if min(self.epochs) < 0 or sum(self.epochs) < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size: {self.epochs} and {self.batch_size}, expected some of each")
        if not 0 < self.share < 1 or self.side < 1:
            raise ValueError(f"share and side: {self.share} and {self.side}, expected a part of the image and pixels")


# ---------------------------------------------------------------------------------------- holes


def draw_holes(tissue: Tensor, settings: Settings, rng: np.random.Generator) -> Tensor:
    """Keep masks (N, 1, H, W), float, 0 in holes, for images whose `tissue` (N, 1, H, W) is True inside the breast.

    Squares of `side` pixels, from one to `share` of the image, all at random places (even rows of the batch) or in
    clusters: each square touches the last one, a random walk (odd rows). They start inside the breast.
    """
    height, width = tissue.shape[2:]
    most = max(int(settings.share * height * width / settings.side**2), 1)
    keep = torch.ones(tissue.shape)
    for i, inside in enumerate(tissue[:, 0]):
        places = inside.nonzero().numpy() - settings.side // 2
        if not len(places):
            raise ValueError(f"tissue: image {i} has none, expected a breast to draw holes in")
        count = int(rng.integers(1, most + 1))
        clustered = i % 2 == 1
        starts = max(count // int(rng.integers(5, 40)), 1) if clustered else count
        corners = places[rng.integers(len(places), size=starts)]
        for corner in corners:
            steps = rng.integers(-1, 2, (-(-count // starts), 2)) * settings.side
            steps[0] = 0
            for row, col in corner + steps.cumsum(0):
                keep[i, 0, max(row, 0) : max(row + settings.side, 0), max(col, 0) : max(col + settings.side, 0)] = 0
    return keep


# ---------------------------------------------------------------------------------------- training


def train(
    model: PartialUNet,
    healthy: Stack,
    held_out: Stack,
    settings: Settings,
    features: Features | None,
    runtime: Runtime,
    seed: int,
    state: str | Path | None = None,
    on_epoch: Callable[[int, PartialUNet], None] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place; returns one row per epoch: the terms of the loss, the error in holes, seconds.

    Args:
        model: to train.
        healthy: images without a finding.
        held_out: others of that kind: `error` is the mean absolute error inside their holes.
        settings: of the two phases.
        features: for the perceptual and the style loss, of images (N, 1, H, W) in [0, 1]; see `stages`. None where
            both have no weight.
        runtime: device and precision.
        seed: of holes, order and flips.
        state: file to continue from if it exists, rewritten after each epoch and removed at the end.
        on_epoch: called with the number of finished epochs and the model, for a preview.
        progress: show a bar.

    Raises:
        ValueError: an empty set, or a `state` that is damaged or of another training.
        FloatingPointError: the loss is not finite.
    """
    for name, part in (("healthy", healthy), ("held_out", held_out)):
        if not len(part):
            raise ValueError(f"{name}: it is empty")
    if features is None and (settings.perceptual or settings.style):
        raise ValueError("features: None, but the perceptual or the style loss has a weight; see `stages`")
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    model.to(runtime.device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters())
    path, own = Path(state) if state else None, {"settings": _plain(settings), "seed": seed}
    history: list[dict[str, float]] = []
    if path and path.is_file():
        if _phase(path) == 2:
            model.freeze_encoder_norms()
        history, whole = training_state.resume(path, model, optimizer, own)
        model.load_state_dict({**model.state_dict(), **whole})
    bar = tqdm(range(len(history), sum(settings.epochs)), desc="inpainter", disable=not progress, leave=False)
    for e in bar:
        if e == settings.epochs[0]:
            model.freeze_encoder_norms()
        began = time.perf_counter()
        terms = _epoch(model, healthy, settings, features, optimizer, runtime, seed, e)
        error = hole_error(model, held_out, settings, runtime, seed)
        history.append({**terms, "error": error, "seconds": time.perf_counter() - began})
        bar.set_postfix(loss=f"{terms['loss']:.3f}", error=f"{error:.4f}")
        if on_epoch:
            on_epoch(e + 1, model.eval())
        if path:
            training_state.save(path, model, optimizer, model.state_dict(), history, own)  # with the frozen norms
    model.eval()
    if path:
        path.unlink(missing_ok=True)
    return history


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}


def _phase(path: Path) -> int:
    """The phase in which a state was written: the second has no trainable norms in the encoder."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return 1 if "model/down.1.norm.weight" in file.keys() else 2
    except Exception:  # damaged: resume says so
        return 1


def _epoch(
    model: PartialUNet,
    healthy: Stack,
    settings: Settings,
    features: Features | None,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    seed: int,
    epoch: int,
) -> dict[str, float]:
    """One pass over the healthy images; returns the mean of every term, and of the weighted sum as "loss"."""
    generator, rng = torch_generator(seed, "inpainter", epoch), numpy_generator(seed, "holes", epoch)
    order = torch.randperm(len(healthy), generator=generator)
    rate = settings.learning_rates[int(epoch >= settings.epochs[0])]
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.train()
    weights = WEIGHTS | {"perceptual": settings.perceptual}
    weights |= {"style_out": settings.style, "style_comp": settings.style}
    sums: dict[str, float] = dict.fromkeys((*WEIGHTS, "loss"), 0.0)
    for part in order.split(settings.batch_size):
        truth, _ = next(healthy.subset(part.numpy()).batches(len(part), runtime))
        truth = _band(truth, settings.rows, rng)
        truth = truth.flip(2) if torch.rand((), generator=generator) < 0.5 else truth
        keep = draw_holes(truth.cpu() > 0, settings, rng).to(runtime.device)
        with runtime.autocast():
            out = model(truth, keep)
        terms = losses(out.float(), truth, keep, features)
        loss = sum((weights[name] * value for name, value in terms.items()), out.new_zeros((), dtype=torch.float32))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for name, value in (*terms.items(), ("loss", loss)):
            sums[name] += value.item() * len(part)
    if not math.isfinite(sums["loss"]):
        raise FloatingPointError(f"the inpainter's loss is not finite in epoch {epoch + 1}; try a lower learning rate")
    return {name: value / len(healthy) for name, value in sums.items()}


def _band(images: Tensor, rows: int | None, rng: np.random.Generator) -> Tensor:
    """A random band of `rows` rows of every image that holds tissue."""
    if rows is None or rows >= images.shape[2]:
        return images
    bands = []
    for image in images:
        full = (image[0] > 0).any(1).nonzero().flatten()
        first, last = (int(full[0]), int(full[-1])) if len(full) else (0, image.shape[1] - 1)
        low, high, end = max(first - rows // 2, 0), max(last - rows // 2, first), image.shape[1] - rows
        start = int(rng.integers(min(low, end), min(high, end) + 1))
        bands.append(image[:, start : start + rows])
    return torch.stack(bands)


@torch.no_grad()
def hole_error(model: PartialUNet, images: Stack, settings: Settings, runtime: Runtime, seed: int) -> float:
    """Mean absolute error inside holes, in grey values from 0 to 1; the holes are the same at every call."""
    rng, was_training, total, pixels = numpy_generator(seed, "held out"), model.training, 0.0, 0.0
    model.eval()
    for truth, _ in images.batches(8, runtime):
        keep = draw_holes(truth.cpu() > 0, settings, rng).to(runtime.device)
        total += float(((1 - keep) * (model(truth, keep) - truth)).abs().sum())
        pixels += float((1 - keep).sum())
    model.train(was_training)
    return total / pixels


def feature_network(name: str, seed: int) -> models.Classifier:
    """The network of the perceptual and the style loss: "vgg16" with ImageNet's weights (a download), or "random"."""
    net = models.build("vgg16", weights="imagenet") if name == "vgg16" else mn.fresh("squeezenet1_1", None, seed)
    return net.requires_grad_(False).eval()


def save_preview(epoch: int, model: PartialUNet, images: Stack, settings: Settings, folder: str | Path) -> None:
    """Write ``preview-<epoch>.png``: six images with holes, inpainted, and as they are."""
    truth = images.subset(range(min(6, len(images)))).images.float() / 255
    keep = draw_holes(truth > 0, settings, numpy_generator(0, "preview"))
    device = next(model.parameters()).device
    with torch.no_grad():
        drawn = inpaint(model, truth.to(device), keep.to(device)).cpu()
    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = torch.cat([truth * keep, drawn.clamp(0, 1), truth])
    save_image(make_grid(rows, len(truth)), Path(folder) / f"preview-{epoch:03d}.png")


# ---------------------------------------------------------------------------------------- checkpoints


def save(model: PartialUNet, path: str | Path, card: Mapping[str, Any], precision: str = "float16") -> dict[str, Any]:
    """Write the inpainter and its card, which says size, scale and range of grey values; returns the card."""
    own = {"kind": KIND, **model.spec, "value_range": list(model.value_range)}
    return checkpoints.save_state(model.state_dict(), path, {**card, **own}, precision)


def load(path: str | Path) -> tuple[PartialUNet, dict[str, Any]]:
    """The inpainter of a checkpoint, in eval mode, and its card.

    Raises:
        CheckpointError: the file is damaged, or no inpainter's.
    """
    state, card = checkpoints.load_state(path, {"kind": KIND}, ("depth", "base", "scale", "value_range"))
    model = PartialUNet(card["depth"], card["base"], card["scale"])
    model.value_range = (float(card["value_range"][0]), float(card["value_range"][1]))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise checkpoints.CheckpointError(f"{path}: its weights do not fit its card ({error})") from error
    return model.eval(), card
