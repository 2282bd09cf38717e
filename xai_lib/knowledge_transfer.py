"""Study 4, the method: activation maps, the distance between two of them, and the loss that transfers one to another.

Usage::

    A = group_activations(model, rois)["group4"]                   # (N, C, h, w)
    F = activation_map(A)                                          # equation 3: (N, h, w)
    d = transfer_distance(activation_map(A_mask), F)               # equation 4: (N,)
    value = transfer_loss(cross_entropy, {"group4": d}, beta=10.0)  # equation 5

A teacher has learned to classify binary masks. A student learns from the images (ROIs) with a loss that also asks its
activation map to look like the one that the teacher has of the same case's mask (attention transfer, Zagoruyko and
Komodakis 2017). The groups of a network are found in `network_groups`.

Reference: Li et al. 2025, section 4.1.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai_lib.models import Classifier
from xai_lib.network_groups import Group, evaluating, group_activations, groups, run, steps
from xai_lib.training import Objective

FORMS = ("printed", "mean_squared")
READS = ("image", "mask")
ALL = "all"


# ---------------------------------------------------------------------------------------- equations 3 to 5


def activation_map(activations: Tensor) -> Tensor:
    """Equation 3, ``F = sum_i |A_i|^2 / C``: mean over channels of the squares, (N, C, h, w) -> (N, h, w).

    Raises:
        ValueError: not four axes.
    """
    if activations.ndim != 4:
        raise ValueError(f"activations: expected shape (N, C, h, w), got {tuple(activations.shape)}")
    return activations.float().square().mean(1)


def transfer_distance(f_mask: Tensor, f_roi: Tensor, form: str = "printed", layer: str = "the layer") -> Tensor:
    """Equation 4: distance of two activation maps, each divided by its L2 norm.

    Args:
        f_mask: activation maps of masks, (N, h, w).
        f_roi: activation maps of the images, (N, h, w).
        form: "printed", the L2 norm of the difference, in [0, sqrt(2)]; "mean_squared", the mean over the cells of its
            square, as in the code of Zagoruyko and Komodakis.
        layer: named in errors.

    Returns:
        Distances (N,).

    Raises:
        ValueError: an unknown form, maps of different shape, or a map of zeros, which has no direction.
    """
    if form not in FORMS:
        raise ValueError(f"form: {form!r} is not one of {', '.join(FORMS)}")
    if f_mask.shape != f_roi.shape or f_mask.ndim != 3:
        raise ValueError(
            f"{layer}: the maps of mask and ROI have shapes {tuple(f_mask.shape)} and {tuple(f_roi.shape)}, expected "
            "the same (N, h, w); the teacher's groups must have the student's resolution"
        )
    difference = _direction(f_mask, f"{layer}: the activation map of mask") - _direction(
        f_roi, f"{layer}: the activation map of ROI"
    )
    if form == "printed":
        return torch.linalg.vector_norm(difference, dim=1)
    return difference.square().mean(1)


def _direction(maps: Tensor, what: str) -> Tensor:
    """Maps as vectors of length 1: (N, h, w) -> (N, h * w)."""
    vectors = maps.flatten(1)
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    if not (norms > 0).all():
        first = int((~(norms > 0)).flatten().nonzero()[0])
        raise ValueError(f"{what} {first} is zero or not a number, so it has no direction")
    return vectors / norms


def transfer_loss(cross_entropy: Tensor, distances: Mapping[str, Tensor], beta: float) -> Tensor:
    """Equation 5: ``cross_entropy + beta / 2 * sum_j d_j``; each d_j (N,) is averaged over the images."""
    return cross_entropy + transfer_term(distances, beta)


def transfer_term(distances: Mapping[str, Tensor], beta: float) -> Tensor:
    """The second part of equation 5, ``beta / 2 * sum_j d_j``, from distances (N,) by group; a scalar.

    Raises:
        ValueError: no distance, or a negative beta.
    """
    if not distances:
        raise ValueError("distances: there is none, name at least one group")
    if not beta >= 0:
        raise ValueError(f"beta: {beta} is below 0")
    return beta / 2 * torch.stack([d.mean() for d in distances.values()]).sum()


# ---------------------------------------------------------------------------------------- teacher and student


class Reader(nn.Module):
    """A network of which a part trains, reading one of two inputs that lie behind each other in the channels.

    It gets (N, 2 C, H, W), image and mask: pixels (C = 1), or what the part that does not train made of them.

    Args:
        model: the network; the weights before the group `train_from` are frozen, in place.
        train_from: the first group that trains, or "all".
        pre_norm: as in `groups`.
        reads: "image" or "mask".
        cut: the input is the frozen part's output.

    Raises:
        ValueError: a group that the network does not have, or a network for colour images.
    """

    def __init__(
        self,
        model: Classifier,
        train_from: str = "group4",
        pre_norm: bool = False,
        reads: str = "image",
        cut: bool = False,
    ) -> None:
        super().__init__()
        if model.spec["in_channels"] != 1:
            raise ValueError(f"model: it takes {model.spec['in_channels']} channels, expected 1, a grey image")
        self.model = model
        self.groups = groups(model, pre_norm=pre_norm)
        modules = steps(model)
        names = list(modules)
        first = 0 if train_from == ALL else names.index(groups(model, [train_from])[train_from].first)
        self.before = {name: modules[name].requires_grad_(False) for name in names[:first]}
        self.after = {name: modules[name] for name in names[first:]}
        self.cut, self.place, self.channels = cut, READS.index(reads), 1
        self.eval()
        if cut:
            with torch.no_grad():
                self.channels = self.frozen_output(torch.zeros(1, 1, 64, 64).to(model.head.weight)).shape[1]

    def train(self, mode: bool = True) -> "Reader":
        """Set the mode; what is frozen stays in eval mode, so that its statistics cannot move."""
        super().train(mode)
        for module in self.before.values():
            module.eval()
        return self

    def frozen_output(self, x: Tensor) -> Tensor:
        """What the frozen part makes of pixels (N, 1, H, W)."""
        return run(self.before, x)[0]

    def read(self, x: Tensor, names: Iterable[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (N, outputs), and the activations of the groups `names`."""
        start = self.place * self.channels
        modules = self.after if self.cut else self.before | self.after
        wanted = {name: self.groups[name] for name in names}
        out, found = run(modules, x[:, start : start + self.channels], wanted)
        return self.model.head(out.mean((2, 3))), found

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, outputs)."""
        return self.read(x)[0]


def transfer_objective(
    teacher: Reader, student: Reader, names: Iterable[str] = ("group4",), beta: float = 10.0, form: str = "printed"
) -> Objective:
    """For `training.fit`: the student's logits, and the second part of equation 5 for a batch.

    Raises:
        ValueError: a group that the student does not have or that does not train; a teacher whose maps have another
            shape, when a batch is seen.
    """
    chosen = list(names)
    for name in chosen:
        if name not in teacher.groups:
            raise ValueError(f"groups: {name!r} is not a group of the teacher, which has {', '.join(teacher.groups)}")
        if student.groups.get(name, Group("", "")).last not in student.after:
            can = [n for n, group in student.groups.items() if group.last in student.after]
            raise ValueError(f"groups: {name!r} is not a group of the student that trains, which are {', '.join(can)}")

    def step(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, seen = model.read(images, chosen)  # type: ignore[operator]
        with torch.no_grad():
            wanted = teacher.read(images, chosen)[1]
        distances = {}
        for name in chosen:
            pair = activation_map(wanted[name]), activation_map(seen[name])
            distances[name] = transfer_distance(*pair, form, name)
        return logits, transfer_term(distances, beta)

    return step


# ---------------------------------------------------------------------------------------- figures of the paper


def group_distances(
    model: Classifier,
    images: Tensor,
    masks: Tensor,
    form: str = "printed",
    pre_norm: bool = False,
    teacher: Classifier | None = None,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """Distance of ROI and mask after every group, as in Fig. 6: name -> (N,).

    Args:
        model: sees the images (N, 1, H, W) in [0, 1].
        images: (N, 1, H, W).
        masks: (N, 1, H, W), 0 and 1.
        form: of equation 4.
        pre_norm: as in `groups`.
        teacher: sees the masks; None: `model` itself, as in the paper's figure.
        batch_size: images at once.
    """
    seen = teacher or model
    found: dict[str, list[Tensor]] = {}
    with evaluating(model), evaluating(seen), torch.inference_mode():
        for rois, of_masks in zip(images.split(batch_size), masks.split(batch_size), strict=True):
            wanted = group_activations(seen, of_masks, pre_norm=pre_norm)
            for name, activations in group_activations(model, rois, pre_norm=pre_norm).items():
                pair = activation_map(wanted[name]), activation_map(activations)
                found.setdefault(name, []).append(transfer_distance(*pair, form, name))
    return {name: torch.cat(parts) for name, parts in found.items()}


def share_inside(maps: Tensor, regions: Tensor) -> Tensor:
    """Share of the activation inside a region: maps (N, h, w) >= 0 and regions (N, H, W), bool -> (N,).

    A cell that the region covers in part counts in part. A map that is equal everywhere has the region's share of the
    area, which is chance level. NaN where the whole map is 0.
    """
    inside = F.adaptive_avg_pool2d(regions.float()[:, None], (maps.shape[-2], maps.shape[-1]))[:, 0]
    return (maps * inside).sum((1, 2)) / maps.sum((1, 2))


def centred_disc(size: int, area: float) -> Tensor:
    """A disc in the middle of a square (size, size), bool, that covers the share `area` of it.

    Raises:
        ValueError: the share is not above 0, or the disc does not fit into the square.
    """
    if not 0 < area <= math.pi / 4:
        raise ValueError(f"area: {area} is not above 0 and at most pi / 4")
    away = torch.arange(size) - (size - 1) / 2
    return away[:, None] ** 2 + away**2 <= area * size**2 / math.pi
