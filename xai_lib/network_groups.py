"""Groups of a network's layers, one for each resolution, and their activations.

Usage::

    groups(model)                                            # {"group1": Group(first, last), ...}
    A = group_activations(model, rois)["group4"]             # (N, C, h, w)

A group is the part of a network between two changes of resolution; its activations are those of its last layer.
DenseNet121 has four: its dense blocks, the last one with the normalisation and ReLU that follow it.

Reference: Li et al. 2025, sections 4.1 and 5.1.1.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torchvision.models import densenet

from xai_lib.models import Classifier

GROUPS = 4


@dataclass(frozen=True)
class Group:
    """A part of a network, by the names of its first and last module; its activations are those after `last`."""

    first: str
    last: str


def steps(model: Classifier) -> dict[str, nn.Module]:
    """The network before pooling as modules to run one after another, by name; the first is its normalisation."""

    def unrolled(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if type(module) is nn.Sequential:
            for child, part in module.named_children():
                yield from unrolled(f"{name}.{child}", part)
        else:
            yield name, module

    return {"normalize": model.normalize, **dict(unrolled("features", model.features))}


def groups(model: Classifier, names: Iterable[str] | None = None, pre_norm: bool = False) -> dict[str, Group]:
    """The network's last four groups (or as many as it has), "group1" to "group4": one for each resolution.

    DenseNet's transitions, which halve the resolution, belong to no group: section 5.1.1 trains the last dense block.

    Args:
        model: the network.
        names: which groups; None gives all.
        pre_norm: let DenseNet's last group end before its final normalisation and ReLU.

    Raises:
        ValueError: a name that the network does not have, or `pre_norm` for a network that is no DenseNet.
    """
    modules = steps(model)
    sizes, x = {}, torch.zeros(1, model.spec["in_channels"], 64, 64).to(model.head.weight)
    with evaluating(model), torch.no_grad():
        for name, module in modules.items():
            x = module(x)
            sizes[name] = x.shape[-1]
    inside = [name for name in list(sizes)[1:] if not isinstance(modules[name], densenet._Transition)]
    parts = [list(part) for _, part in groupby(inside, key=sizes.__getitem__)][-GROUPS:]
    if pre_norm:
        if model.spec["architecture"] != "densenet121":
            raise ValueError(f"pre_norm: {model.spec['architecture']} has no normalisation after its last group")
        parts[-1] = [name for name in parts[-1] if isinstance(modules[name], densenet._DenseBlock)]
    known = {f"group{number}": Group(part[0], part[-1]) for number, part in enumerate(parts, 1)}
    for name in known if names is None else names:
        if name not in known:
            raise ValueError(f"groups: {name!r} is not in {model.spec['architecture']}, which has {', '.join(known)}")
    return {name: known[name] for name in (known if names is None else names)}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is as it was, also where only a part trains."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def run(
    modules: Mapping[str, nn.Module], x: Tensor, read: Mapping[str, Group] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run modules one after another: the last output, and the activations (N, C, h, w) of the groups in `read`.

    No copy is needed: what follows a group changes the resolution or is a batch normalisation, so nothing works in
    place on its activations.
    """
    ends = {group.last: name for name, group in (read or {}).items()}
    found = {}
    for name, module in modules.items():
        x = module(x)
        if name in ends:
            found[ends[name]] = x
    return x, found


def group_activations(
    model: Classifier, x: Tensor, names: Iterable[str] | None = None, pre_norm: bool = False
) -> dict[str, Tensor]:
    """Activations (N, C, h, w) of groups for images (N, 1 or 3, H, W), in the mode that the network is in.

    Raises:
        ValueError: as `groups`; images with another number of channels.
    """
    if x.ndim != 4 or x.shape[1] != model.spec["in_channels"]:
        raise ValueError(f"x: expected shape (N, {model.spec['in_channels']}, H, W), got {tuple(x.shape)}")
    return run(steps(model), x, groups(model, names, pre_norm))[1]
