"""Does a map depend on what the network has learnt?

Usage::

    def explain(model, x, target): return attribute("saliency", model, x, target).map

    cascading_randomisation(explain, model, x, target, seed=0)      # similarity to the map of the trained network
    label_randomisation(explain, model, trained_on_permuted_labels, x, target)
    input_shift(explain, model, x, target, shift=0.5)               # a map should not change

They take any `explain`: (model, x (N, C, H, W), target (N,)) -> maps (N, H, W), and return a table with a row per
image. A model is never changed: what has to be changed is a copy. What removing pixels does is in `removal`.

Theory: a method whose map stays when the weights go (randomisation) shows the image, not the network. One whose map
moves when image and network are shifted together (input shift) shows the encoding of the image.

References: Adebayo et al. 2018, Sanity checks for saliency maps (cascading and data randomisation); Kindermans et al.
2019, The (un)reliability of saliency methods (input shift).
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from xai_lib.attribution.core import BAR_AFTER_S, Network
from xai_lib.attribution.measures import Array, as_maps, rank_correlation, top_overlap
from xai_lib.config import torch_generator

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]
Target = int | Sequence[int] | Tensor


def cascading_randomisation(
    explain: Explain,
    model: nn.Module,
    x: Tensor,
    target: Target,
    seed: int,
    layers: Sequence[str] | None = None,
    how: str = "reset",
    progress: bool = True,
) -> pd.DataFrame:
    """Cascading randomisation (Adebayo 2018): re-initialise layer after layer, head first, and compare the maps.

    Args:
        explain: the method.
        model: in eval mode.
        x: images (N, C, H, W).
        target: class or classes.
        seed: of the new weights.
        layers: names of layers or of whole blocks, in the order in which they are randomised. None: all layers with
            weights, in the reverse order of the forward pass; blocks are faster.
        how: "reset", the layer's own ``reset_parameters()``, as torch initialises it (batch-norm: also the statistics;
            a layer without this method is permuted); "permute", the weights change places within each tensor. A deep
            network that was reset hardly answers to the image any more (see `image_effect`): a method that compares
            outputs (occlusion, LIME, SHAP) then explains rounding and passes for no merit. "permute" keeps the scale.
        progress: show a bar on work of more than a few seconds.

    Returns:
        Columns step, layer, image, `rank_correlation` and `absolute_rank_correlation` (of signed and absolute maps),
        `top_overlap` (chance 0.1), each with the map of the trained network; NaN where a map is constant. Then
        `image_effect`, |f(x) - f(0)| at this step. Step 0 (layer "") is the untouched network explained a second time:
        below 1 where the method is random.

    Raises:
        ValueError: a layer that does not exist (the message lists those with weights) or has no weights, an unknown
            `how`, a model in train mode, maps that are not finite or not (N, H, W).
    """
    if how not in ("reset", "permute"):
        raise ValueError(f"how: {how!r} is not 'reset' or 'permute'")
    x, target = _inputs(model, x, target)
    changed = copy.deepcopy(model)
    modules, weighted = dict(changed.named_modules()), _called(changed, x[:1])
    names = weighted if layers is None else list(layers)
    for name in names:
        if name not in modules or not list(modules[name].parameters()):
            problem = "has no weights" if name in modules else "is not in the model"
            raise ValueError(f"layers: {name!r} {problem}; layers with weights are {', '.join(weighted)}")
    original, rows = _explained(explain, changed, x, target), []
    bar = tqdm(["", *names], unit="layers", delay=BAR_AFTER_S, leave=False, disable=not progress)
    for step, name in enumerate(bar):
        if step:
            _randomise(modules[name], torch_generator(seed, "randomise", name).initial_seed(), how)
        similar = _similarity(original, _explained(explain, changed, x, target))
        rows.append(pd.DataFrame({"step": step, "layer": name, **similar, "image_effect": _effect(changed, x, target)}))
    return pd.concat(rows, ignore_index=True)


def label_randomisation(
    explain: Explain, trained: nn.Module, shuffled_model: nn.Module, x: Tensor, target: Target
) -> pd.DataFrame:
    """Data randomisation (Adebayo 2018): compare with the maps of a network trained on permuted labels.

    Args:
        explain: the method.
        trained: the network, in eval mode.
        shuffled_model: the same architecture, trained in the same way until it has learnt permuted labels by heart.
        x: images (N, C, H, W).
        target: class or classes.

    Returns:
        Columns image, `rank_correlation`, `absolute_rank_correlation`, `top_overlap`, as `cascading_randomisation`.
    """
    x, target = _inputs(trained, x, target)
    _inputs(shuffled_model, x, target)
    maps = [_explained(explain, copy.deepcopy(model), x, target) for model in (trained, shuffled_model)]
    return pd.DataFrame(_similarity(*maps))


def input_shift(
    explain: Explain, model: nn.Module, x: Tensor, target: Target, shift: float | Sequence[float] | Tensor
) -> pd.DataFrame:
    """Input invariance (Kindermans 2019): shift the image, undo it inside the network, and compare the maps.

    Kindermans undoes the shift in the first layer's bias. Zero padding breaks that at the border; here the copy of the
    network subtracts the shift before its first layer, which is exact for every network. A method that compares with a
    baseline (0, a blur) that does not move with the image fails, and the size of the change says how much it matters.

    Args:
        explain: the method. It must call the model, not only its parts.
        model: in eval mode.
        x: images (N, C, H, W).
        target: class or classes.
        shift: added to every image: a number, one per channel, or a tensor that broadcasts to (C, H, W).

    Returns:
        Columns image, `relative_change` (sum |difference| / sum |map|, 0 for an invariant method), `rank_correlation`,
        `output_change` (largest difference of the outputs of the two networks: rounding).

    Raises:
        ValueError: a shift that does not fit; an `explain` that goes past the model's forward pass.
    """
    x, target = _inputs(model, x, target)
    offset = torch.as_tensor(shift).to(x)
    offset = offset[:, None, None] if offset.ndim == 1 else offset
    try:
        offset = offset.broadcast_to(x.shape[1:])
    except RuntimeError as error:
        expected = f"a number, ({x.shape[1]},) or {tuple(x.shape[1:])}"
        raise ValueError(f"shift: shape {tuple(offset.shape)} does not fit, expected {expected}") from error
    if not torch.isfinite(offset).all():
        raise ValueError("shift: it holds NaN or infinite values")
    calls: list[int] = []
    moved = _shifted(model, offset, calls)
    before = _explained(explain, copy.deepcopy(model), x, target)
    after = _explained(explain, moved, x + offset, target)
    if not calls:
        raise ValueError("explain: it never calls the model, only its parts, so that the shift cannot be undone")
    with torch.no_grad():
        change = (model(x) - moved(x + offset)).double().abs().reshape(len(x), -1).amax(1).cpu()
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(after - before).sum((1, 2)) / np.abs(before).sum((1, 2))
    columns = {"relative_change": relative, "rank_correlation": rank_correlation(before, after)}
    return pd.DataFrame({"image": range(len(x)), **columns, "output_change": change.numpy()})


def _inputs(model: nn.Module, x: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Images on the model's device, in the user's precision, and targets (N,), both checked."""
    network = Network(model)
    return x.detach().to(network.device), network.inputs(x, target)[1]


