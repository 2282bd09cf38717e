import copy

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.metrics import auc as trapezoid_area
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from xai_lib import models
from xai_lib.attribution import cam, core, removal, sanity

SIMILARITY = ["rank_correlation", "absolute_rank_correlation", "top_overlap"]


class Linear(nn.Module):
    """Score = sum(w x) + bias, for class 0; its negative for class 1."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.as_tensor(weight)), bias

    def forward(self, x):
        score = (self.weight * x).sum((1, 2, 3)) + self.bias
        return torch.stack([score, -score], dim=1)


def gradient(model, x, target):
    x = x.requires_grad_()
    with torch.enable_grad():
        scores = model(x).gather(1, target[:, None]).sum()
    return torch.autograd.grad(scores, x)[0].sum(1)


def gradient_x_input(model, x, target):
    return gradient(model, x, target) * x.detach().sum(1)  # right for one channel


def edges(_model, x, _target):
    """A map of the image, which asks no network."""
    return (x - F.avg_pool2d(x, 3, 1, 1)).abs().sum(1)


@pytest.fixture
def net():
    """Smooth, two classes, with batch-norm statistics that are not those of a fresh layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 4, 3), nn.Tanh())
        made = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 8 * 10, 2)).eval()
        made[1].running_mean.normal_(0, 0.1)
        made[1].running_var.uniform_(0.5, 2)
    return made


@pytest.fixture
def x():
    return torch.rand(3, 1, 10, 12, generator=torch.Generator().manual_seed(1))


def linear(height=3, width=4, channels=1, seed=0, **kwargs):
    weight = torch.randn(channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Linear(weight, **kwargs).eval()


def snapshot(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    grads = [(p.requires_grad, p.grad) for p in model.parameters()]
    return copy.deepcopy(model.state_dict()), hooks, grads, [m.training for m in model.modules()], type(model)


def assert_unchanged(model, before):
    state, *rest = snapshot(model)
    assert list(state) == list(before[0]) and all(torch.equal(state[k], before[0][k]) for k in state)
    assert rest == list(before[1:])


# ---------------------------------------------------------------------------------------- cascading randomisation


def test_cascade_goes_from_the_head_downwards(net, x):
    table = sanity.cascading_randomisation(gradient, net, x, 0, seed=0)
    assert list(table.columns) == ["step", "layer", "image", *SIMILARITY, "image_effect"]
    steps = table.drop_duplicates("step")
    assert list(steps["layer"]) == ["", "6", "3", "1", "0"] and list(table["image"]) == [0, 1, 2] * 5
    assert (table.query("step == 0")[SIMILARITY] == 1).all(axis=None)  # the method is not random
    assert table.query("step > 0")["rank_correlation"].abs().max() < 0.6


def test_cascade_by_hand():
    """One layer of two weights: the gradient is the weights, before and after."""
    head = nn.Conv2d(1, 1, (1, 2), stride=2, bias=False)
    net = nn.Sequential(nn.Identity(), head, nn.Flatten()).eval()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[[[1.0, 2.0]]]]))
    seen = []

    def explain(model, x, target):
        seen.append(model[1].weight.detach().flatten().tolist())
        return gradient(model, x, target)

    table = sanity.cascading_randomisation(explain, net, torch.ones(1, 1, 1, 2), 0, seed=3)
    first, second = seen[2]
    assert seen[:2] == [[1, 2], [1, 2]] and table["layer"].tolist() == ["", "1"]
    assert table["rank_correlation"][1] == pytest.approx(1 if first < second else -1)
    assert abs(first) < 1 and abs(second) < 1  # torch's bound is 1/sqrt(2)


def test_permuted_weights_keep_their_values(net, x):
    states = []

    def explain(model, x, target):
        states.append(copy.deepcopy(model.state_dict()))
        return gradient(model, x, target)

    sanity.cascading_randomisation(explain, net, x, 0, seed=0, how="permute")
    for name, value in net.state_dict().items():
        assert torch.equal(states[-1][name].flatten().sort().values, value.flatten().sort().values)
        assert value.unique().numel() < 6 or "running" in name or not torch.equal(states[-1][name], value)


