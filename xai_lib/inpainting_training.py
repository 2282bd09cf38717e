"""Teach a partial-convolution U-Net to fill holes with healthy tissue: the holes, the losses, the two phases.

Usage::

    model = PartialUNet(depth=5, base=16)
    features = stages(frozen_network, healthy.images[:16] / 255, runtime())
    history = train(model, healthy, held_out, Settings(), features, runtime(), seed=0, state="inpainter.state")
    save(model, "inpainter.safetensors", {"seed": 0})
    model, card = load("inpainter.safetensors")

Theory. The network draws the whole image `out`; `comp` takes its known pixels from the truth. Liu et al. (2018, section
3.3) minimise::

    L_valid + 6 L_hole + 0.05 L_perceptual + 120 (L_style_out + L_style_comp) + 0.1 L_tv

L_valid and L_hole are mean absolute errors, L_perceptual and L_style compare the features of a network that stays as it
is (VGG-16's pool1 to pool3) and their Gram matrices, L_tv is the unevenness around the holes.

References: Liu et al. 2018, "Image inpainting for irregular holes using partial convolutions", equations 3 to 7; Major
et al. 2020, section 3, "Inpainting".
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
from torch.nn import functional
from tqdm.auto import tqdm

from xai_lib import checkpoints, models, training_state
from xai_lib.config import Runtime, numpy_generator, torch_generator
from xai_lib.inpainting import PartialUNet
from xai_lib.training import Stack

WEIGHTS = {"valid": 1.0, "hole": 6.0, "perceptual": 0.05, "style_out": 120.0, "style_comp": 120.0, "tv": 0.1}
KIND = "partial_unet"

Features = Callable[[Tensor], list[Tensor]]


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


# ---------------------------------------------------------------------------------------- losses


def stages(model: models.Classifier, examples: Tensor, runtime: Runtime, count: int = 3) -> Features:
    """Features of a classifier at its first `count` halvings of the image: what the layer that halves it returns.

    For VGG-16 these are pool1, pool2 and pool3. Each stage is divided by its root mean square over `examples`
    (N, 1, H, W), so that the weights of the loss, found for VGG-16, mean the same for other networks. The precision is
    the runtime's.
    """

    def raw(x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        with runtime.autocast():
            x = model.normalize(x)
            for layer in model.features.children():
                before, x = x.shape[-1], layer(x)
                if x.shape[-1] < before:
                    found.append(x.float())
                if len(found) == count:
                    break
        return found

    with torch.no_grad():
        sizes = [float(f.square().mean().sqrt()) for f in raw(examples.to(runtime.device))]
    return lambda x: [f / size for f, size in zip(raw(x), sizes, strict=True)]


def gram(features: Tensor) -> Tensor:
    """F F^T / (C H W) of features (N, C, H, W): (N, C, C)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def losses(out: Tensor, truth: Tensor, keep: Tensor, features: Features | None) -> dict[str, Tensor]:
    """The six terms, without their weights; images (N, 1, H, W). Without features three of them are 0."""
    comp = keep * truth + (1 - keep) * out
    drawn, mixed, true = (features(x) if features else [] for x in (out, comp, truth))
    style = {
        name: sum(((gram(a) - gram(b)).abs().mean() for a, b in zip(found, true, strict=True)), out.new_zeros(()))
        for name, found in (("style_out", drawn), ("style_comp", mixed))
    }
    rim = functional.max_pool2d(1 - keep, 3, 1, 1)  # the holes, one pixel wider
    tv = sum(
        (comp.diff(dim=d).abs() * rim.narrow(d, 1, n - 1) * rim.narrow(d, 0, n - 1)).sum() / comp.numel()
        for d, n in ((2, comp.shape[2]), (3, comp.shape[3]))
    )
    return {
        "valid": (keep * (out - truth)).abs().mean(),
        "hole": ((1 - keep) * (out - truth)).abs().mean(),
        "perceptual": sum(
            (functional.l1_loss(a, t) + functional.l1_loss(b, t) for a, b, t in zip(drawn, mixed, true, strict=True)),
            out.new_zeros(()),
        ),
        **style,
        "tv": torch.as_tensor(tv),
    }


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
