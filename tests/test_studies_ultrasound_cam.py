import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from ultrasound_discs import CPU, SIZE, disc, discs, made

from xai_lib import localization, models, training
from xai_lib.studies.ultrasound import cam as uc


def test_relative_points_by_hand():
    maps = np.zeros((2, 2, 4))
    maps[0, 0, 3], maps[0, 1, 1] = 1, -1
    maps[1, 1, 0], maps[1, 0, 0] = 5, -5
    expected = [[[0.25, 0.875], [0.75, 0.375]], [[0.75, 0.125], [0.25, 0.125]]]
    assert_allclose(uc.relative_points(maps), expected)
    assert_allclose(uc.relative_points(torch.tensor(maps)), expected)


def test_first_points_drift_to_the_edge():
    maps = np.zeros((1, 7, 7), np.float32)
    maps[0, 0, 6] = 1  # flat from the centre of the corner cell, (15.5, 207.5), to the corner
    maps[0, 2, 3], maps[0, 2, 2], maps[0, 3, 3] = -1, -0.5, -0.25
    where, tied = uc.first_points(maps)
    assert_allclose(where[0, 0], (0.5 / 224, 208.5 / 224))
    assert_allclose(where[0, 1], (2.5 / 7, 3.5 / 7), atol=1 / 224)
    assert tied.tolist() == [[True, False]]


def test_points_by_hand():
    data = discs(2)
    areas = [np.zeros((4, 8), np.uint8) for _ in range(4)]
    areas[0][0, 6:8] = 1  # pixels of cell (0, 3) of a 4 x 4 grid
    areas[0][3, 0] = 2
    areas[2][1, 2:4] = 4
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 3], first[3, 0] = 1, -1  # drawn at (0, 6.5) and (3, 0.5)
    second[1, 1], second[2, 2] = -2, 3
    run = made([first, second], logits=[[0.5, -1.5]], test=np.array([0, 2]), seed=7, fold=4)
    frame = uc.points([run], areas, data)
    assert frame["index"].tolist() == [0, 2] and frame["source"].tolist() == ["discs/0a", "discs/1a"]
    assert frame["patient_id"].tolist() == ["p0", "p1"] and frame["label"].tolist() == [0, 1]
    assert frame["logit"].tolist() == [0.5, -1.5] and set(frame["seed"]) == {7} and set(frame["fold"]) == {4}
    hits = {(i, c) for i in (0, 1) for c in frame.columns if c[:4] in ("max_", "min_") and frame[c][i]}
    assert hits == {(0, "max_mass"), (0, "max_any"), (0, "min_ring"), (0, "min_any"), (1, "min_below"), (1, "min_any")}
    assert frame["max_mass"].dtype == bool


def test_points_agree_with_the_pointing_game():
    dataset = discs()
    areas = uc.region_maps(dataset, progress=False, ring_mm=3.0)
    maps = np.random.default_rng(0).normal(size=(len(dataset), 7, 7))
    frame = uc.points([made(maps)], areas, dataset)
    for i, (values, area) in enumerate(zip(maps.astype(np.float32), areas, strict=True)):
        for short, which in (("max", "maximum"), ("min", "minimum")):
            expected = localization.pointing_game(values, area, which)
            assert {c: bool(frame[f"{short}_{c}"][i]) for c in expected} == expected


def test_points_of_an_epoch():
    maps = np.zeros((3, 1, 2, 2))
    for epoch, cell in enumerate([(0, 0), (0, 1), (1, 1)]):
        maps[epoch, 0][cell] = 1
    run = made(maps, logits=[[0.0], [1.0], [2.0]], val_loss=np.array([np.nan, 1, 2]), test_loss=np.array([3.0, 2, 1]))
    data = discs(1).subset([0])
    areas = [np.array([[1, 2], [0, 4]], np.uint8)]

    def seen(**options):
        row = uc.points([run], areas, data, **options).iloc[0]
        return row["logit"], next(c for c in localization.REGIONS if row[f"max_{c}"])

    assert seen() == seen(epoch=1) == (1.0, "ring")
    assert seen(early_stopping="test") == seen(epoch=2) == seen(epoch=99) == (2.0, "below")
    assert seen(epoch=0) == (0.0, "mass")


