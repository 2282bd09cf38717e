"""What the tests of study 3 share: a small data set of discs, a small network, and runs made by hand."""

import numpy as np
import pandas as pd
import torch
from numpy.testing import assert_array_equal

from xai_lib import config, training
from xai_lib.data.case import Case, CaseDataset
from xai_lib.studies.ultrasound.runs import Backbone, Run

SIZE = 64
BACKBONE = Backbone("squeezenet1_1", transfer="all", layer="features.7")
FIT = training.FitConfig(epochs=2, batch_size=4, learning_rate=3e-4)
CPU = config.runtime("cpu", threads=1)


def disc(row):
    """A mass as a disc, dark on noise; malignant ones are larger."""
    rng = np.random.default_rng(int(row["number"]))
    rows, cols = np.indices((SIZE, SIZE))
    mask = np.hypot(rows - rng.integers(24, 40), cols - rng.integers(24, 40)) <= 6 + 5 * row["label"]
    image = np.where(mask, 0.2, 0.6) + 0.1 * rng.random((SIZE, SIZE))
    image, mask = torch.tensor(image, dtype=torch.float32)[None], torch.tensor(mask)
    return Case(image, int(row["label"]), mask, torch.zeros(0, 4), 0.5, row["patient_id"], row["view"], row["source"])


def discs(patients=10, name="discs", read=disc):
    rows = [
        {
            "source": f"{name}/{p}{view}",
            "label": p % 2,
            "patient_id": f"p{p}",
            "view": view,
            "number": 2 * p + (view == "b"),
        }
        for p in range(patients)
        for view in "ab"
    ]
    return CaseDataset(name, pd.DataFrame(rows), read, parameters={"size": SIZE})


def made(maps, logits=None, **more):
    """A run of one image and one epoch for each map, or with `maps` of shape (E, N, h, w)."""
    maps = np.asarray(maps, np.float32)
    maps = maps.reshape(-1, *maps.shape[-3:])
    logits = np.zeros(maps.shape[:2], np.float32) if logits is None else np.asarray(logits, np.float32)
    losses = np.arange(len(maps), 0.0, -1)
    values = dict(seed=0, fold=0, test=np.arange(maps.shape[1]), val_loss=losses, test_loss=losses)
    return Run(logits=logits, maps=maps, **(values | dict(offset=np.zeros(2), gap=np.array(0.0)) | more))


def assert_same(a, b):
    for name in ("seed", "fold", "test", "logits", "maps", "val_loss", "test_loss", "offset", "gap"):
        assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert np.asarray(getattr(a, name)).dtype == np.asarray(getattr(b, name)).dtype, name
    assert sorted(a.extras) == sorted(b.extras)
    for name, values in a.extras.items():
        assert_array_equal(values, b.extras[name], err_msg=name)
