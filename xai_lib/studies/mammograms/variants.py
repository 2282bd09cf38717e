"""Study 2, the maps: every method and control by a name, and how it explains one image.

Usage::

    scene = scene_of(cases, twins, 3)                                          # image, healthy twin, breast
    networks = {"trained": model, "untrained": fresh(...)}
    explain(VARIANTS["occlusion, soft edge"], scene, networks, Setup(window=30, stride=15)).map      # (H, W), signed

A *variant* is a method, with what is done otherwise than in the thesis: another fill of occlusion's window, segments on
the breast only, another number of samples, an untrained network. ``brightness``, the image itself read as a map, knows
no network at all.

Reference: Sam-Millan et al. 2023, section 3.2.4.
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.segmentation import slic
from torch import Tensor, nn

from xai_lib.attribution import attribute
from xai_lib.boxes import SEGMENT_METHODS
from xai_lib.data import Case, CaseDataset
from xai_lib.data.synthetic.mammogram import anatomy
from xai_lib.studies.mammograms.thesis_methods import EXTRAS, MALIGNANT, PERTURBATIONS, THESIS, Setup, method_maps

COSTLY = ("integrated_gradients", "occlusion", "lime", "kernel_shap")  # hundreds of passes each
FILLS = ("grey", "black", "blur", "twin")


@dataclass(frozen=True)
class Variant:
    """How one map is made.

    `method` is one of `THESIS` and `EXTRAS`, or "brightness". `network` is "trained" or "untrained", `fill` what covers
    occlusion's window, `edge` the width of its soft border as a share of the window, `segments` "image" or "breast";
    `samples` and `steps` replace the setup's where they are above 0, `seed` is added to the setup's. `reference` names
    the variant that the map is correlated with.
    """

    method: str
    network: str = "trained"
    fill: str = "grey"
    edge: float = 0.0
    segments: str = "image"
    samples: int = 0
    steps: int = 0
    seed: int = 0
    reference: str = ""


THE_SEVEN = {name: Variant(name) for name in THESIS}
CHEAP = {name: Variant(name) for name in (*THESIS, "grad_cam") if name not in COSTLY}
CHEAP |= {f"{name}_as_captum": Variant(f"{name}_as_captum", reference=name) for name in ("guided_grad_cam", "deeplift")}
CONTROLS = {"brightness": Variant("brightness")}
CONTROLS |= {
    f"untrained {name}": Variant(name, "untrained", steps=20, reference=name)
    for name in ("saliency", "integrated_gradients", "guided_grad_cam", "deeplift")
}
MAIN = THE_SEVEN | CHEAP | CONTROLS
ABLATIONS = {
    "occlusion, twin": Variant("occlusion", fill="twin", reference="occlusion"),
    "occlusion, black": Variant("occlusion", fill="black", reference="occlusion, twin"),
    "occlusion, blurred": Variant("occlusion", fill="blur", reference="occlusion, twin"),
    "occlusion, soft edge": Variant("occlusion", edge=0.4, reference="occlusion, twin"),
    "occlusion, blurred, soft edge": Variant("occlusion", fill="blur", edge=0.4, reference="occlusion, twin"),
    "lime, breast": Variant("lime", segments="breast"),
    "lime, other seed": Variant("lime", seed=1, reference="lime"),
    "kernel_shap, breast": Variant("kernel_shap", segments="breast"),
    "kernel_shap, breast, other seed": Variant(
        "kernel_shap", segments="breast", seed=1, reference="kernel_shap, breast"
    ),
    "kernel_shap, other seed": Variant("kernel_shap", seed=1, reference="kernel_shap"),
    "kernel_shap, 25 samples": Variant("kernel_shap", samples=25, reference="kernel_shap"),
    "kernel_shap, 25, other seed": Variant("kernel_shap", samples=25, seed=1, reference="kernel_shap, 25 samples"),
}
VARIANTS = MAIN | ABLATIONS


@dataclass(frozen=True, eq=False)
class Scene:
    """One image as the network saw it (8 bit), its healthy twin where there is one, and the breast; all (H, W)."""

    case: Case
    twin: Tensor | None
    breast: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Explained:
    """A signed map (H, W) and what it took."""

    map: NDArray[np.float32]
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def as_seen(image: Tensor) -> Tensor:
    """An image (1, H, W) in [0, 1] in the 256 grey levels that training used."""
    return (image * 255).round() / 255


def scene_of(cases: CaseDataset, twins: CaseDataset | None, index: int) -> Scene:
    """Image `index` of a synthetic set with its healthy twin and its exact breast."""
    case = cases[index]
    seen = replace(case, image=as_seen(case.image))
    twin = as_seen(twins[index].image) if twins is not None else None
    return Scene(seen, twin, anatomy(cases, index).breast)


def explain(
    variant: Variant, scene: Scene, networks: Mapping[str, nn.Module], setup: Setup, precision: str = "float32"
) -> Explained:
    """The map of one variant for the class malignant.

    Args:
        variant: what to do.
        scene: the image.
        networks: "trained" and, for variants that ask for it, "untrained"; in eval mode.
        setup: the thesis's parameters.
        precision: of `thesis_methods.PERTURBATIONS`; the others run in float32.

    Raises:
        ValueError: a variant that is unknown or asks for a twin or a network that is not there; what
            `attribution.attribute` refuses.
    """
    if variant.method == "brightness":
        return Explained(scene.case.image[0].numpy())
    if variant.network not in networks:
        raise ValueError(f"networks: {variant.network!r} is missing, got {', '.join(networks)}")
    model = networks[variant.network]
    x = scene.case.image[None].to(next(model.parameters()).device)  # (1, 1, H, W)
    if variant.method in EXTRAS and variant.method.endswith("_as_captum"):
        started = time.perf_counter()
        found = method_maps(model, x, [variant.method], setup)[variant.method]
        return Explained(found[0].numpy(), 2, 2, time.perf_counter() - started)
    how: dict[str, Any] = {"precision": precision if variant.method in PERTURBATIONS else "float32", "progress": False}
    a = attribute(variant.method, model, x, MALIGNANT, **how, **options(variant, scene, setup))
    return Explained(a.map[0].float().cpu().numpy(), a.forward_passes, a.backward_passes, a.seconds, a.notes)


def options(variant: Variant, scene: Scene, setup: Setup) -> dict[str, Any]:
    """Options of the variant's method: the setup's, with what the variant changes."""
    given = setup.options(variant.method)
    if variant.method == "occlusion":
        given |= {"baseline": fill_of(variant.fill, scene, setup), "edge": int(variant.edge * setup.window)}
    if variant.method == "integrated_gradients" and variant.steps:
        given |= {"steps": min(variant.steps, setup.steps)}
    if variant.method in SEGMENT_METHODS:
        given |= {"seed": setup.seed + variant.seed}
        if variant.samples:
            given |= {"samples": min(variant.samples, setup.samples)}
        if variant.segments == "breast":
            given |= {"segments": breast_segments(scene.case.image[0].numpy(), scene.breast, setup.segments)}
    return given


def fill_of(name: str, scene: Scene, setup: Setup) -> float | Tensor:
    """What covers a window of occlusion: a number or an image (1, H, W).

    "blur" is the image after a Gaussian of half a window: a mass is gone, its neighbourhood's brightness stays. "twin"
    is the same image without its lesion, the exact answer to what occlusion asks.
    """
    if name == "twin":
        if scene.twin is None:
            raise ValueError(f"fill: 'twin' needs a healthy twin, {scene.case.source} has none")
        return scene.twin
    if name == "blur":
        return torch.from_numpy(gaussian_filter(scene.case.image[0].numpy(), setup.window / 2))[None]
    if name not in FILLS:
        raise ValueError(f"fill: {name!r} is unknown, expected one of {', '.join(FILLS)}")
    return 0.0 if name == "black" else setup.baseline


def breast_segments(image: NDArray[np.float32], breast: NDArray[np.bool_], segments: int) -> Tensor:
    """SLIC segments of the breast alone, and the background as one more: labels (H, W) from 0."""
    cut = slic(np.repeat(image[..., None], 3, -1), n_segments=segments, mask=breast, start_label=1)
    return torch.from_numpy(np.unique(cut, return_inverse=True)[1].reshape(image.shape)).long()


@contextmanager
def few_samples() -> Iterator[None]:
    """Inside, Kernel SHAP does not warn of few samples: how far it scatters is a table of the study."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "kernel_shap: samples")
        yield