def _explained(explain: Explain, model: nn.Module, x: Tensor, target: Tensor) -> Array:
    maps = explain(model, x.clone(), target)
    expected = (len(x), *x.shape[2:])
    if tuple(np.shape(maps)) != expected:
        raise ValueError(f"explain: expected maps of shape {expected}, got {tuple(np.shape(maps))}")
    return as_maps(maps, "explain")


def _similarity(first: Array, second: Array) -> dict[str, Any]:
    return {
        "image": range(len(first)),
        "rank_correlation": rank_correlation(first, second),
        "absolute_rank_correlation": rank_correlation(np.abs(first), np.abs(second)),
        "top_overlap": top_overlap(first, second),
    }


def _called(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the layers with weights of their own, the last one that runs first. Hooks: only for a copy."""
    names = {m: name for name, m in model.named_modules() if list(m.parameters(recurse=False))}
    seen: dict[str, None] = {}
    handles = [m.register_forward_pre_hook(lambda m, _: seen.setdefault(names[m])) for m in names]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return list(seen)[::-1]


def _randomise(module: nn.Module, seed: int, how: str) -> None:
    """Draw all weights of a module anew, in place, the same on every device; torch's random state stays as it was."""
    device = next(module.parameters()).device
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for part in module.cpu().modules():
            own, reset = list(part.parameters(recurse=False)), getattr(part, "reset_parameters", None)
            if own and reset is not None and how == "reset":
                reset()
                continue
            for p in own:
                p.copy_(p.flatten()[torch.randperm(p.numel())].view_as(p))
    module.to(device)


def _effect(model: nn.Module, x: Tensor, target: Tensor) -> Array:
    """|f(x) - f(0)| of every image, (N,)."""
    network = Network(model)
    x, target = network.inputs(x, target)
    with torch.no_grad():
        return (network.scores(x, target) - network.scores(torch.zeros_like(x), target)).abs().double().cpu().numpy()


def _shifted(model: nn.Module, offset: Tensor, calls: list[int]) -> nn.Module:
    """A copy that subtracts `offset` from its images and logs its calls; its type and its layers' names stay usable."""
    base: Any = type(model)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        calls.append(len(x))
        return base.forward(self, x - offset)

    moved = copy.deepcopy(model)
    moved.__class__ = type(f"Shifted{base.__name__}", (base,), {"forward": forward})
    return moved
