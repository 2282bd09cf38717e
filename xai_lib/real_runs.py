"""Studies 1 and 2 on real mammograms, by name: what ``xai-lib real`` calls.

Usage::

    record = run_real("patches", weights="mobilenet_v2.pth", padding="tensorflow")
"""

from dataclasses import replace
from pathlib import Path

from xai_lib.config import runtime
from xai_lib.mammogram_real import RealWhole, boxes_record, inserted_record
from xai_lib.patch_real import RealStudy, real_record
from xai_lib.records import Record

STUDIES = ("patches", "boxes", "insertion")
SEED = 0
LESIONS = 20  # normal mammograms that get one


def run_real(
    study: str,
    dataset: str = "mini_mias",
    root: str | None = None,
    weights: str | None = None,
    padding: str = "torchvision",
    precision: str = "float32",
    maps: int | None = None,
    threads: int | None = None,
) -> Record:
    """Carry one of `STUDIES` out.

    Args:
        study: its name.
        dataset: of mammograms with located lesions.
        root: its folder.
        weights: what the networks start from; None: ImageNet (patches), or the network shipped with study 2.
        padding: of `weights` in study 1.
        precision: of occlusion, LIME and Kernel SHAP.
        maps: malignant images to explain, or normal ones to put a lesion into.
        threads: of the processor.

    Raises:
        ValueError: an unknown name, or options that the study does not have.
    """
    if study not in STUDIES:
        raise ValueError(f"study: {study!r} is unknown, expected one of {', '.join(STUDIES)}")
    if study == "insertion" and weights:
        raise ValueError("weights: insertion follows the shipped network, expected none")
    machine = runtime(threads=threads, bf16="auto")
    command = _command(study, dataset, weights, padding, precision, maps)
    if study == "insertion":
        return inserted_record(dataset, root, maps or LESIONS, machine, precision, command)
    if study == "boxes":
        whole = RealWhole(dataset, root, weights, precision=precision)
        return boxes_record(replace(whole, images=maps or whole.images), SEED, machine, command)[0]
    real = RealStudy(dataset, root, weights or "imagenet", padding, precision=precision)
    real = replace(real, malignant=maps or real.malignant, others=maps or real.others)
    return real_record(real, SEED, machine, command)[0]


def _command(study: str, dataset: str, weights: str | None, padding: str, precision: str, maps: int | None) -> str:
    """The command that repeats the run; folders are left out, they differ between machines."""
    given = {
        "dataset": dataset,
        "weights": Path(weights).name if weights else None,
        "precision": precision,
        "padding": padding if study == "patches" else None,
        "maps": str(maps) if maps else None,
    }
    options = "".join(f" --{name} {value}" for name, value in given.items() if value)
    return f"xai-lib real {study} RECORD.json{options}"