def test_image_effect_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -2.0, -3.0, 1.0]]))
    table = sanity.cascading_randomisation(gradient, model, torch.ones(1, 1, 2, 2), 0, seed=0, how="permute")
    assert table["image_effect"].tolist() == pytest.approx([3, 3])  # a sum does not mind the order
    table = sanity.cascading_randomisation(gradient, model, torch.ones(1, 1, 2, 2), 0, seed=0)
    assert table["image_effect"][0] == pytest.approx(3) and table["image_effect"][1] < 2  # 4 weights of at most 1/2


def test_a_deep_network_that_was_reset_does_not_answer_to_the_image(x):
    """Why there is a column for it: without batch-norm's statistics every layer shrinks what reaches it."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        layers = [layer for _ in range(30) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
        deep = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), *layers, nn.Flatten(), nn.Linear(32 * 120, 1)).eval()
        for layer in deep:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    last = {how: sanity.cascading_randomisation(gradient, deep, x, 0, 0, [""], how) for how in ("reset", "permute")}
    effect = {how: table["image_effect"].iloc[-1] / table["image_effect"].iloc[0] for how, table in last.items()}
    assert effect["reset"] < 1e-3 * effect["permute"]


def test_cascade_sees_a_method_that_ignores_the_network(net, x):
    table = sanity.cascading_randomisation(edges, net, x, 0, seed=0)
    assert_allclose(table[SIMILARITY], 1)


def test_cascade_shows_how_random_a_method_is(net, x):
    rng = torch.Generator().manual_seed(0)

    def noisy(model, x, target):
        g = gradient(model, x, target)
        return g + g.std() * torch.randn(g.shape, generator=rng)

    table = sanity.cascading_randomisation(noisy, net, x, 0, seed=0)
    assert table.query("step == 0")["rank_correlation"].between(0.2, 0.8).all()


def test_each_step_keeps_the_ones_before(net, x):
    states = []

    def explain(model, x, target):
        states.append(copy.deepcopy(model.state_dict()))
        return gradient(model, x, target)

    sanity.cascading_randomisation(explain, net, x, 0, seed=0)
    changed = [{k.split(".")[0] for k in s if not torch.equal(s[k], states[0][k])} for s in states]
    assert changed == [set(), set(), {"6"}, {"6", "3"}, {"6", "3", "1"}, {"6", "3", "1", "0"}]
    assert torch.equal(states[2]["6.weight"], states[-1]["6.weight"])
    assert states[-1]["1.running_var"].tolist() == [1] * 6


def test_blocks_and_layers_without_a_reset_method(x):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.add_representation_scaling(models.build("resnet10", outputs=2)).eval()
    scale = net.get_submodule("features.layer4.0.1")
    with torch.no_grad():
        scale.gamma.copy_(torch.linspace(0.5, 1.5, 512))
    states = []

    def explain(model, x, target):
        states.append(copy.deepcopy(model.state_dict()))
        return gradient(model, x, target)

    images = F.interpolate(x, size=(64, 64))
    table = sanity.cascading_randomisation(explain, net, images, 1, seed=0, layers=["head", "features.layer4"])
    assert table["layer"].tolist() == [""] * 3 + ["head"] * 3 + ["features.layer4"] * 3
    changed = [k for k in states[0] if not torch.equal(states[-1][k], states[0][k])]
    assert {k.split(".")[0] for k in changed} == {"head", "features"}
    assert all("layer4" in k for k in changed if k.startswith("features"))
    gamma = states[-1]["features.layer4.0.1.gamma"]
    assert not torch.equal(gamma, scale.gamma) and torch.equal(gamma.sort().values, scale.gamma)


def test_cascade_repeats_with_its_seed_and_leaves_torchs_alone(net, x):
    state = torch.get_rng_state()
    first, again, other = (sanity.cascading_randomisation(gradient, net, x, 0, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    some = sanity.cascading_randomisation(gradient, net, x, 0, seed=1, layers=["6"])
    pd.testing.assert_frame_equal(some, first[first["step"] < 2])  # a layer's weights depend on its name only


def test_model_is_unchanged_after_the_cascade(net, x):
    before = snapshot(net)
    sanity.cascading_randomisation(gradient, net, x, 0, seed=0)
    assert_unchanged(net, before)
    calls = []

    def fails(model, x, target):
        calls.append(1)
        model[0].weight.data.zero_()
        model.register_forward_hook(lambda *_: None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return torch.rand(3, 10, 12)

    with pytest.raises(KeyboardInterrupt):
        sanity.cascading_randomisation(fails, net, x, 0, seed=0)
    assert_unchanged(net, before)


def test_a_map_that_dies_is_nan(net, x):
    def dead(model, x, target):
        return gradient(model, x, target) if model[6].bias[0] == net[6].bias[0] else torch.zeros(3, 10, 12)

    table = sanity.cascading_randomisation(dead, net, x, 0, seed=0)
    assert table.query("step > 0")[SIMILARITY].isna().all(axis=None)


def test_unknown_way_is_named(net, x):
    with pytest.raises(ValueError, match="how: 'shuffle' is not 'reset' or 'permute'"):
        sanity.cascading_randomisation(gradient, net, x, 0, seed=0, how="shuffle")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["7"], "layers: '7' is not in the model; layers with weights are 6, 3, 1, 0"),
        (["6", "head"], "layers: 'head' is not in the model"),
        (["2"], "layers: '2' has no weights; layers with weights are 6, 3, 1, 0"),
    ],
)
def test_unknown_layers_are_named(net, x, layers, message):
    with pytest.raises(ValueError, match=message):
        sanity.cascading_randomisation(gradient, net, x, 0, seed=0, layers=layers)


# ------------------------------------------------------------------------------------------- label randomisation


def test_label_randomisation_by_hand():
    trained, shuffled = Linear([[[1.0, 2.0], [3.0, 4.0]]]).eval(), Linear([[[1.0, 2.0], [4.0, -3.0]]]).eval()
    table = sanity.label_randomisation(gradient, trained, shuffled, torch.ones(2, 1, 2, 2), [0, 1])
    assert list(table.columns) == ["image", *SIMILARITY]
    assert_allclose(table["rank_correlation"], [1 - 6 * (1 + 1 + 1 + 9) / 60] * 2)  # ranks 1 2 3 4 and 2 3 4 1
    assert_allclose(table["absolute_rank_correlation"], [1 - 6 * 2 / 60] * 2)  # 1 2 3 4 and 1 2 4 3
    assert table["top_overlap"].tolist() == [0, 0]  # class 0: pixels 3 and 2, class 1: 0 and 3


def test_label_randomisation_leaves_both_models_alone(net, x):
    other = copy.deepcopy(net)
    before = snapshot(net)

    def spoils(model, x, target):
        maps = gradient(model, x, target)
        model[0].weight.data.zero_()
        return maps

    assert_allclose(sanity.label_randomisation(spoils, net, other, x, 0)[SIMILARITY], 1)
    assert_unchanged(net, before)
    assert_unchanged(other, before)


# --------------------------------------------------------------------------------------------------- input shift


def test_shift_of_a_linear_model_by_hand():
    model, x = Linear([[[1.0, -2.0], [3.0, 4.0]]]).eval(), torch.tensor([[[[1.0, 1.0], [2.0, 0.5]]]])
    same = sanity.input_shift(gradient, model, x, 0, shift=0.5)
    assert same["relative_change"].tolist() == [0] and same["rank_correlation"].tolist() == [1]
    moved = sanity.input_shift(gradient_x_input, model, x, 0, shift=0.5)  # w x becomes w (x + 0.5)
    assert_allclose(moved["relative_change"], [0.5 * (1 + 2 + 3 + 4) / (1 + 2 + 6 + 2)])
    assert moved["output_change"].tolist() == [0]


def test_shift_is_undone_exactly_with_zero_padding(net, x):
    """The first layer's bias could not do that: at the border, the padding would not be shifted."""
    table = sanity.input_shift(gradient, net.double(), x.double(), 0, shift=2.0)
    assert table["output_change"].max() < 1e-12 and table["relative_change"].max() < 1e-12
    table = sanity.input_shift(gradient_x_input, net, x.double(), 0, shift=2.0)
    assert table["relative_change"].min() > 1


