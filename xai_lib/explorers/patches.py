"""Study 1, hands on: a patch, one of the seven methods, and how much of the map's top lies inside the lesion.

Usage::

    patch_maps(ready.first.model, ready.sets, picks, study.setup, known=live)

Reference: Sam-Millan et al. 2023, sections 3.2.4 and 4.1.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from xai_lib import plotting
from xai_lib.attribution import measures
from xai_lib.data import Case, CaseDataset
from xai_lib.explorers.common import Explorer, dropdown, slider
from xai_lib.plotting.common import GREEN, ORANGE
from xai_lib.studies.mammograms.thesis_methods import THESIS, Setup, method_maps
from xai_lib.studies.patches.maps import displayed, read

SETS = {"the patch": "centred", "its healthy twin": "twin", "lesion shifted": "shifted"}


def patch_maps(
    model: nn.Module,
    sets: Mapping[str, CaseDataset],
    indices: Sequence[int],
    setup: Setup,
    precision: str = "float32",
    known: Mapping[str, Tensor] | None = None,
) -> Explorer:
    """Choose patch, relative, method and the share of the map that counts as its top.

    Args:
        model: a network with two outputs.
        sets: patches "centred", "twin" and "shifted".
        indices: the patches to choose from.
        setup: parameters of the methods.
        precision: of occlusion, LIME and Kernel SHAP.
        known: maps (N, S, S) of the first N centred patches by method, which then are not computed again.
    """
    device, done = next(model.parameters()).device, dict(known or {})

    @lru_cache(maxsize=128)
    def patch(image: int, which: str) -> tuple[Case, NDArray[np.bool_], Tensor, float]:
        """The case, where its lesion is (or would be), the image (1, 1, S, S) as the network sees it, its log odds."""
        images, masks = read(sets[which], [image])
        lesion = masks[0] if masks.any() else read(sets["centred"], [image])[1][0]
        with torch.no_grad():
            logits = model(images.to(device))[0]
        return sets[which][image], lesion, images.to(device), float(logits[1] - logits[0])

    @lru_cache(maxsize=256)
    def signed(image: int, which: str, method: str) -> Tensor:
        place = list(indices).index(image)
        if which == "centred" and method in done and place < len(done[method]):
            return done[method][place]
        x = patch(image, which)[2]
        return method_maps(model, x, [method], setup, precision=precision, progress=False)[method][0]

    def draw(image: int, which: str, method: str, share: float) -> Figure:
        case, lesion, _, score = patch(image, which)
        return patch_figure(case, lesion, method, signed(image, which, method), share, score)

    names = {f"patch {i}, {sets['centred'].table['kind'][i]}": int(i) for i in indices}
    controls = {
        "image": dropdown("patch", names, int(indices[0])),
        "which": dropdown("show", SETS, "centred"),
        "method": dropdown("method", {plotting.label(name): name for name in THESIS}, "saliency"),
        "share": slider("top share", 0.01, 0.5, 0.01, 0.1),
    }
    return Explorer(draw, controls, "a patch, its map, and the share of the map's top inside the lesion")


def patch_figure(
    case: Case, lesion: NDArray[np.bool_], method: str, signed: Tensor, share: float, score: float
) -> Figure:
    """The patch; its map as the thesis shows it; the map's top over the patch, and how much of it is in the lesion.

    Args:
        case: the patch (1, S, S).
        lesion: (S, S), where its lesion is, or in a twin would be; nowhere in a normal patch.
        method: of the map.
        signed: the map (S, S); its positive part counts, as in the study's tables.
        share: of the pixels that are the map's top, 0 to 1.
        score: log odds of malignant.
    """
    positive = signed.clamp(min=0).numpy()
    top = positive >= max(np.quantile(positive, 1 - share), np.finfo(np.float32).tiny)
    figure, axes = plt.subplots(1, 3, figsize=(6.6, 2.75), layout="constrained")
    plotting.show_image(axes[0], case, title=f"log odds of malignant {score:+.1f}")
    plotting.overlay(axes[1], case, displayed(method, signed), plotting.label(method))
    plotting.show_image(axes[2], case, title=f"top {share:.0%} of the map", bar=False)
    axes[2].imshow(np.where(top, 1.0, np.nan), cmap=ListedColormap([ORANGE]), vmin=0, vmax=1, alpha=0.6)
    place = "the lesion" if case.mask is not None and case.mask.any() else "the place of the lesion"
    said = "a patch without a lesion"
    if lesion.any():
        inside, area = measures.top_inside(positive[None], lesion, share)[0], lesion.mean()
        said = f"inside {place}: {inside:.0%} of the top (by chance {area:.0%}, its share of the patch)"
        if place != "the lesion":
            for ax in axes:
                ax.contour(lesion.astype(float), levels=[0.5], colors=[GREEN], linewidths=1, linestyles="--")
    figure.supxlabel(said, fontsize=9)
    return figure
