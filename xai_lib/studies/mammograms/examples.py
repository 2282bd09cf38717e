"""Study 2, examples: which images the thesis's sheets show, and small copies of their maps.

Usage::

    images = example_images(found.maps, 2)        # group -> images: highest and lowest true positives, missed
    maps = example_maps(study, found.maps)        # "<image>/<variant>" -> (h, w), "<image>/<variant>/box" -> (k, 4)

Reference: Sam-Millan et al. 2023, Figs. 8 to 11 and A.12 to A.19.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import config, stored_tables
from xai_lib.boxes import merge
from xai_lib.studies.mammograms.maps import DEFAULT, find_boxes, measure
from xai_lib.studies.mammograms.study import Study, plain
from xai_lib.studies.mammograms.variants import ABLATIONS, COSTLY, THE_SEVEN, VARIANTS, Variant, few_samples, scene_of

SHOWN = (*THE_SEVEN, "grad_cam", "brightness")  # maps kept of the examples
SHRINK = 4  # of the maps that are kept
GROUPS = ("highest true positives", "lowest true positives", "false negatives")


def explained(
    study: Study, index: int, variants: Mapping[str, Variant], precision: str = ""
) -> tuple[pd.DataFrame, dict[str, NDArray[np.float32]]]:
    """`maps.measure` for image `index`, without cache and without the warning on few samples.

    `precision` replaces the study's: where the machine has no bf16, float32 is faster and gives almost the same map.
    """
    scene = scene_of(study.dataset, study.twins, index)
    with few_samples():
        return measure(scene, variants, study.networks, study.setup, precision or study.precision, study.seed)


def example_images(maps: pd.DataFrame, count: int) -> dict[str, list[int]]:
    """Images for the thesis's sheets (Figs. 8-11, A.12-A.19): `count` of each of `GROUPS`, the highest scores first.

    Of the false negatives the thesis shows those with the highest probability.
    """
    full = maps[(maps["variant"] == COSTLY[0]) & (maps["stage"] == "test")].sort_values("score", ascending=False)
    true, missed = full[full["score"] > 0]["image"].tolist(), full[full["score"] <= 0]["image"].tolist()
    low = true[count:][-count:]
    return dict(zip(GROUPS, (true[:count], low, missed[:count]), strict=True))


def example_maps(study: Study, maps: pd.DataFrame, shipped: str | Path | None = None) -> dict[str, NDArray[Any]]:
    """Small maps and boxes of the examples and of one image with all `ABLATIONS`.

    Returns:
        "<image>/<variant>" -> int8 (h, w), the map at a quarter of the size, 127 its largest absolute value;
        "<image>/<variant>/box" -> (k, 4), the thesis's box at the quantile `DEFAULT`, in pixels of the image.
    """
    file = Path(shipped) / "mammogram_examples.npz" if shipped else None
    if file and file.is_file():
        with np.load(file) as stored:
            if str(stored["digest"]) == stored_tables.digest(study.key):
                return {name: stored[name] for name in stored.files if name != "digest"}
    groups = example_images(maps, study.counts.shown)
    full = maps[(maps["variant"] == next(iter(ABLATIONS))) & (maps["stage"] == "test")]
    wanted = {image: SHOWN for images in groups.values() for image in images}
    if len(full):
        best = int(full.sort_values("score")["image"].iloc[-1])
        wanted[best] = (*SHOWN, *ABLATIONS)
    out: dict[str, NDArray[Any]] = {}
    for image, names in wanted.items():
        mine = maps[(maps["image"] == image) & maps["variant"].isin(list(VARIANTS))]["variant"]
        found = _kept(study, image, {name: VARIANTS[name] for name in mine})
        out |= {f"{image}/{name}": value for name, value in found.items() if name.removesuffix("/box") in names}
    return out


def _kept(study: Study, image: int, variants: Mapping[str, Variant]) -> dict[str, NDArray[Any]]:
    """What `keep` stored of an image; it is explained again where the cache has lost it."""
    key = study.base | {"image": study.dataset.table.iloc[image]["source"], "variants": plain(variants)}
    file = _file(key)
    if not file.is_file():
        keep(key, explained(study, image, variants)[1])
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def _file(key: Mapping[str, Any]) -> Path:
    return config.cache_dir() / "tables" / stored_tables.digest(key) / "maps.npz"


def keep(key: Mapping[str, Any], maps: Mapping[str, NDArray[np.float32]]) -> None:
    """Store small copies of the maps and their boxes in the cache."""
    small: dict[str, NDArray[Any]] = {}
    for name, values in ((name, maps[name]) for name in maps if name in (*SHOWN, *ABLATIONS)):
        small[name] = shrunk(values)
        small[f"{name}/box"] = merge(find_boxes(values, VARIANTS[name].method)["union", DEFAULT])
    file = _file(key)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **small)  # type: ignore[arg-type]


def shrunk(values: NDArray[Any], by: int = SHRINK) -> NDArray[np.int8]:
    """A signed map (H, W) as (H // by, W // by): of each block the value furthest from 0, as int8, 127 the largest."""
    height, width = (n // by * by for n in values.shape)
    cut = values[:height, :width].reshape(height // by, by, width // by, by)
    blocks = cut.swapaxes(1, 2).reshape(height // by, width // by, by * by)
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)[..., 0]
    largest = max(float(np.percentile(np.abs(furthest), 99.8)), 1e-30)
    return np.round(127 * np.clip(furthest / largest, -1, 1)).astype(np.int8)
