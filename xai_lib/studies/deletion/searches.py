"""Study 5, the searches: deletion regions of every variant, perturbation methods, and the images they are run on.

Usage::

    scenes = with_mass(ready, count=40)                   # test images with a mass, their twins, breasts, annotations
    found = holes(ready)                                  # case, variant, hole (text), score, after, skipped
    unpack(found.iloc[0]["hole"], (320, 160))             # (H, W), bool

A search is stored image by image, so that one that was killed goes on.

Reference: Major et al. 2020, section 3, "Saliency Mapping".
"""

import base64
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from xai_lib import stored_tables
from xai_lib.data.case import Case
from xai_lib.deletion_region import DeletionConfig, fill, log_odds, smallest_deletion_region
from xai_lib.models import Classifier
from xai_lib.perturbation_maps import extremal_perturbation, meaningful_perturbation, rise
from xai_lib.studies.deletion import measures
from xai_lib.studies.deletion.controls import Fill
from xai_lib.studies.deletion.study import Ready
from xai_lib.studies.mammograms import networks as mn

VERSION = 1  # of all tables of the study; a higher one makes the stored ones void
SDR = "SDR"
LAMBDAS = (0.0, 0.02, 0.1, 0.3)
CELLS = {"pixel": 1, "8": 8, "16": 16}  # sides of a cell of the mask
PERTURBATIONS = ("RISE 90", "meaningful", "extremal")
EXTREMAL_AREA = 0.05

Mask = NDArray[np.bool_]