@pytest.mark.parametrize("shift", [[0.1, 0.2, 0.3], torch.rand(3, 8, 8), torch.tensor([[[0.5]], [[1.0]], [[0.0]]])])
def test_shift_per_channel_or_as_an_image(shift):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    model = linear(8, 8, channels=3)
    assert sanity.input_shift(gradient, model, images, 0, shift)["relative_change"].max() < 1e-12


def test_shifted_model_keeps_type_layers_and_the_user_unchanged(x):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.build("resnet10")
    images, before, seen = F.interpolate(x, size=(64, 64)), snapshot(net), []

    def explain(model, x, _target):
        seen.append((isinstance(model, models.Classifier), x.mean().item()))
        network = core.Network(model)  # a copy of the copy works too
        network.scores(x, torch.zeros(len(x), dtype=torch.long))
        return cam.resize_map(cam.layer_cam(model, x, "features.layer3"), (64, 64))

    table = sanity.input_shift(explain, net, images, 0, shift=0.25)
    assert [s[0] for s in seen] == [True, True] and seen[1][1] == pytest.approx(seen[0][1] + 0.25)
    assert table["relative_change"].max() < 1e-2
    assert_unchanged(net, before)


def test_an_explanation_that_goes_past_the_forward_pass_is_refused(x):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.build("resnet10")

    def explain(model, x, _target):
        return cam.resize_map(cam.class_activation_map(model, x)[1], (64, 64))  # it calls model.feature_maps

    with pytest.raises(ValueError, match="explain: it never calls the model"):
        sanity.input_shift(explain, net, F.interpolate(x, size=(64, 64)), 0, shift=0.25)


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ([0.1, 0.2], r"shift: shape \(2, 1, 1\) does not fit, expected a number, \(1,\) or \(1, 10, 12\)"),
        (torch.zeros(3, 1, 10, 12), "shift: shape"),
        (float("nan"), "shift: it holds NaN"),
    ],
)
def test_bad_shifts(net, x, shift, message):
    with pytest.raises(ValueError, match=message):
        sanity.input_shift(gradient, net, x, 0, shift)


