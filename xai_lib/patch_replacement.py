"""Which clinical content an activation stands for: patches of the ROI replaced by *Lesion* and by *Background*.

Usage::

    contents = lesion_background(roi)                               # of `glcm`
    found = patch_replacement(model, roi, contents)                 # 49 places x 2 contents
    found.labels, found.distances, found.activation                 # (7, 7), (2, 7, 7), (7, 7)
    pixels = patch_replacement(pixels_alone(), roi, contents)       # the same rule without a network
    image_scores(cells(found, mask))                                # AUC against the mask, beside its controls

Theory: cell (p, q) of the last 7 x 7 activations is said to look at the patch of 32 x 32 pixels at that place. That
patch alone is replaced, once by each content, and eq. 6 measures how far all activations move:
``dis = 1 / 49 sum_n ||A_n - A'_n||_2``. The cell gets the name of the content that moves them less.

Where a content and the ROI are alike in grey, a replacement changes little, whatever the network. And an ROI is centred
on its mass, so that a cell's place tells much of the mask. A verdict speaks of the network only where it is better than
that of the pixels alone, of an untrained network, of brightness and of the distance to the centre.

Reference: Li et al. 2025, section 4.2, steps 2 and 3, equation 6, Figs. 5, 8d and 9.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from xai_lib.attribution.changed_rectangle import LocalNetwork
from xai_lib.attribution.core import Network, chunked
from xai_lib.attribution.measures import rank_correlation
from xai_lib.attribution.occlusion import window_corners
from xai_lib.glcm import as_grey
from xai_lib.knowledge_transfer import activation_map
from xai_lib.models import Classifier
from xai_lib.statistics import OneClassError, auc

CONTENTS = ("lesion", "background")
CHUNK = 14  # replaced images at a time: a row of 7 cells; faster than 4 or 8 for DenseNet121 and MobileNetV2


@dataclass(frozen=True)
class PatchReplacement:
    """What eq. 6 says about every cell of an activation map of h x w."""

    distances: np.ndarray  # (2, h, w) mean L2 distance of the activations, by `CONTENTS`
    activation: np.ndarray  # (h, w) eq. 3 of the ROI itself
    brightness: np.ndarray  # (h, w) mean grey of the ROI under each cell
    patch: int  # pixels
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> np.ndarray:
        """True (h, w) where *Lesion* moves the activations less than *Background*; a tie is *Background*."""
        return self.distances[0] < self.distances[1]

    @property
    def score(self) -> np.ndarray:
        """How clearly a cell is *Lesion*, (h, w) in [-1, 1]: ``(dis_B - dis_L) / (dis_B + dis_L)``, 0 if both are 0."""
        lesion, background = self.distances
        total = lesion + background
        return np.divide(background - lesion, total, out=np.zeros_like(total), where=total > 0)


def patch_replacement(
    model: nn.Module,
    roi: ArrayLike,
    contents: Mapping[str, ArrayLike],
    patch: int = 32,
    local: bool | Literal["auto"] = "auto",
    chunk: int = CHUNK,
) -> PatchReplacement:
    """Replace every patch of one ROI by each content and measure how far the activations move (eq. 6).

    Args:
        model: in eval mode. A `Classifier`, whose `features` are the activations; or any module that takes (N, 1, H, W)
            and gives activations (N, C, h, w), for example the first layers of a network, or `pixels_alone`.
        roi: grey image (H, W) or (1, H, W) in [0, 1]; its sides are multiples of the patch.
        contents: images "lesion" and "background" of the ROI's size.
        patch: side of a patch in pixels: the stride of the activations, 32 for all of the papers' networks.
        local: recompute only what a patch can change, see `LocalNetwork`; the distances are the same but for rounding.
        chunk: replaced images at a time.

    Raises:
        ValueError: contents of another name or size, an ROI whose sides are no multiples of the patch, activations
            that do not have a cell for every patch or are not finite, or a model in train mode.
    """
    return next(patch_replacements(model, [(roi, contents)], patch, local, chunk))


def patch_replacements(
    model: nn.Module,
    rois: Iterable[tuple[ArrayLike, Mapping[str, ArrayLike]]],
    patch: int = 32,
    local: bool | Literal["auto"] = "auto",
    chunk: int = CHUNK,
) -> Iterator[PatchReplacement]:
    """`patch_replacement` of many pairs of ROI (H, W) and contents by name; the network is prepared once.

    Args and errors as there.
    """
    network = Network(_flat(model), progress=False)
    variants = LocalNetwork(network, local)
    activations = network.module[:-1]  # type: ignore[index]
    for roi, contents in rois:
        grey = as_grey("roi", roi)
        fills, corners = _fills(grey.shape, contents), _corners(grey.shape, patch)
        x = torch.as_tensor(grey[None, None]).to(network.device, network.dtype)  # (1, 1, H, W)
        with torch.no_grad():
            maps = activations(x.clone())  # (1, C, h, w)
        _check_maps(maps, grey.shape, patch)
        variants.keep(x, maps.flatten(1))
        distances = _distances(variants, torch.as_tensor(fills).to(x), corners, patch, maps.shape, chunk)
        size = maps.shape[-2:]
        yield PatchReplacement(
            distances.reshape(2, *size).cpu().numpy(),
            activation_map(maps)[0].double().cpu().numpy(),
            _cell_means(grey, patch),
            patch,
            tuple(network.notes),
        )


def pixels_alone(patch: int = 32) -> nn.Module:
    """The control without a network: its "activations" are the pixels of each patch, (N, patch * patch, h, w).

    Eq. 6 is then the Euclidean distance in grey between the patch and what replaces it, divided by h * w.
    """
    return nn.PixelUnshuffle(patch).eval()


def cells(found: PatchReplacement, mask: ArrayLike, inside: float = 0.5) -> pd.DataFrame:
    """One row for each cell, to be held against the mask of the mass.

    Args:
        found: the verdict on an ROI.
        mask: (H, W) of the ROI's size, bool or 0 and 1.
        inside: share of a cell that the mask must cover, in (0, 1].

    Returns:
        Columns row, col; share (of the cell in the mass) and inside (0 or 1); score, lesion (label, 0 or 1) and
        activation; and what is known without a network: brightness (mean grey) and centre (minus the distance to the
        image's centre in cells, for ROIs are centred on their mass).

    Raises:
        ValueError: a mask that is not binary, empty, full, or of another size; `inside` out of range.
    """
    if not 0 < inside <= 1:
        raise ValueError(f"inside: {inside}, expected a share above 0 and at most 1")
    height, width = found.activation.shape
    share = _cell_means(_binary(mask, (height * found.patch, width * found.patch)), found.patch)
    row, col = np.indices((height, width))
    columns = {
        "row": row,
        "col": col,
        "share": share,
        "inside": (share >= inside).astype(int),
        "score": found.score,
        "lesion": found.labels.astype(int),
        "activation": found.activation,
        "brightness": found.brightness,
        "centre": -np.hypot(row - (height - 1) / 2, col - (width - 1) / 2),
    }
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


def image_scores(frame: pd.DataFrame) -> dict[str, float]:
    """Figures of one image from its `cells`; for pooled ones give `statistics.auc` the columns of all images.

    Returns:
        Areas under the ROC curve against ``inside``: auc (of the score), auc_labels (of the labels alone, which is the
        mean of sensitivity and specificity), auc_brightness and auc_centre (controls; the former is below 0.5 where
        masses are dark); activation_gap, the mean activation of *Lesion* cells minus that of *Background* cells, over
        the mean of all. NaN where one kind of cell is missing.
    """
    columns = {"auc": "score", "auc_labels": "lesion", "auc_brightness": "brightness", "auc_centre": "centre"}
    figures = {name: _auc(frame["inside"], frame[column]) for name, column in columns.items()}
    lesion, activation = frame["lesion"].to_numpy() == 1, frame["activation"].to_numpy()
    defined = lesion.any() and not lesion.all() and activation.mean() > 0
    gap = (activation[lesion].mean() - activation[~lesion].mean()) / activation.mean() if defined else np.nan
    return {**figures, "activation_gap": float(gap)}


def agreement(one: PatchReplacement, other: PatchReplacement) -> float:
    """Spearman's correlation of two verdicts' scores on the same ROI, for example of a network and `pixels_alone`.

    Raises:
        ValueError: verdicts of different size.
    """
    if one.score.shape != other.score.shape:
        raise ValueError(f"other: its score has shape {other.score.shape}, expected {one.score.shape}")
    return float(rank_correlation(one.score[None], other.score[None])[0])


def _flat(model: nn.Module) -> nn.Sequential:
    """Image -> activations -> vector (N, C * h * w), as the engine wants it."""
    parts = (model.normalize, model.features) if isinstance(model, Classifier) else (model,)
    whole = nn.Sequential(*parts, nn.Flatten().eval())
    whole.training = False  # the frame only: the mode of the user's layers is theirs, and checked
    return whole


def _fills(shape: tuple[int, ...], contents: Mapping[str, ArrayLike]) -> np.ndarray:
    """The contents as one array (2, H, W)."""
    if set(contents) != set(CONTENTS):
        raise ValueError(f"contents: they are named {', '.join(contents)}, expected {' and '.join(CONTENTS)}")
    fills = [as_grey(f"contents[{name!r}]", contents[name]) for name in CONTENTS]
    for name, fill in zip(CONTENTS, fills, strict=True):
        if fill.shape != shape:
            raise ValueError(f"contents[{name!r}]: it has shape {fill.shape}, the ROI {shape}")
    return np.stack(fills)


def _corners(shape: tuple[int, ...], patch: int) -> np.ndarray:
    """Corners (h * w, 2) of the patches that tile the ROI."""
    if patch < 1 or shape[0] % patch or shape[1] % patch:
        raise ValueError(f"roi: {shape[0]} x {shape[1]} pixels, expected multiples of the patch's {patch}")
    return window_corners((shape[0], shape[1]), (patch, patch), (patch, patch))


def _check_maps(maps: Tensor, shape: tuple[int, ...], patch: int) -> None:
    expected = (shape[0] // patch, shape[1] // patch)
    if maps.ndim != 4 or tuple(maps.shape[-2:]) != expected:
        raise ValueError(
            f"patch: {patch} pixels give {expected[0]} x {expected[1]} patches, but the model's activations have shape "
            f"{tuple(maps.shape)}; expected one cell for each patch"
        )
    if not torch.isfinite(maps).all():
        raise ValueError("model: its activations of the ROI are not finite")


def _distances(
    variants: LocalNetwork, fills: Tensor, corners: np.ndarray, patch: int, shape: torch.Size, chunk: int
) -> Tensor:
    """Eq. 6 for both contents at every corner, (2, M) in float64; the two of one place run together."""
    places = np.repeat(corners, 2, axis=0)
    patches = torch.stack([fills[:, r : r + patch, c : c + patch] for r, c in corners]).flatten(0, 1)[:, None]
    found = fills.new_zeros(len(places), dtype=torch.float64)

    def run(start: int, stop: int) -> Tensor:
        moved = variants.outputs(patches[start:stop], places[start:stop]) - variants.image_outputs()
        return moved.reshape(stop - start, *shape[1:]).double().norm(dim=1).mean((1, 2))

    for start, stop, value in chunked(variants.network, len(places), run, chunk):
        found[start:stop] = value
    return found.reshape(-1, 2).T


def _cell_means(image: np.ndarray, patch: int) -> np.ndarray:
    """Mean of an image (H, W) in each patch, (H / patch, W / patch)."""
    height, width = image.shape
    return image.reshape(height // patch, patch, width // patch, patch).mean((1, 3))


def _binary(mask: ArrayLike, shape: tuple[int, int]) -> np.ndarray:
    values = np.asarray(mask)
    if values.shape != shape:
        raise ValueError(f"mask: shape {values.shape}, expected the ROI's {shape}")
    if not np.isin(values, (0, 1)).all():
        raise ValueError("mask: expected only 0 and 1")
    if not values.any() or values.all():
        raise ValueError(f"mask: it is {'full' if values.any() else 'empty'}, expected a mass and something around it")
    return values.astype(float)


def _auc(truth: pd.Series, score: pd.Series) -> float:
    try:
        return auc(truth, score)
    except OneClassError:
        return float("nan")
