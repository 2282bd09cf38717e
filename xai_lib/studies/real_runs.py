"""Studies 1, 2, 4 and 5 on real images, by name: what ``xai-lib real`` calls.

Usage::

    record = run_real("patches", weights="mobilenet_v2.pth", padding="tensorflow")
"""

from dataclasses import replace
from pathlib import Path

from xai_lib.config import runtime
from xai_lib.records import Record
from xai_lib.studies.deletion.real import RealDeletion, deletion_record
from xai_lib.studies.mammograms.real import RealWhole, boxes_record, inserted_record
from xai_lib.studies.patches.real import RealStudy, real_record
from xai_lib.studies.transfer.real import RealTransfer, transfer_record

STUDIES = ("patches", "boxes", "insertion", "transfer", "deletion")
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
    checkpoint: str | None = None,
    seeds: int | None = None,
) -> Record:
    """Carry one of `STUDIES` out.

    Args:
        study: its name.
        dataset: of mammograms with located lesions; for transfer, of images with masks.
        root: its folder.
        weights: what the networks start from; None: ImageNet (patches, transfer), or the network shipped with study 2
            (boxes) or 5 (deletion).
        padding: of `weights` in studies 1 and 4.
        precision: of occlusion, LIME and Kernel SHAP.
        maps: malignant images to explain, normal ones to put a lesion into, images to replace patches in, or images
            with a mass to search a deletion region in.
        threads: of the processor.
        checkpoint: of transfer: a network trained on mammograms, to start from as well.
        seeds: of transfer: how many times every fold is trained; None: the study's.

    Raises:
        ValueError: an unknown name, or options that the study does not have.
    """
    if study not in STUDIES:
        raise ValueError(f"study: {study!r} is unknown, expected one of {', '.join(STUDIES)}")
    if study == "insertion" and weights:
        raise ValueError("weights: insertion follows the shipped network, expected none")
    if checkpoint and study != "transfer":
        raise ValueError(f"checkpoint: {study} has no second start, expected none")
    if seeds is not None and (study != "transfer" or seeds < 1):
        raise ValueError(f"seeds: {seeds} for {study}; only transfer has several, at least 1")
    machine = runtime(threads=threads, bf16="auto")
    command = _command(study, dataset, weights, padding, precision, maps, checkpoint, seeds)
    if study == "insertion":
        return inserted_record(dataset, root, maps or LESIONS, machine, precision, command)
    if study == "boxes":
        whole = RealWhole(dataset, root, weights, precision=precision)
        return boxes_record(replace(whole, images=maps or whole.images), SEED, machine, command)[0]
    if study == "deletion":
        deletion = RealDeletion(dataset, root, weights)
        return deletion_record(replace(deletion, images=maps or deletion.images), SEED, machine, command)[0]
    if study == "transfer":
        transfer = RealTransfer(dataset, root, weights or "imagenet", padding, checkpoint)
        transfer = replace(transfer, images=maps or transfer.images, seeds=tuple(range(seeds or len(transfer.seeds))))
        return transfer_record(transfer, SEED, machine, command)[0]
    real = RealStudy(dataset, root, weights or "imagenet", padding, precision=precision)
    real = replace(real, malignant=maps or real.malignant, others=maps or real.others)
    return real_record(real, SEED, machine, command)[0]


def _command(
    study: str,
    dataset: str,
    weights: str | None,
    padding: str,
    precision: str,
    maps: int | None,
    checkpoint: str | None = None,
    seeds: int | None = None,
) -> str:
    """The command that repeats the run; folders are left out, they differ between machines."""
    given = {
        "dataset": dataset,
        "weights": Path(weights).name if weights else None,
        "checkpoint": Path(checkpoint).name if checkpoint else None,
        "precision": precision if study not in ("transfer", "deletion") else None,
        "padding": padding if study in ("patches", "transfer") else None,
        "maps": str(maps) if maps else None,
        "seeds": str(seeds) if seeds else None,
    }
    options = "".join(f" --{name} {value}" for name, value in given.items() if value)
    return f"xai-lib real {study} RECORD.json{options}"
