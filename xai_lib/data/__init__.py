"""Data sets by name: ``load("busi")`` gives a lazy torch data set of cases, ``check("busi", root)`` says what is there.

A real data set is looked for in its official layout, in `root` or in its folder under `XAI_DATA_DIR`; data/README.md
says how to get each of them.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

from xai_lib import config
from xai_lib.data import (
    bcdr,
    breast,
    busi,
    cbis_ddsm,
    ddsm,
    inbreast,
    mini_mias,
    nyu_sample,
    oasbud,
    omi_db,
    rsna,
    splits,
    vindr,
)
from xai_lib.data.case import Case, CaseDataset, DataError, Report, Skipped

__all__ = ["Case", "CaseDataset", "DataError", "Report", "Skipped", "available", "check", "load"]

FOLDERS = {  # under XAI_DATA_DIR
    "bcdr": "BCDR",
    "breast": "BrEaST",
    "busi": "BUSI/Dataset_BUSI_with_GT",
    "cbis_ddsm": "CBIS-DDSM",
    "ddsm": "DDSM",
    "inbreast": "INbreast Release 1.0",
    "mini_mias": "mini-MIAS/all-mias",
    "nyu_sample": "NYU-sample/sample_data",
    "oasbud": "OASBUD",
    "omi_db": "omi-db",
    "rsna": "rsna-breast-cancer-detection",
    "vindr": "vindr-mammo",
}


def available() -> list[str]:
    """Names that `load` knows."""
    return sorted([*FOLDERS, "synthetic_mammogram", "synthetic_masses", "synthetic_ultrasound"])


def load(
    name: str, root: Path | str | None = None, split: str | None = None, seed: int = 0, **options: object
) -> CaseDataset:
    """Load a data set by name, or one part of it.

    Args:
        name: one of `available()`.
        root: the folder of a real data set; None looks in ``XAI_DATA_DIR``. A generator takes none.
        split: None (everything), "train", "val" or "test": 60, 20 and 20 % of the patients, stratified by label.
        seed: of the split, and of a generator.
        options: of the loader, e.g. ``strict=True``, ``grouping=False``.

    Raises:
        DataError: the folder is missing or holds no usable case; with ``strict=True``, a file is missing or faulty.
        ValueError: the name or the split is unknown, or an option is one that the loader does not have.
    """
    parts = (None, *splits.FRACTIONS)
    if split not in parts:
        raise ValueError(f"split: {split!r} is unknown, expected one of {', '.join(map(repr, parts))}")
    loader = _loader(name)
    known = [key for key in inspect.signature(loader).parameters if key not in ("root", "seed")]
    for option in options:
        if option not in known:
            raise ValueError(f"{option}: not an option of {name!r}, expected some of {', '.join(known)}")
    if name in FOLDERS:
        dataset = loader(_root(name, root), **options)
    elif root is not None:
        raise ValueError(f"root: {name!r} is generated and takes no folder")
    else:
        dataset = loader(seed=seed, **options)
    return dataset if split is None else dataset.subset(splits.by_patient(dataset, seed=seed)[split])


def check(name: str, root: Path | str | None = None) -> Report:
    """Say what a real data set's folder holds, what is missing and what is faulty.

    Raises:
        DataError: the folder is missing or holds nothing of this data set.
        ValueError: the name is not that of a real data set.
    """
    checkers: dict[str, Callable[[Path], Report]] = {
        "bcdr": bcdr.check_bcdr,
        "breast": breast.check_breast,
        "busi": busi.check_busi,
        "cbis_ddsm": cbis_ddsm.check_cbis_ddsm,
        "ddsm": ddsm.check_ddsm,
        "inbreast": inbreast.check_inbreast,
        "mini_mias": mini_mias.check_mini_mias,
        "nyu_sample": nyu_sample.check_nyu_sample,
        "oasbud": oasbud.check_oasbud,
        "omi_db": omi_db.check_omi_db,
        "rsna": rsna.check_rsna,
        "vindr": vindr.check_vindr,
    }
    if name not in checkers:
        raise ValueError(f"name: {name!r} has no folder to check, expected one of {', '.join(checkers)}")
    return checkers[name](_root(name, root))


def _root(name: str, root: Path | str | None) -> Path:
    """The folder given, or the official one under XAI_DATA_DIR."""
    if root is not None:
        return Path(root)
    folder = config.data_dir()
    if folder is None:
        raise DataError(f"{name}: no folder given; give root=, or set XAI_DATA_DIR (see data/README.md)")
    return folder / FOLDERS[name]


def _loader(name: str) -> Callable[..., CaseDataset]:
    """The function that loads `name`; a generator's module is imported only when it is asked for."""
    if name == "synthetic_ultrasound":
        from xai_lib.data.synthetic.ultrasound import load_synthetic_ultrasound

        return load_synthetic_ultrasound
    if name == "synthetic_mammogram":
        from xai_lib.data.synthetic.mammogram import load_synthetic_mammogram

        return load_synthetic_mammogram
    if name == "synthetic_masses":
        from xai_lib.data.synthetic.mammogram_masses import load_synthetic_masses

        return load_synthetic_masses
    loaders: dict[str, Callable[..., CaseDataset]] = {
        "bcdr": bcdr.load_bcdr,
        "breast": breast.load_breast,
        "busi": busi.load_busi,
        "cbis_ddsm": cbis_ddsm.load_cbis_ddsm,
        "ddsm": ddsm.load_ddsm,
        "inbreast": inbreast.load_inbreast,
        "mini_mias": mini_mias.load_mini_mias,
        "nyu_sample": nyu_sample.load_nyu_sample,
        "oasbud": oasbud.load_oasbud,
        "omi_db": omi_db.load_omi_db,
        "rsna": rsna.load_rsna,
        "vindr": vindr.load_vindr,
    }
    if name not in loaders:
        raise ValueError(f"name: {name!r} is unknown, expected one of {', '.join(available())}")
    return loaders[name]