def test_measured_offset_is_added():
    values = np.zeros((1, 7, 7))
    values[0, 3, 3], values[0, 6, 0] = 1, -1  # drawn at 111.5; torchvision's padding looks 15.5 pixels above and left
    run = made(values, offset=np.array([-15.5, -15.5]) / 224, extras={"grad_cam": uc.relative_points(values)})
    area = np.zeros((224, 224), np.uint8)
    area[95:98, 95:98] = 1
    area[191:194, 0] = 4  # the minimum, drawn at (207.5, 15.5)
    data = discs(1).subset([0])
    for which in ("cam", "cam_first", "grad_cam"):
        assert not uc.points([run], [area], data, which)["max_mass"][0]
        row = uc.points([run], [area], data, which, align="measured").iloc[0]
        assert row["max_mass"] and (row["min_below"] or which == "cam_first")


def test_correction_finds_what_a_displaced_network_looks_at():
    """Three stride-2 convolutions with torchvision's padding draw a bright spot 3.5 pixels too far down and right."""
    layers = [nn.Conv2d(3 if k == 0 else 1, 1, 3, stride=2, padding=1, bias=False) for k in range(3)]
    net = models.Classifier(nn.Sequential(*layers), 1, {"in_channels": 1, "outputs": 1}).eval()
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(
                torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])).expand_as(layer.weight)
            )
        net.head.weight.fill_(1)
        net.normalize.mean.zero_()
    rng = np.random.default_rng(0)
    spots = rng.integers(12, 52, (80, 2))
    pictures = torch.zeros(80, 1, 64, 64, dtype=torch.uint8)
    for picture, (row, col) in zip(pictures, spots, strict=True):
        picture[0, row, col] = 255
    stack = training.Stack(pictures, torch.zeros(80, dtype=torch.long))
    offset = uc.measured_offset(net, stack, CPU)
    drawn = uc.relative_points(uc.explain(net, stack, CPU)[1])[:, 0]
    assert_allclose((drawn * 64 - 0.5 - spots).mean(0), 3.5, atol=0.8)
    assert_allclose(((drawn + offset) * 64 - 0.5 - spots).mean(0), 0, atol=0.8)


def test_points_refuse_what_the_runs_cannot_answer():
    data = discs(1)
    area = np.zeros((8, 8), np.uint8)
    two, three = np.full((2, 2, 2), 0.5), np.full((3, 2, 2), 0.5)
    extras = {"grad_cam": two, "layer_cam": two, "cameras": two, "random_network": two, "logits_random_network": [0, 0]}
    run = made(np.zeros((2, 3, 3)), extras=extras | {"other": three, "logits_other": np.zeros(3)})
    get = functools.partial(uc.points, [run], [area, area], data)
    for which in ("grad_cam", "random_network", "layer_cam", "cameras"):
        assert len(get(which)) == 2
    for which in ("layer_cam", "cameras", "random_network"):
        with pytest.raises(ValueError, match=f"last layer of the trained network, not on '{which}'"):
            get(which, align="measured")
    for options in ({"early_stopping": "test"}, {"epoch": 0}):
        assert len(get("random_network", **options)) == 2
        with pytest.raises(ValueError, match="'grad_cam' is known for the network that validation stopping keeps"):
            get("grad_cam", **options)
    with pytest.raises(ValueError, match="'other' has points on 3 images, the run tested 2"):
        get("other")
    for which in ("saliency", "logits_other"):
        with pytest.raises(ValueError, match="is unknown, expected one of cam, cam_first, grad_cam"):
            get(which)
    with pytest.raises(ValueError, match="align: 'nominal' is not"):
        get(align="nominal")
    with pytest.raises(ValueError, match="runs: there is none"):
        uc.points([], [area, area], data)
    with pytest.raises(ValueError, match="areas: 1 for the 2 cases of discs"):
        uc.points([run], [area], data)


def test_regions_name_the_case():
    def without_mask(row):
        return replace(disc(row), mask=None) if row["source"].endswith("1b") else disc(row)

    def without_size(row):
        return replace(disc(row), pixel_mm=None) if row["source"].endswith("2a") else disc(row)

    assert [a.shape for a in uc.region_maps(discs(2), progress=False)] == [(SIZE, SIZE)] * 4
    with pytest.raises(ValueError, match="discs/1b: it has no mask"):
        uc.region_maps(discs(3, read=without_mask), progress=False)
    with pytest.raises(ValueError, match="discs/2a: pixel_mm: None"):
        uc.region_maps(discs(3, read=without_size), progress=False)
    assert len(uc.region_maps(discs(3, read=without_size), progress=False, ring_fraction=0.5)) == 6