def variants(base: DeletionConfig) -> dict[str, DeletionConfig]:
    """The searches: the chosen one, and each with one thing changed; those that change nothing are left out."""
    side = base.cell * base.spacing  # of the regular grid, in pixels
    found = {SDR: base, "no shape terms": replace(base, lambda2=0.0, lambda3=0.0)}
    found |= {f"lambda2 {value:g}": replace(base, lambda2=value) for value in LAMBDAS}
    found |= {f"grid {name}": replace(base, cell=cell, spacing=max(side // cell, 2)) for name, cell in CELLS.items()}
    half = base.spacing // 2
    found |= {"start 1": replace(base, offset=(half, 0)), "start 2": replace(base, offset=(half, half))}
    found |= {"printed": replace(base, signs="printed"), "soft": replace(base, relaxation="soft")}
    found |= {"rate 0.002": replace(base, learning_rate=2e-3)}
    return {name: config for name, config in found.items() if name == SDR or config != base}


def key(ready: Ready) -> dict[str, Any]:
    """All that the tables depend on."""
    study = ready.study
    names = ("region", "rise", "meaningful", "extremal", "runs", "roc", "tested", "searched", "perturbed")
    return {
        "version": VERSION,
        "networks": {name: card["sha256"] for name, card in ready.cards.items()},
        "data": ready.sets.cases.fingerprint,
        "seed": ready.seed,
        **{name: plain(getattr(study, name)) for name in names},
    }


def plain(value: Any) -> Any:
    """A setting as plain JSON."""
    settings = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()} if settings is not value else value


# ---------------------------------------------------------------------------------------- cases


@dataclass(frozen=True, eq=False)
class Scene:
    """A test image with a mass: its case and twin, where it is in the set, breast and annotation (H, W)."""

    index: int
    case: Case
    twin: Tensor
    breast: Mask
    truth: Mask

    @property
    def facts(self) -> dict[str, Any]:
        """The columns that every row has."""
        return {"case": self.case.source, "patient_id": self.case.patient_id, "pixel_mm": self.case.pixel_mm}


def with_mass(ready: Ready, part: str = "test", count: int | None = None) -> list[Scene]:
    """The first `count` images of a part that have a mass, one of every patient before the second of any.

    Raises:
        ValueError: no image of the part has one.
    """
    indices = chosen(ready, part, 1)[:count]
    if not len(indices):
        raise ValueError(f"{part}: none of {len(ready.sets.parts[part])} images has a mass; more patients are needed")
    return [scene_at(ready, int(i)) for i in indices]


def chosen(ready: Ready, part: str, label: int) -> NDArray[np.int64]:
    """Indices of a part with this label, one image of every patient before the second of any."""
    indices = ready.sets.parts[part]
    indices = indices[ready.sets.cases.labels[indices] == label]
    turn = pd.Series(ready.sets.cases.patient_ids[indices]).groupby(lambda i: ready.sets.cases.patient_ids[indices[i]])
    return indices[np.argsort(turn.cumcount().to_numpy(), kind="stable")]


def scene_at(ready: Ready, index: int) -> Scene:
    """The image `index` of the set, with what is known of it."""
    case, twin = ready.sets.cases[index], ready.sets.twins[index]
    truth = np.zeros(case.image.shape[1:], bool) if case.mask is None else case.mask.numpy()
    return Scene(index, case, twin.image, case.image[0].numpy() > 0, truth)


def score(model: Classifier, images: Tensor, chunk: int = 16) -> NDArray[np.float32]:
    """Log odds of a mass, (N,)."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([log_odds(model, part.to(device)) for part in images.split(chunk)]).cpu().numpy()


def filled(ready: Ready, image: Tensor, hole: Mask, how: Fill | None = None) -> Tensor:
    """An image (1, H, W) with its hole inpainted, or filled by `how`."""
    device = next(ready.inpainter.parameters()).device
    with torch.no_grad():
        return fill(how or ready.inpainter, image[None].to(device), torch.from_numpy(hole)[None].to(device))[0].cpu()


def score_after(ready: Ready, scene: Scene, hole: Mask) -> float:
    """Log odds with the hole inpainted; NaN where nothing is left to inpaint from."""
    return np.nan if hole.all() else float(score(ready.classifier, filled(ready, scene.case.image, hole)[None])[0])


def pack(hole: Mask) -> str:
    """A mask as text, for a table."""
    return base64.b64encode(zlib.compress(np.packbits(hole).tobytes(), 9)).decode()


def unpack(text: str, shape: tuple[int, int]) -> Mask:
    """The mask (H, W) of a text from `pack`."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


# ---------------------------------------------------------------------------------------- searches


def holes(ready: Ready, progress: bool = True) -> pd.DataFrame:
    """The masks of all searches and of the perturbation methods, as text, with the score before and after."""
    study, found = ready.study, []
    scenes = with_mass(ready, count=study.tested)
    untrained = _untrained(ready, scenes)
    for name, config in variants(study.region).items():
        count = study.tested if name == SDR else study.searched
        found += list(searched(ready, ready.classifier, scenes[:count], name, config, progress))
    found += list(searched(ready, untrained, scenes[: study.searched], "untrained", study.region, progress))
    for name in PERTURBATIONS:
        found += list(_perturbed(ready, scenes[: study.perturbed], name, progress))
    return pd.concat(found, ignore_index=True)


def _untrained(ready: Ready, scenes: list[Scene]) -> Classifier:
    """The architecture with random weights; its bias makes it call every one of these images a mass."""
    study = ready.study
    model = mn.fresh(study.architecture, None, ready.seed + 1, study.padding, outputs=1).eval().requires_grad_(False)
    model.to(next(ready.classifier.parameters()).device)
    model.head.bias.data += 1 - float(score(model, torch.stack([s.case.image for s in scenes])).min())
    return model


def searched(
    ready: Ready, model: Classifier, scenes: list[Scene], name: str, config: DeletionConfig, progress: bool
) -> Iterator[pd.DataFrame]:
    """One row per image: the search of one variant, stored image by image."""
    device = next(model.parameters()).device
    for scene in tqdm(scenes, desc=name, disable=not progress, leave=False):
        own = {"trained": model is ready.classifier, "image": scene.index, "config": plain(config)}

        def compute(scene: Scene = scene) -> pd.DataFrame:
            breast = torch.from_numpy(scene.breast)[None].to(device)
            image = scene.case.image[None].to(device)
            result = smallest_deletion_region(model, ready.inpainter, image, config=config, breast=breast)
            facts = {"score": float(result.score), "after": float(result.after), "skipped": bool(result.skipped)}
            return pd.DataFrame([facts | {"hole": pack(result.hole[0].cpu().numpy())}])

        row = stored_tables.table("deletion_search", _networks(ready) | own, compute)
        yield row.assign(case=scene.case.source, variant=name)


def _networks(ready: Ready) -> dict[str, Any]:
    """What a search depends on beside its configuration and the image."""
    return {name: key(ready)[name] for name in ("version", "networks", "data", "seed")}


def _perturbed(ready: Ready, scenes: list[Scene], name: str, progress: bool) -> Iterator[pd.DataFrame]:
    """One row per image: a perturbation method of the references, at its published parameters."""
    study, model = ready.study, ready.classifier
    makers: Mapping[str, tuple[Any, Callable[[Tensor], Mask]]] = {
        "RISE 90": (
            study.rise,
            lambda x: measures.threshold(rise(model, x, study.rise, ready.seed)[0].cpu().numpy(), 90),
        ),
        "meaningful": (
            study.meaningful,
            lambda x: meaningful_perturbation(model, x, study.meaningful)[0].cpu().numpy() > 0.5,
        ),
        "extremal": (
            study.extremal,
            lambda x: extremal_perturbation(model, x, EXTREMAL_AREA, study.extremal)[0].cpu().numpy() > 0.5,
        ),
    }
    settings, make = makers[name]
    device = next(model.parameters()).device
    for scene in tqdm(scenes, desc=name, disable=not progress, leave=False):
        own = {"method": name, "settings": asdict(settings), "area": EXTREMAL_AREA, "image": scene.index}

        def compute(scene: Scene = scene) -> pd.DataFrame:
            hole = make(scene.case.image[None].to(device))
            before = float(score(model, scene.case.image[None])[0])
            facts = {"score": before, "after": score_after(ready, scene, hole), "skipped": False}
            return pd.DataFrame([facts | {"hole": pack(hole)}])

        row = stored_tables.table("deletion_perturbed", _networks(ready) | own, compute)
        yield row.assign(case=scene.case.source, variant=name)
