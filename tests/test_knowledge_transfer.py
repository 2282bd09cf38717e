"""Equations 3 to 5 by hand and against the published code's formula, groups of real networks, teacher and student."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from xai_lib import knowledge_transfer as kt
from xai_lib import models
from xai_lib.knowledge_transfer import Group, Reader, activation_map, transfer_distance


def tiny(widths=(4, 4, 6, 8), seed=0, outputs=2, channels=1):
    """One strided convolution with normalisation and in-place ReLU for each width; groups 1 to 4."""
    torch.manual_seed(seed)
    layers = OrderedDict()
    for i, (before, after) in enumerate(zip((3, *widths), widths, strict=False)):
        layers |= {f"conv{i}": nn.Conv2d(before, after, 3, 2, 1, bias=False), f"norm{i}": nn.BatchNorm2d(after)}
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
    spec = {"architecture": "tiny", "in_channels": channels, "outputs": outputs}
    return models.Classifier(nn.Sequential(layers), widths[-1], spec).eval()


def pairs(n=4, size=32, seed=0):
    """Images and masks as two channels (n, 2, size, size)."""
    x = torch.rand(n, 2, size, size, generator=torch.Generator().manual_seed(seed))
    x[:, 1] = (x[:, 1] > 0.5).float()
    return x


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# equations


def test_activation_map_by_hand():
    a = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]])  # two channels, one row of two cells
    assert activation_map(a).tolist() == [[[5.0, 2.0]]]
    assert activation_map(a.to(torch.bfloat16)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"activations: expected shape \(N, C, h, w\), got \(1, 2\)"):
        activation_map(torch.zeros(1, 2))


def test_distance_by_hand():
    mask = torch.tensor([[[3.0, 0.0]], [[3.0, 4.0]], [[1.0, 1.0]]])
    roi = torch.tensor([[[0.0, 7.0]], [[30.0, 40.0]], [[1.0, 0.0]]])
    half = math.sqrt(0.5)
    gap = math.hypot(half - 1, half)
    assert_allclose(transfer_distance(mask, roi), [math.sqrt(2), 0, gap], atol=1e-6)
    assert_allclose(transfer_distance(mask, roi, "mean_squared"), [1, 0, gap**2 / 2], atol=1e-6)


def test_mean_squared_is_the_published_formula():
    a, b = torch.randn(5, 3, 4, 4), torch.randn(5, 7, 4, 4)

    def at(x):
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    ours = transfer_distance(activation_map(a), activation_map(b), "mean_squared").mean()
    assert_allclose(ours, (at(a) - at(b)).pow(2).mean(), rtol=1e-6)


def test_equal_maps_have_distance_zero_and_a_gradient():
    roi = torch.rand(2, 3, 3, requires_grad=True)
    distance = transfer_distance(roi.detach().clone(), roi)
    distance.sum().backward()
    assert distance.tolist() == [0, 0] and torch.isfinite(roi.grad).all()


@pytest.mark.parametrize("form", kt.FORMS)
def test_gradient_against_finite_differences(form):
    mask, roi = torch.rand(2, 2, 3, dtype=torch.double), torch.rand(2, 2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: transfer_distance(mask, r, form), roi)


def test_loss_by_hand():
    distances = {"group3": torch.tensor([1.0, 3.0]), "group4": torch.tensor([2.0, 2.0])}
    assert kt.transfer_loss(torch.tensor(1.0), distances, 4.0) == 1 + 4 / 2 * (2 + 2)
    assert kt.transfer_loss(torch.tensor(1.0), distances, 0.0) == 1


def test_bad_input_of_the_equations():
    ones = torch.ones(2, 2, 2)
    zero = torch.stack((ones[0], 0 * ones[0]))
    with pytest.raises(ValueError, match="group4: the activation map of mask 1 is zero"):
        transfer_distance(zero, ones, layer="group4")
    with pytest.raises(ValueError, match="group4: the activation map of ROI 1 is zero"):
        transfer_distance(ones, zero, layer="group4")
    with pytest.raises(ValueError, match="ROI 0 is zero or not a number"):
        transfer_distance(ones, ones * math.nan)
    with pytest.raises(ValueError, match=r"group3: .* shapes \(2, 2, 2\) and \(2, 4, 4\)"):
        transfer_distance(ones, torch.ones(2, 4, 4), layer="group3")
    with pytest.raises(ValueError, match="form: 'squared' is not one of printed, mean_squared"):
        transfer_distance(ones, ones, "squared")
    with pytest.raises(ValueError, match="beta: -1 is below 0"):
        kt.transfer_term({"group4": ones[0, 0]}, -1)
    with pytest.raises(ValueError, match="distances: there is none"):
        kt.transfer_term({}, 1)


# groups


def test_groups_of_densenet_are_its_blocks():
    model = models.build("densenet121")
    found = kt.groups(model)
    assert [group.last for group in found.values()] == [f"features.0.denseblock{i}" for i in (1, 2, 3)] + ["features.1"]
    assert found["group4"].first == "features.0.denseblock4"  # the transition before it does not train
    before = kt.groups(model, pre_norm=True)["group4"]
    assert before == Group("features.0.denseblock4", "features.0.denseblock4")
    seen = {}
    names = [f"denseblock{i}" for i in (1, 2, 3, 4)]
    for name in names:  # reference: hooks that copy
        block = getattr(model.features[0], name)
        block.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.clone()}))
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        after, raw = (kt.group_activations(model, x, pre_norm=p) for p in (False, True))
        assert torch.equal(after["group4"], model.feature_maps(x))
    for group, name in zip(raw, names, strict=True):
        assert torch.equal(raw[group], seen[name])
    assert [tuple(a.shape[1:]) for a in after.values()] == [(256, 16, 16), (512, 8, 8), (1024, 4, 4), (1024, 2, 2)]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("mobilenet_v2", ["features.3", "features.6", "features.13", "features.18"]),
        ("resnet10", [f"features.layer{i}.0" for i in (1, 2, 3, 4)]),
        ("squeezenet1_1", ["features.1", "features.4", "features.7", "features.12"]),
    ],
)
def test_groups_of_other_networks(name, ends):
    model = models.build(name).train()
    before = weights(model)
    assert [group.last for group in kt.groups(model).values()] == ends
    assert model.training and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert list(kt.groups(model, ["group3", "group1"])) == ["group3", "group1"]
    with torch.no_grad():
        x = torch.rand(2, 1, 64, 64)
        assert torch.equal(kt.group_activations(model.eval(), x, ["group4"])["group4"], model.feature_maps(x))


def test_a_network_of_two_groups():
    assert list(kt.groups(tiny((4, 8)))) == ["group1", "group2"]


def test_bad_groups():
    model = tiny()
    with pytest.raises(ValueError, match="groups: 'group5' is not in tiny, which has group1, group2, group3, group4"):
        kt.groups(model, ["group5"])
    with pytest.raises(ValueError, match="pre_norm: tiny has no normalisation"):
        kt.groups(model, pre_norm=True)
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 1, H, W\), got \(2, 3, 8, 8\)"):
        kt.group_activations(model, torch.rand(2, 3, 8, 8))


# teacher and student


def test_reader_reads_its_channel():
    model, x = tiny(), pairs()
    for place, reads in enumerate(kt.READS):
        assert torch.equal(Reader(model, reads=reads)(x), model(x[:, place : place + 1]))
    whole, cut = Reader(model), Reader(model, cut=True, reads="mask")
    assert cut.channels == 6
    inside = torch.cat([cut.frozen_output(x[:, i : i + 1]) for i in (0, 1)], 1)
    assert torch.equal(cut(inside), model(x[:, 1:]))
    assert not whole.frozen_output(x[:, :1]).requires_grad and whole(x).requires_grad


def test_only_the_last_group_and_the_head_train():
    model, x = tiny(), pairs()
    student = Reader(model).train()
    before = weights(model)
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 1.0)
    student(x).square().sum().backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"head.weight", "features.conv3.weight", "features.norm3.weight", "features.norm3.running_mean"} <= moved
    assert all(name.startswith(("head", "features.conv3", "features.norm3")) for name in moved)
    assert model.features.norm3.training and not model.features.norm2.training
    assert not Reader(tiny()).training


def test_train_from_another_group_or_all():
    assert list(Reader(tiny(), "group3").before)[-1] == "features.relu1"
    student = Reader(tiny(), "all")
    assert not student.before and all(p.requires_grad for p in student.parameters())


def test_objective_by_hand():
    student, teacher, x = Reader(tiny()).train(), Reader(tiny(seed=1), reads="mask"), pairs()
    logits, term = kt.transfer_objective(teacher, student, beta=3.0)(student, x)
    f_roi = activation_map(student.model.feature_maps(x[:, :1]))
    f_mask = activation_map(teacher.model.feature_maps(x[:, 1:]))
    assert_allclose(term.item(), 1.5 * transfer_distance(f_mask, f_roi).mean().item(), rtol=1e-5)
    assert torch.allclose(logits, student(x))
    term.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.model.features.conv3.weight.grad.abs().sum() > 0
    two = kt.transfer_objective(teacher, Reader(student.model, "group3"), ["group3", "group4"], 3.0)
    assert two(student, x)[1] > term


def test_refusals_of_teacher_and_student():
    student = Reader(tiny())
    with pytest.raises(
        ValueError, match="groups: 'group2' is not a group of the student that trains, which are group4"
    ):
        kt.transfer_objective(student, student, ["group2"])
    with pytest.raises(ValueError, match="groups: 'group4' is not a group of the teacher, which has group1, group2"):
        kt.transfer_objective(Reader(tiny((4, 8)), "group2"), student)
    finer = Reader(tiny((4, 4, 6, 8, 8)), reads="mask")  # five resolutions, of which the last four are groups
    with pytest.raises(ValueError, match=r"group4: .* shapes \(4, 1, 1\) and \(4, 2, 2\).*teacher"):
        kt.transfer_objective(finer, student)(student, pairs())
    with pytest.raises(ValueError, match="model: it takes 3 channels"):
        Reader(tiny(channels=3))
    with pytest.raises(ValueError, match="'group9' is not in tiny"):
        Reader(tiny(), "group9")


# figures


def test_group_distances():
    model, x = tiny(), pairs(5)
    rois, masks = x.split(1, 1)
    same = kt.group_distances(model, rois, rois)
    assert list(same) == ["group1", "group2", "group3", "group4"]
    assert all(d.shape == (5,) and d.abs().max() < 1e-6 for d in same.values())
    found = kt.group_distances(model.train(), rois, masks, "mean_squared", batch_size=2)
    assert model.training
    model.eval()
    maps = [activation_map(kt.group_activations(model, part)["group2"]) for part in (masks, rois)]
    assert_allclose(found["group2"], transfer_distance(*maps, "mean_squared").detach(), rtol=1e-4)
    other = kt.group_distances(model, rois, rois, teacher=tiny(seed=1))
    assert all(d.min() > 0 for d in other.values())


def test_share_inside_by_hand():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).repeat(3, 1, 1)
    regions = torch.zeros(3, 4, 4, dtype=torch.bool)
    regions[0, 2:, 2:] = True  # the cell of 4
    regions[1, :, 1:3] = True  # half of everything
    assert_allclose(kt.share_inside(maps, regions), [0.4, 0.5, 0.0])
    assert_allclose(kt.share_inside(torch.ones(3, 2, 2), regions), regions.float().mean((1, 2)))
    assert math.isnan(kt.share_inside(torch.zeros(1, 2, 2), regions[:1]))


@pytest.mark.parametrize("area", [0.1, 0.5, math.pi / 4])
def test_centred_disc(area):
    disc = kt.centred_disc(100, area)
    assert disc.shape == (100, 100) and abs(float(disc.float().mean()) - area) < 0.01
    assert torch.equal(disc, disc.flip(0)) and torch.equal(disc, torch.rot90(disc))
    rows, cols = np.nonzero(disc.numpy())
    assert abs(rows.mean() - 49.5) < 1e-9 and abs(cols.mean() - 49.5) < 1e-9


@pytest.mark.parametrize("area", [0, 0.9, math.nan])
def test_a_disc_that_does_not_fit(area):
    with pytest.raises(ValueError, match="area: "):
        kt.centred_disc(10, area)