# ---------------------------------------------------------------------------------------- deletion and insertion


WEIGHT = torch.tensor([[[4.0, -1.0], [2.0, 3.0]]])


def by_hand(kind, **options):
    """Contributions 4, -2, 2, 3 in an image of brightness 1, 2, 1, 1; the map is exact."""
    x = torch.tensor([[[[1.0, 2.0], [1.0, 1.0]]]])
    options = {"output": "score", "steps": 4, "fill": 0.0, **options}
    return kind(Linear(WEIGHT, bias=1.0).eval(), x, 0, WEIGHT * x[0], **options)


def test_deletion_of_a_linear_model_by_hand():
    table = by_hand(removal.deletion)
    assert list(table.columns) == ["image", "order", "share", "score", "normalised"]
    curve = table[table["order"] == "map"]
    assert curve["share"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve["score"].tolist() == [8, 4, 1, -1, 1]  # 1 + 7, then 4, 3, 2 and -2 are taken away
    assert_allclose(curve["normalised"], np.array([7, 3, 0, -2, 0]) / 7)
    bright = table[table["order"] == "brightness"]["score"]
    assert bright.iloc[1] == 10  # the brightest pixel argues against the class
    areas = removal.auc(table).set_index("order")
    assert areas.loc["map", "auc"] == (8 / 2 + 4 + 1 - 1 + 1 / 2) / 4
    assert areas.loc["map", "normalised_auc"] == pytest.approx((7 / 2 + 3 + 0 - 2 + 0) / 7 / 4)
    assert list(areas.index) == list(removal.ORDERS)


def test_insertion_of_a_linear_model_by_hand():
    curve = by_hand(removal.insertion).query("order == 'map'")
    assert curve["score"].tolist() == [1, 5, 8, 10, 8]
    assert_allclose(curve["normalised"], np.array([0, 4, 7, 9, 7]) / 7)


def test_fill_by_hand():
    assert by_hand(removal.deletion, fill=0.5).query("order == 'map'")["score"].tolist() == [8, 6, 4.5, 3.5, 5]
    fill = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]])
    assert by_hand(removal.deletion, fill=fill).query("order == 'map'")["score"].tolist() == [8, 4, 7, 5, 7]


def test_probabilities_by_hand():
    score = by_hand(removal.deletion).query("order == 'map'")["score"].to_numpy()
    found = by_hand(removal.deletion, output="probability").query("order == 'map'")["score"]
    assert_allclose(found, 1 / (1 + np.exp(-2 * score)), rtol=1e-6)  # softmax of (s, -s)


def test_one_output_is_a_sigmoid(x):
    one = nn.Sequential(nn.Flatten(), nn.Linear(120, 1)).eval()
    table = removal.deletion(one, x, 0, x[:, 0], steps=3)
    start = table.query("order == 'map' and share == 0")["score"]
    assert_allclose(start, one(x).sigmoid().detach()[:, 0], rtol=1e-5)


