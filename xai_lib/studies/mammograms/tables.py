"""Study 2, all images: which are explained by what, and the tables that are kept.

Usage::

    found = tables(study, shipped=checkpoint_dir)      # found.maps, found.boxes, found.insertion, found.examples
    build_tables(study, checkpoint_dir)                # computes and ships them; it may be stopped and goes on

One image after another is explained, measured and forgotten; its rows are kept in the cache, so that a run that was
stopped goes on where it was. What the figures need is small: a row per map, a row per box, and the maps of a few
examples at a quarter of the size (`examples`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from xai_lib import stored_tables
from xai_lib.data import CaseDataset
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms.examples import example_maps, explained, keep
from xai_lib.studies.mammograms.insertion import Pair, follow, real_pairs, twin_pairs
from xai_lib.studies.mammograms.study import Counts, Study, plain
from xai_lib.studies.mammograms.variants import ABLATIONS, CHEAP, COSTLY, MAIN, THE_SEVEN, Variant, few_samples

MAP_COLUMNS = (
    *("image", "source", "patient_id", "stage", "score", "variant", "energy", "hit", "off_row", "off_col"),
    *("like", "forward", "backward", "seconds"),
)
BOX_COLUMNS = ("image", "stage", "variant", "rule", "setting", "iou", "chance", "ratio", "components")
INSERTED = THE_SEVEN | {
    "integrated_gradients": Variant("integrated_gradients", steps=50),
    "grad_cam": Variant("grad_cam"),
}


@dataclass(frozen=True, eq=False)
class Tables:
    """What was measured: see `MAP_COLUMNS`, `BOX_COLUMNS`, `insertion.follow` and `example_maps`."""

    maps: pd.DataFrame
    boxes: pd.DataFrame
    insertion: pd.DataFrame
    examples: dict[str, NDArray[Any]]


# ---------------------------------------------------------------------------------------- which images


def chosen_images(dataset: CaseDataset, part: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` malignant images of a part: one of every patient first, of every second patient in the other view."""
    table = dataset.table.loc[part]
    malignant = table[table["label"] == 1]
    turn = malignant.groupby("patient_id").cumcount()
    turn = turn.where(malignant["patient_id"].rank(method="dense") % 2 == 1, turn.max() - turn)
    return malignant.index.to_numpy()[np.argsort(turn.to_numpy(), kind="stable")][:count]


def plan(counts: Counts, test: Iterable[int], val: Iterable[int]) -> list[tuple[str, int, dict[str, Variant]]]:
    """What is done: stage, image, variants by name."""
    jobs = []
    for place, index in enumerate(test):
        variants = dict(MAIN if place < counts.main else CHEAP)
        variants |= ABLATIONS if place < counts.ablations else {}
        jobs.append(("test", int(index), variants))
    validated = THE_SEVEN | CHEAP | {"brightness": MAIN["brightness"]}
    return jobs + [("val", int(index), validated) for index in islice(val, counts.val)]


# ---------------------------------------------------------------------------------------- computing


def tables(study: Study, shipped: str | Path | None = None, recompute: bool = False, progress: bool = True) -> Tables:
    """The tables of study 2: shipped, cached, or computed image by image.

    Args:
        study: from `study_of`.
        shipped: folder of the shipped tables.
        recompute: compute although stored tables fit (images in the cache are not explained again).
        progress: show bars.
    """
    parts = mn.split(study.chosen, study.dataset, study.seed)
    test = chosen_images(study.dataset, parts["test"], study.counts.cheap)
    jobs = plan(study.counts, test, chosen_images(study.dataset, parts["val"], study.counts.val))
    made: list[pd.DataFrame] = []

    def rows() -> pd.DataFrame:
        if not made:
            bar = tqdm(jobs, desc="maps", disable=not progress, leave=False)
            made.append(pd.concat([image_rows(study, i, v).assign(stage=s) for s, i, v in bar], ignore_index=True))
        return made[0]

    def maps() -> pd.DataFrame:
        return rows().drop_duplicates(["image", "variant"])[list(MAP_COLUMNS)]

    def found() -> pd.DataFrame:
        return rows()[list(BOX_COLUMNS)].round(4)

    def inserted() -> pd.DataFrame:
        pairs = islice(twin_pairs(study.twins, test[::-1], study.counts.contrasts, study.seed), study.counts.inserted)
        bar = tqdm(pairs, desc="insertion", total=study.counts.inserted, disable=not progress, leave=False)
        return pd.concat([pair_rows(study, pair) for pair in bar], ignore_index=True)

    first, second, third = (
        stored_tables.table(f"mammogram_{name}", study.key, compute, shipped, recompute)
        for name, compute in (("maps", maps), ("boxes", found), ("insertion", inserted))
    )
    return Tables(first, second, third, example_maps(study, first, shipped))


def build_tables(study: Study, folder: str | Path, progress: bool = True) -> Tables:
    """Compute all tables and write them, with the examples' maps, to `folder` to be shipped."""
    found = tables(study, progress=progress)
    for name in ("maps", "boxes", "insertion"):
        stored_tables.save(getattr(found, name), f"mammogram_{name}", study.key, folder)
    digest = np.array(stored_tables.digest(study.key))
    np.savez_compressed(Path(folder) / "mammogram_examples.npz", digest=digest, **found.examples)  # type: ignore[arg-type]
    return found


def real_rows(study: Study, normals: CaseDataset, count: int = 20, progress: bool = True) -> pd.DataFrame:
    """`insertion.follow` for lesions inserted into `count` real mammograms, from `real_mammograms.prepared`.

    Every pair is kept in the cache, as the images of `tables` are.
    """
    pairs = real_pairs(normals, count, study.counts.contrasts, study.seed)
    bar = tqdm(pairs, desc="insertion", total=count, disable=not progress, leave=False)
    return pd.concat([pair_rows(study, pair) for pair in bar], ignore_index=True)


def image_rows(study: Study, index: int, variants: Mapping[str, Variant]) -> pd.DataFrame:
    """Rows of one image, see `maps.measure`; from the cache if it has been explained before."""
    case = study.dataset.table.iloc[index]
    key = study.base | {"image": case["source"], "variants": plain(variants)}

    def compute() -> pd.DataFrame:
        frame, maps = explained(study, index, variants)
        keep(key, maps)
        return frame

    frame = stored_tables.table("mammogram_image", key, compute)
    return frame.assign(image=index, source=case["source"], patient_id=case["patient_id"])


def pair_rows(study: Study, pair: Pair) -> pd.DataFrame:
    """Rows of one insertion, see `insertion.follow`; the costly methods at few contrasts; from the cache if it can."""
    cheap = {name: v for name, v in INSERTED.items() if name not in COSTLY}
    costly = {name: v for name, v in INSERTED.items() if name in COSTLY}
    few = Pair(pair.before, {c: scene for c, scene in pair.after.items() if c in study.counts.costly})
    key = study.base | {"image": pair.before.case.source, "variants": plain(INSERTED)}
    key |= {"contrasts": list(pair.after), "costly": list(few.after)}

    def compute() -> pd.DataFrame:
        with few_samples():
            how = (study.networks, study.setup, study.precision, study.seed)
            return pd.concat([follow(pair, cheap, *how), follow(few, costly, *how)], ignore_index=True)

    return stored_tables.table("mammogram_pair", key, compute)
