"""OMIG: how to change an image so that an ensemble predicts a better (lower) contrast-detail curve.

Usage::

    found = explain(members, x)                          # x (N, 1, H, W), normalised as in training
    found.change                                         # x' - x: raise the image where it is positive
    effect = occlusion(members, x, pixels=disc)          # f(x with one pixel set to 0) - f(x)

Theory: f(x) is the *midpoint* of the curve, the mean over the members and their K outputs, and R its gradient, eq.
(1). From x_0 = x the path follows ``x_{l+1} = x_l - (c / L) R(x_l)``, eq. (2), and OMIG is ``x_L - x_0``, eq. (3).
Components of R(x_l) further than `z_max` sd from the mean of that gradient are set to 0 (section 2.3.1). Sensitivity
analysis is -R(x_0). As c falls to 0, OMIG / c becomes 1 / L of it and (L - 1) / L of the sensitivity clipped once,
because Algorithm 1 does not clip the first gradient; without clipping it becomes the sensitivity itself.

c is a path length in squared normalised grey levels for each unit of the curve: an image normalised with an sd s times
as large walks s^2 times as far in grey levels for the same c.

Reference: Amanova, Martin, Elster: Explainability for deep learning in mammography image quality assessment, Mach.
Learn.: Sci. Technol. 3 (2022) 025015, section 2.3.1, eqs. (1)-(3), Algorithm 1. Where it is read in another way than
printed: the members are m = 1..M (printed 0..M), and the change is ``-(c / L) sum_l R(x_l)`` (printed eps / L, with
eps = c / L). Algorithm 1 evaluates R(x_L) as its last act and does not use it: L + 1 gradients where L do.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from xai_lib.attribution.core import shadow
from xai_lib.attribution.folding import folded


@dataclass(frozen=True)
class Omig:
    """What Algorithm 1 finds for N images, and what sensitivity analysis says on the way. Units: see the module.

    `clipped_sensitivity` is -R(x_0) with its outliers set to 0: it tells the clipping from the path.
    """

    change: Tensor  # (N, 1, H, W) x_L - x_0
    sensitivity: Tensor  # (N, 1, H, W) -R(x_0)
    clipped_sensitivity: Tensor  # (N, 1, H, W)
    start: Tensor  # (N,) midpoint f(x_0), unit of the curve
    end: Tensor  # (N,) f(x_L)
    clipped_share: Tensor  # (N,) of the components of all clipped gradients of the path, 0..1


def explain(
    members: Sequence[nn.Module],
    x: Tensor,
    c: float = 1.0,
    steps: int = 50,
    z_max: float | None = 3.0,
    clip_first: bool = False,
    fast: bool = False,
) -> Omig:
    """Algorithm 1. Images of a batch are independent; `steps` gradients for each member, and a last forward pass.

    Args:
        members: networks that give curves (N, K), all with the same K. They are run in eval mode and not changed.
        x: (N, 1, H, W) normalised images, finite.
        c: length of the path, > 0.
        steps: L, >= 1.
        z_max: threshold t of the Z-scores; None clips nothing.
        clip_first: also clip R(x_0), which Algorithm 1 as printed does not.
        fast: run the members as `fold` makes them: the same up to rounding.

    Raises:
        TypeError: `members` is not a list of networks, or one does not give a tensor.
        ValueError: an argument outside its range, an image that is not finite or has another shape, members whose
            outputs differ in shape or are not finite.
    """
    check_path(c, steps, z_max)
    return follow(ready(members, fast), checked(x), c, steps, z_max, clip_first)


def follow(
    networks: Sequence[nn.Module], x: Tensor, c: float, steps: int, z_max: float | None, clip_first: bool
) -> Omig:
    """`explain` with networks that are `ready` and arguments that are checked.

    The change is summed by itself and not taken as a difference of images: at small c rounding would hide it.
    """
    change, clipped = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    first, start = gradient(networks, x)
    require_finite(networks, start)
    once = first.masked_fill(outliers(first, z_max), 0)
    for step in range(steps):
        r = first if step == 0 else gradient(networks, x + change)[0]
        if step > 0 or clip_first:
            far = outliers(r, z_max)
            r = r.masked_fill(far, 0)
            clipped += far.double().mean((1, 2, 3))
        change = change - c / steps * r
    gradients = max(1, steps - (not clip_first))  # clipped ones
    return Omig(change, -first, -once, start, midpoint(networks, x + change), clipped / gradients)


def midpoint(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """f(x) (N,): mean over networks and outputs, no gradient."""
    with torch.no_grad():
        return torch.stack([curve.mean(1) for curve in _curves(networks, x)]).mean(0)


def gradient(networks: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """R(x) (N, 1, H, W), eq. (1), and f(x) (N,); one backward for each network, so that memory does not grow with M."""
    r, f = torch.zeros_like(x), x.new_zeros(len(x))
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        for curve in _curves(networks, x):
            middle = curve.mean(1)
            r += torch.autograd.grad(middle.sum(), x)[0] / len(networks)  # networks' weights get no gradient
            f += middle.detach() / len(networks)
    return r, f


def _curves(networks: Sequence[nn.Module], x: Tensor) -> Iterator[Tensor]:
    """The curves (N, K) of one network after the other."""
    first = None
    for i, network in enumerate(networks):
        curve = network(x)
        if not isinstance(curve, Tensor):
            raise TypeError(f"members: network {i} gives {type(curve).__name__}, expected a tensor (N, K)")
        if curve.ndim != 2 or len(curve) != len(x):
            raise ValueError(f"members: network {i} gives {tuple(curve.shape)} for {len(x)} images, expected (N, K)")
        first = first or curve.shape
        if curve.shape != first:
            raise ValueError(f"members: network {i} gives {curve.shape[1]} values, network 0 gives {first[1]}")
        yield curve


def outliers(r: Tensor, z_max: float | None) -> Tensor:
    """Where a gradient (N, 1, H, W) lies more than `z_max` sd from its image's own mean; nowhere for None.

    The sd is that of the components (divided by their number). Both are computed in float64, so that equal components
    have no distance from their mean.
    """
    if z_max is None:
        return torch.zeros_like(r, dtype=torch.bool)
    exact = r.double()
    distance = (exact - exact.mean((1, 2, 3), keepdim=True)).abs()
    return distance > z_max * distance.square().mean((1, 2, 3), keepdim=True).sqrt()


def occlusion(
    members: Sequence[nn.Module],
    x: Tensor,
    pixels: np.ndarray | Tensor | Sequence[tuple[int, int]] | None = None,
    value: float = 0.0,
    batch: int = 64,
) -> Tensor:
    """Occlusion sensitivity f(x with pixel i set to `value`) - f(x), (N, P), for P pixels (end of section 2.3.2).

    The unchanged image is in every batch: a pixel without effect then gives 0, whatever the size of the batch.

    Args:
        members: as for `explain`.
        x: (N, 1, H, W) normalised images.
        pixels: boolean mask (H, W), whose pixels are taken in the order of `np.argwhere`, or P pairs (row, column);
            None: all H x W of them, as in the paper.
        value: in normalised grey levels. The paper's 0 is the training images' mean after normalisation, not black.
        batch: changed images in one pass.

    Raises:
        TypeError: `members` is not a list of networks, or one does not give a tensor.
        ValueError: pixels outside the image or a mask of another shape, a bad `value` or `batch`, bad `x` or members.
    """
    networks, x = ready(members), checked(x)
    where = places(pixels, x.shape[-2:])
    if batch < 1:
        raise ValueError(f"batch: {batch} is below 1")
    if not np.isfinite(value):
        raise ValueError(f"value: {value} is not a finite number")
    return torch.stack([occluded(networks, image, where, value, batch) for image in x])


def occluded(networks: Sequence[nn.Module], image: Tensor, where: np.ndarray, value: float, batch: int) -> Tensor:
    """`occlusion` of one image (1, H, W) at `where` (P, 2), with networks that are `ready`: (P,)."""
    effects = [image.new_zeros(0)]
    for chunk in torch.from_numpy(where).to(image.device).split(batch):
        changed = image.repeat(len(chunk) + 1, 1, 1, 1)
        changed[torch.arange(len(chunk), device=image.device), 0, chunk[:, 0], chunk[:, 1]] = value
        f = midpoint(networks, changed)
        require_finite(networks, f)
        effects.append(f[:-1] - f[-1])
    return torch.cat(effects)


def places(pixels: np.ndarray | Tensor | Sequence[tuple[int, int]] | None, shape: Sequence[int]) -> np.ndarray:
    """Pixels as rows and columns (P, 2) int64. Raises ValueError: outside the image, or a mask of another shape."""
    if pixels is None:
        pixels = np.ones(tuple(shape), bool)
    found = np.asarray(pixels)
    if found.dtype == bool:
        if found.shape != tuple(shape):
            raise ValueError(f"pixels: a mask of {found.shape} for images of {tuple(shape)}")
        return np.argwhere(found)
    if found.size == 0:
        return np.zeros((0, 2), np.int64)
    if found.ndim != 2 or found.shape[1] != 2 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"pixels: {found.dtype} {found.shape}, expected a boolean mask or pairs (row, column)")
    outside = ((found < 0) | (found >= np.array(shape))).any(1)
    if outside.any():
        raise ValueError(f"pixels: {tuple(found[outside][0].tolist())} lies outside the image of {tuple(shape)}")
    return found.astype(np.int64)


def ready(members: Sequence[nn.Module], fast: bool = False) -> list[nn.Module]:
    """The members in eval mode; as they are where they are in it, else a `shadow`: the user's modules never change.

    Raises:
        TypeError: not a list of networks.
        ValueError: an empty list.
    """
    many = isinstance(members, nn.ModuleList) or (isinstance(members, Sequence) and not isinstance(members, str))
    if not many or not all(isinstance(m, nn.Module) for m in members):
        raise TypeError(f"members: {type(members).__name__}, expected a list of networks (a single one: [network])")
    if not len(members):
        raise ValueError("members: the list is empty, expected at least one network")
    return [fold(m) if fast else _evaluated(m) for m in members]


def _evaluated(member: nn.Module) -> nn.Module:
    if not any(m.training for m in member.modules()):
        return member
    return (copy.deepcopy if isinstance(member, fx.GraphModule) else shadow)(member).eval()


def fold(member: nn.Module) -> nn.Module:
    """A faster copy that computes the same up to rounding.

    Batch norm is folded into the convolutions, memory is channels_last, and a ReLU before a max-pool is put after it,
    which changes no value and no gradient. A network that cannot be traced as a graph (its forward asks for values or
    sizes of the image) only becomes channels_last. The copy is in eval mode; weights that are not folded are shared.
    """
    if isinstance(member, fx.GraphModule):  # folded before
        return _evaluated(member)
    ours = shadow(member).eval()
    graph = folded(ours)
    return ours.to(memory_format=torch.channels_last) if graph is None else _pool_first(graph)


def _pool_first(network: fx.GraphModule) -> fx.GraphModule:
    """max-pool(ReLU(x)) as ReLU(max-pool(x)): a quarter of the values to rectify."""
    modules = dict(network.named_modules())
    for pool in list(network.graph.nodes):
        relu = pool.args[0] if pool.args else None
        if not (isinstance(relu, fx.Node) and pool.op == relu.op == "call_module" and len(relu.users) == 1):
            continue
        after, before = modules[str(pool.target)], modules[str(relu.target)]
        if type(after) is nn.MaxPool2d and type(before) is nn.ReLU and not after.return_indices:
            pool.replace_all_uses_with(relu)
            pool.args, relu.args = relu.args, (pool,)
            pool.append(relu)
    network.recompile()
    return network


def checked(x: Tensor) -> Tensor:
    """`x` without its graph. Raises ValueError: not finite images (N, 1, H, W) of a floating type."""
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 1 or not x.numel() or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: {got}, expected a floating tensor of images (N, 1, H, W), N >= 1")
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bad.any():
        raise ValueError(f"x: image {int(bad.nonzero()[0])} holds NaN or infinite values")
    return x.detach()


def check_path(c: float, steps: int, z_max: float | None) -> None:
    """Raises ValueError: a path that Algorithm 1 cannot walk; the message names the argument."""
    if not (np.isfinite(c) and c > 0):
        raise ValueError(f"c: {c} is not a finite number above 0")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps: {steps!r} is not an integer >= 1")
    if z_max is not None and not z_max > 0:
        raise ValueError(f"z_max: {z_max} is not above 0; None clips nothing")


def require_finite(networks: Sequence[nn.Module], f: Tensor) -> None:
    """Raises ValueError: a midpoint is not finite; the message names a network with such weights, if there is one."""
    if torch.isfinite(f).all():
        return
    for i, network in enumerate(networks):
        for name, weight in network.state_dict().items():
            if not torch.isfinite(weight).all():
                raise ValueError(f"members: network {i} has NaN or infinite weights in {name!r}")
    raise ValueError(f"members: they give {f[~torch.isfinite(f)][0]} for finite images and weights")