def test_areas_are_sklearns(net, x):
    table = removal.deletion(net, x, 0, gradient(net, x.clone(), torch.zeros(3, dtype=torch.long)), steps=7)
    for _, row in removal.auc(table).iterrows():
        curve = table[(table["image"] == row["image"]) & (table["order"] == row["order"])]
        assert row["auc"] == pytest.approx(trapezoid_area(curve["share"], curve["score"]))
    assert len(removal.auc(table)) == 9 and table.attrs["forward_passes"] == 3 * 3 * 8


def test_steps_that_do_not_divide_the_pixels(net, x):
    shares = removal.deletion(net, x, 0, x[:, 0], steps=7).query("image == 0 and order == 'map'")["share"]
    assert shares.tolist() == [round(k * 120 / 7) / 120 for k in range(8)]


def test_random_order_has_the_area_of_chance():
    """Linear: each pixel removed takes the same share away on average, so the mean normalised area is 1/2."""
    rng = torch.Generator().manual_seed(0)
    model = Linear(torch.rand(1, 24, 24, generator=rng) + 0.5).eval()
    x = torch.rand(8, 1, 24, 24, generator=rng)
    contributions = (model.weight * x)[:, 0].detach()
    for kind, better in ((removal.deletion, -1), (removal.insertion, 1)):
        areas = removal.auc(kind(model, x, 0, contributions, output="score", fill=0.0))
        mean = areas.groupby("order")["normalised_auc"].mean()
        assert mean["random"] == pytest.approx(0.5, abs=0.02)
        assert better * (mean["map"] - 0.5) > 0.1 and better * (mean["map"] - mean["brightness"]) > 0


def test_ties_are_not_broken_by_the_order_of_the_pixels():
    """All attribution in the lower half, where all tie: the pixels go in random order, not row by row."""
    model, x = Linear(torch.arange(400.0).reshape(1, 20, 20)).eval(), torch.ones(1, 1, 20, 20)
    maps = torch.zeros(1, 20, 20)
    maps[:, 10:] = 1
    curve = removal.deletion(model, x, 0, maps, steps=4, output="score").query("order == 'map'")["score"].to_numpy()
    below, above = sum(range(200, 400)), sum(range(200))
    assert_allclose(curve, [below + above, below / 2 + above, above, above / 2, 0], rtol=0.05)
    flat = removal.auc(removal.deletion(model, x, 0, torch.zeros(1, 20, 20), output="score")).set_index("order")
    assert flat.loc["map", "auc"] == flat.loc["random", "auc"]


def test_curves_know_no_scale_and_no_neighbours(net, x):
    maps = gradient(net, x.clone(), torch.ones(3, dtype=torch.long))
    table = removal.insertion(net, x, 1, maps, steps=5, chunk=4)
    scaled = removal.insertion(net, x, 1, 8 * maps.numpy() + 1, steps=5, chunk=4)
    assert_allclose(scaled["score"], table["score"])
    alone = removal.insertion(net, x[1:2], [1], maps[1:2], steps=5, chunk=1)
    assert_allclose(alone["score"], table.query("image == 1")["score"], rtol=1e-5)


def test_blur_starts_from_a_blurred_image(net, x):
    table = removal.insertion(net, x, 0, x[:, 0], steps=2, output="score")
    none, full = (table.query(f"order == 'map' and share == {s}")["score"] for s in (0, 1))
    assert_allclose(full, net(x)[:, 0].detach(), rtol=1e-5)
    even = x.mean((2, 3), keepdim=True).expand_as(x)  # 5 pixels of blur leave little of 10 x 12
    assert (none.to_numpy() - net(even)[:, 0].detach().numpy()).max() < 0.1


def test_equal_ends_cannot_be_normalised():
    model = Linear(torch.tensor([[[1.0, -1.0]]])).eval()
    table = removal.deletion(model, torch.ones(1, 1, 1, 2), 0, [[[1.0, 0.0]]], steps=2, output="score")
    assert table["normalised"].isna().all() and table["score"].notna().all()


