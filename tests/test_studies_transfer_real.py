"""Study 4 on a folder of BUSI's layout, with a tiny network."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_knowledge_transfer import tiny
from test_studies_transfer_summary import with_tests

from xai_lib import checkpoints, models, records
from xai_lib.config import runtime
from xai_lib.data import busi
from xai_lib.studies import real_runs
from xai_lib.studies.mammograms.folds import Start
from xai_lib.studies.transfer import claims as knowledge_transfer_claims
from xai_lib.studies.transfer import real as ktr
from xai_lib.studies.transfer.inputs import METHODS
from xai_lib.studies.transfer.real import RealTransfer
from xai_lib.training import FitConfig

PATIENTS = 8
FIT = FitConfig(epochs=1, batch_size=8, learning_rate=0.01, patience=None, augment="turn")


def write_folder(root, size=40):
    """Benign and malignant images of noise with a dark square, and its mask."""
    for label, side in (("benign", 8), ("malignant", 16)):
        (root / label).mkdir(parents=True)
        for number in range(1, PATIENTS + 1):
            rng = np.random.default_rng([side, number])
            image, mask = rng.integers(60, 255, (size, size)), np.zeros((size, size), np.uint8)
            top, left = rng.integers(0, size - side, 2)
            mask[top : top + side, left : left + side] = 255
            image[mask > 0] //= 4
            Image.fromarray(image.astype(np.uint8)).save(root / label / f"{label} ({number}).png")
            Image.fromarray(mask).save(root / label / f"{label} ({number})_mask.png")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The record, the results and the tables of a run from one start."""
    folder = tmp_path_factory.mktemp("real")
    make = lambda weights=None: tiny((4, 4, 6, 8, 8), seed=int(torch.randint(1000, ())))  # noqa: E731  drawn from the start's seed
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_CACHE_DIR", str(folder / "cache"))
        patch.setattr(busi, "OFFICIAL", {"benign": PATIENTS, "malignant": PATIENTS})
        patch.setitem(models.ARCHITECTURES, "tiny", (make, lambda net: net.features, 8))
        patch.setattr(knowledge_transfer_claims.claims, "load", with_tests)
        tables = []
        real_summarise = ktr.summarise
        patch.setattr(ktr, "summarise", lambda t, *rest: tables.append(t) or real_summarise(t, *rest))
        real = RealTransfer(
            root=str(write_folder(folder / "busi")),
            weights=None,
            architecture="tiny",
            size=64,
            folds=2,
            seeds=(0,),
            fit=FIT,
            images=3,
            replicates=20,
        )
        record, result = ktr.transfer_record(real, 0, runtime("cpu", threads=1), "the command", progress=False)
        return record, result, tables[0]


def test_tables(made):
    _, result, tables = made
    folds = tables.folds
    assert len(folds) == 2 * PATIENTS * len(METHODS) and set(folds["method"]) == set(METHODS)
    assert set(folds["start"]) == {"ImageNet"} and (folds["fold"].nunique(), folds["seed"].nunique()) == (2, 1)
    assert folds.loc[folds["method"] == "transfer", ["distance", "inside", "area", "disc"]].notna().all(axis=None)
    assert set(tables.distances["network"]) == {"ImageNet", "random"}
    assert set(tables.distances["group"]) == {f"group{i}" for i in range(1, 5)}
    assert tables.shift is None and tables.recipes is None
    assert list(result.groups["network"].unique()) == ["ImageNet", "random"]


def test_patches_are_replaced_in_images_of_the_first_fold_only(made):
    tables = made[2]
    cells = tables.cells
    first = set(tables.folds.loc[tables.folds["fold"] == 0, "case"])
    assert set(cells["case"]) <= first and cells["case"].nunique() == 3
    assert list(cells["network"].unique()) == ["transfer", "fine-tuning", "start", "random", "pixels alone"]
    assert len(cells) == 3 * 5 * 4 and cells[["score", "patient_id", "label"]].notna().all(axis=None)


def test_record(made, tmp_path):
    record, result, _ = made
    records.write(record, tmp_path / "r.json")
    assert records.read(tmp_path / "r.json").study == "04_knowledge_transfer_densenet"
    assert (record.data["name"], record.data["cases"]) == ("busi", 2 * PATIENTS)
    assert record.parameters["starts"] == ["ImageNet"] and record.command == "the command"
    assert set(record.verdicts) == {f"4.{i}" for i in range(1, 9)}
    assert record.verdicts["4.2"].why == "no network from the start mammograms"
    assert record.verdicts["4.8"].verdict == "not decidable here"
    assert result.figures()["accuracy_transfer_imagenet"].baselines["one class"].value == 0.5


def test_a_disc_lies_inside_a_mask_by_hand():
    masks = torch.zeros(2, 2, 8, 8, dtype=torch.uint8)
    masks[0, 1, 2:6, 2:6] = 255  # holds the disc of the mean area, 16 of 64 pixels
    masks[1, 1, :4, :4] = 255  # a quarter of it
    shares = ktr._disc(ktr.Stack(masks, torch.tensor([0, 1])))
    assert shares[1] == pytest.approx(0.25) and shares[0] > 0.7


def test_starts(tmp_path):
    assert list(RealTransfer().starts) == ["ImageNet"]
    ours = str(tmp_path / "c.safetensors")
    checkpoints.save(models.build("resnet10", outputs=2), ours, {})
    starts = RealTransfer(weights="w.pth", padding="tensorflow", checkpoint=ours).starts
    assert starts["ImageNet"].start == Start("mobilenet_v2", "w.pth", "tensorflow")
    assert starts["mammograms"].start == Start("resnet10", ours) and starts["mammograms"].cached


def test_the_name_reaches_the_study(monkeypatch):
    seen = []
    monkeypatch.setattr(real_runs, "transfer_record", lambda *args: seen.append(args) or (None, None))
    real_runs.run_real("transfer", "busi", "r", "/home/w.pth", "tensorflow", maps=7, checkpoint="/home/c.safetensors")
    real, seed, _, command = seen[0]
    assert real == RealTransfer("busi", "r", "/home/w.pth", "tensorflow", "/home/c.safetensors", images=7) and seed == 0
    assert command == (
        "xai-lib real transfer RECORD.json --dataset busi --weights w.pth --checkpoint c.safetensors "
        "--padding tensorflow --maps 7"
    )
    real_runs.run_real("transfer", "busi", seeds=2)
    assert seen[1][0].seeds == (0, 1) and seen[1][3].endswith("--seeds 2")
    for study, seeds in (("boxes", 2), ("transfer", 0)):
        with pytest.raises(ValueError, match=f"seeds: {seeds} for {study}"):
            real_runs.run_real(study, seeds=seeds)
    with pytest.raises(ValueError, match="checkpoint: boxes has no second start"):
        real_runs.run_real("boxes", checkpoint="c.safetensors")
