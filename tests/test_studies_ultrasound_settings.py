from dataclasses import replace

import pytest

from xai_lib import config
from xai_lib.studies.ultrasound import settings as us
from xai_lib.studies.ultrasound.runs import Backbone
from xai_lib.training import FitConfig


def test_smoke_is_small_and_trains():
    chosen = us.settings("smoke")
    assert (chosen.profile, chosen.dataset, chosen.synthetic) == ("smoke", "synthetic_ultrasound", True)
    assert (chosen.masses, chosen.cue_masses, chosen.size, chosen.replicates) == (14, 8, 96, 20)
    assert (chosen.fit.epochs, chosen.cue_fit.epochs) == (2, 1)
    assert chosen.checkpoint is None
    assert chosen.backbone == Backbone("resnet10", None, "torchvision", "all", "features.layer3")


def test_lab_loads_the_shipped_network():
    chosen = us.settings("lab")
    assert chosen.synthetic
    assert chosen.checkpoint == str(config.repository_dir() / "data" / "checkpoints")
    assert (chosen.size, chosen.replicates) == (224, 1000)
    assert chosen.masses > 10 * us.settings("smoke").masses and sum(chosen.parts) == pytest.approx(1)
    assert (chosen.fit.optimizer, chosen.fit.schedule, chosen.fit.patience) == ("adamw", "onecycle", None)
    assert (chosen.backbone.name, chosen.backbone.transfer) == ("resnet10", "all")
    assert (chosen.folds, chosen.repetitions) == (5, 5)


def test_paper_is_the_papers_protocol():
    chosen = us.settings("paper")
    assert (chosen.dataset, chosen.synthetic, chosen.transfer) == ("busi", False, "drs")
    assert chosen.backbone == Backbone("resnet50", "imagenet", "torchvision", "drs", "features.layer3")
    assert chosen.fit == FitConfig()  # Adam, 0.001, batch 12, patience 8
    assert (chosen.folds, chosen.repetitions) == (5, 5)


def test_real_data_in_lab_train_scales_and_head():
    chosen = us.settings("lab", "busi", "somewhere", "squeezenet1_1", "weights.pth", "pytorch", folds=3, repetitions=2)
    assert chosen.backbone == Backbone("squeezenet1_1", "weights.pth", "pytorch", "drs", "features.7")
    assert (chosen.data_root, chosen.fit, chosen.folds, chosen.repetitions) == ("somewhere", FitConfig(), 3, 2)
    assert chosen.checkpoint is not None  # transfer="none" tests it
    plain = us.settings("lab", "breast")
    assert plain.backbone == Backbone("squeezenet1_1", "imagenet", "torchvision", "drs", "features.7")
    assert plain.fit == FitConfig()
    assert plain.data_root is None


def test_another_network_on_synthetic_images_has_no_checkpoint():
    chosen = us.settings("lab", backbone="resnet18")
    assert chosen.checkpoint is None
    assert chosen.backbone == Backbone("resnet18", None, "torchvision", "all", "features.layer3")
    assert us.settings("lab", padding="tensorflow").checkpoint is None
    assert us.settings("lab", backbone="resnet18", weights="imagenet").backbone.transfer == "drs"


def test_overrides():
    assert us.settings("lab", epochs=7).fit == replace(us.settings("lab").fit, epochs=7)
    assert us.settings("lab", epochs=7).checkpoint is None  # the shipped network had its own
    assert us.settings("paper", epochs=7).fit == FitConfig(epochs=7)
    assert us.settings("lab", "busi", transfer="linear").transfer == "linear"
    assert us.settings("paper", "breast").dataset == "breast"
    assert us.settings("paper", "synthetic_ultrasound").synthetic


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile_name": "quick"}, "profile: 'quick' is unknown, expected one of smoke, lab, paper"),
        ({"dataset": "busy"}, "dataset: 'busy' is unknown, expected one of breast, busi, oasbud, synthetic_ultrasound"),
        ({"backbone": "resnet9"}, "backbone: 'resnet9' is unknown, expected one of resnet10, resnet18"),
        ({"transfer": "head"}, "transfer: 'head' is unknown, expected one of drs, linear, none"),
        ({"transfer": "linear"}, "transfer: 'linear' is for real data sets"),
        ({"epochs": -1}, "epochs and batch_size must be at least 1"),
    ],
)
def test_unknown_choices(options, message):
    with pytest.raises(ValueError, match=message):
        us.settings(**({"profile_name": "lab"} | options))


def test_regions_are_5_mm_where_the_pixel_size_is_known():
    assert us.settings("lab", "busi").regions == {"ring_fraction": 0.567}
    for name in ("breast", "oasbud", "synthetic_ultrasound"):
        assert us.settings("lab", name).regions == {"ring_mm": 5.0}