@pytest.mark.parametrize("kind", [removal.deletion, removal.insertion])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": torch.zeros(3, 12, 10)}, r"maps: shape \(3, 12, 10\) does not fit .* \(3, 10, 12\)"),
        ({"maps": torch.zeros(1, 10, 12)}, "maps: shape"),
        ({"maps": torch.full((3, 10, 12), float("nan"))}, "maps: map 0 holds NaN"),
        ({"steps": 0}, "steps: 0 is not in 1 to 120"),
        ({"steps": 121}, "steps: 121 is not in 1 to 120"),
        ({"fill": "grey"}, "fill: 'grey' is unknown"),
        ({"fill": torch.zeros(3, 3)}, "baseline: shape"),
        ({"output": "logit"}, "output: 'logit' is not 'probability' or 'score'"),
        ({"target": 2}, "target: 2 is out of range"),
        ({"chunk": 0}, "chunk: 0 is below 1"),
    ],
)
def test_bad_curves(net, x, kind, options, message):
    options = {"target": 0, "maps": torch.zeros(3, 10, 12), **options}
    with pytest.raises(ValueError, match=message):
        kind(net, x, **options)


def test_short_memory_makes_smaller_chunks(net, x, monkeypatch):
    call = core.Network.__call__

    def short(self, images):
        if len(images) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return call(self, images)

    expected = removal.deletion(net, x, 0, x[:, 0], steps=4, chunk=1)
    monkeypatch.setattr(core.Network, "__call__", short)
    table = removal.deletion(net, x, 0, x[:, 0], steps=4, chunk=8)
    assert_allclose(table["score"], expected["score"], rtol=1e-5)
    assert table.attrs["notes"] and "memory was short" in table.attrs["notes"][0]


# ----------------------------------------------------------------------------------------------------- sensitivity-n


@pytest.mark.parametrize("baseline", [None, 0.3])
def test_sensitivity_n_of_a_linear_model_is_one(baseline):
    model, images = (
        linear(6, 7, channels=3),
        torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(2)).double(),
    )
    maps = (model.weight * (images - (baseline or 0))).sum(1)
    table = removal.sensitivity_n(model, images, 0, maps, [1, 20, 41], baseline=baseline)
    assert list(table.columns) == ["image", "n", "correlation", "random", "brightness"]
    assert table["n"].tolist() == [1, 20, 41] * 2 and table["image"].tolist() == [0] * 3 + [1] * 3
    assert_allclose(table["correlation"], 1, atol=1e-12)
    assert table["random"].abs().max() < 0.5 and table["brightness"].abs().max() < 0.8
    opposite = removal.sensitivity_n(model, images, 1, maps, 20, baseline=baseline)
    assert_allclose(opposite["correlation"], -1, atol=1e-12)
    assert table.attrs["forward_passes"] == 2 * 3 * 100


def test_sensitivity_n_of_segments_is_one():
    model, images = linear(4, 6), torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(2)).double()
    maps = (model.weight * images).sum(1)
    segments = np.stack([np.arange(24).reshape(4, 6) // 4, 10 * (np.arange(24).reshape(4, 6) % 8)])
    spread = maps.detach().numpy().copy()  # what counts is the sum over a segment, not where it is
    for labels, values in zip(segments, spread, strict=True):
        for label in np.unique(labels):
            values[labels == label] = values[labels == label].mean()
    table = removal.sensitivity_n(model, images, 0, spread, [2, 5], segments=segments)
    assert_allclose(table["correlation"], 1, atol=1e-12)
    assert removal.sensitivity_n(model, images, 0, spread, 5)["correlation"].max() < 0.99  # by pixels it is not exact


def test_sensitivity_n_by_hand():
    """Score x0 x1 + x2 at (1, 1, 1): removing single pixels changes it by 1, 1, 1, pairs by 1, 2, 2."""

    class Product(nn.Module):
        def forward(self, x):
            x0, x1, x2 = x.flatten(1).T
            return (x0 * x1 + x2)[:, None]

    maps = np.array([[[0.5, 0.5, 1.0]]])
    table = removal.sensitivity_n(Product().eval(), torch.ones(1, 1, 1, 3), 0, maps, [1, 2], subsets=60)
    assert np.isnan(table["correlation"][0])  # the output does not vary
    assert table["correlation"][1] == pytest.approx(1)  # sums 1, 1.5, 1.5 and changes 1, 2, 2
    other = removal.sensitivity_n(Product().eval(), torch.ones(1, 1, 1, 3), 0, 1 - maps, 2, subsets=60)
    assert other["correlation"][0] == pytest.approx(-1)


def test_sensitivity_n_of_a_constant_map_is_nan(net, x):
    table = removal.sensitivity_n(net, x, 0, np.full((3, 10, 12), 0.1), 30, subsets=10)
    assert table["correlation"].isna().all() and table["random"].isna().all() and table["brightness"].notna().all()


def test_sensitivity_n_knows_no_scale_no_neighbours_and_no_chunk(net, x):
    maps = gradient_x_input(net, x.clone(), torch.zeros(3, dtype=torch.long))
    table = removal.sensitivity_n(net, x, 0, maps, [8, 60], subsets=20, chunk=7)
    again = removal.sensitivity_n(net, x, 0, 5 * maps, [8, 60], subsets=20, chunk=1)
    numbers = ["correlation", "random", "brightness"]
    assert_allclose(table[numbers], again[numbers], atol=1e-4)
    alone = removal.sensitivity_n(net, x[2:], 0, maps[2:], 60, subsets=20)
    assert_allclose(alone[numbers], table.query("image == 2 and n == 60")[numbers], atol=1e-4)
    assert not removal.sensitivity_n(net, x, 0, maps, 60, subsets=20, seed=1)[numbers].equals(table[numbers])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n: 0, expected integers from 1 to 119"),
        ({"n": [3, 120]}, "n: .* from 1 to 119"),
        ({"n": []}, "n: "),
        ({"n": 1.5}, "n: 1.5"),
        ({"n": 4, "segments": np.arange(120).reshape(10, 12) // 30}, "n: 4, expected integers from 1 to 3"),
        ({"subsets": 2}, "subsets: 2 is below 3"),
        ({"segments": np.zeros((12, 10), int)}, r"segments: shape \(12, 10\) does not fit"),
        ({"maps": torch.zeros(3, 5, 6)}, "maps: shape"),
        ({"maps": torch.full((3, 10, 12), torch.inf)}, "maps: map 0 holds NaN"),
        ({"baseline": torch.zeros(2, 2)}, "baseline: shape"),
    ],
)
def test_bad_sensitivity(net, x, options, message):
    with pytest.raises(ValueError, match=message):
        removal.sensitivity_n(net, x, **{"target": 0, "maps": torch.zeros(3, 10, 12), "n": 5, **options})


# ------------------------------------------------------------------------------------------------ all of them


CALLS = {
    "cascade": lambda f, m, x: sanity.cascading_randomisation(f, m, x, 0, seed=0),
    "labels": lambda f, m, x: sanity.label_randomisation(f, m, m, x, 0),
    "shift": lambda f, m, x: sanity.input_shift(f, m, x, 0, shift=0.5),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("explain", "message"),
    [
        (
            lambda m, x, t: torch.zeros(3, 1, 10, 12),
            r"explain: expected maps of shape \(3, 10, 12\), got \(3, 1, 10, 12\)",
        ),
        (lambda m, x, t: torch.zeros(1, 10, 12), "explain: expected maps"),
        (lambda m, x, t: None, "explain: expected maps"),
        (lambda m, x, t: torch.full((3, 10, 12), torch.nan), "explain: map 0 holds NaN"),
    ],
)
def test_bad_explanations(net, x, call, explain, message):
    with pytest.raises(ValueError, match=message):
        call(explain, net, x)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_train_mode_is_refused(net, x, call):
    with pytest.raises(ValueError, match="model: it is in train mode"):
        call(gradient, net.train(), x)


def test_perturbed_passes_leave_the_model_alone(net, x):
    before = snapshot(net)
    removal.deletion(net, x, 0, x[:, 0], steps=3)
    removal.insertion(net, x, 0, x[:, 0], steps=3)
    removal.sensitivity_n(net, x, 0, x[:, 0], 4, subsets=4)
    sanity.input_shift(gradient, net, x, 0, 0.5)
    assert_unchanged(net, before)


def test_images_stay_as_they_are(net, x):
    kept = x.clone()

    def spoils(model, x, target):
        x.zero_()
        return torch.rand(3, 10, 12)

    sanity.label_randomisation(spoils, net, net, x, 0)
    removal.deletion(net, x, 0, x[:, 0], steps=3)
    assert_close(x, kept, rtol=0, atol=0)
