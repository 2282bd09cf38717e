"""OMIG by hand on linear and quadratic networks, its limits, occlusion; the user's networks stay as they are."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from xai_lib import omig


class Linear(nn.Module):
    """Curves w_k . x of images (N, 1, H, W)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.float32))  # (K, H, W)
        self.eval()

    def forward(self, x):
        return torch.einsum("nchw,khw->nk", x, self.weight)


class Quadratic(nn.Module):
    """One value: sum of a_i x_i^2 / 2, whose gradient is a_i x_i."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.as_tensor(a, dtype=torch.float32))
        self.eval()

    def forward(self, x):
        return (self.a * x**2 / 2).flatten(1).sum(1, keepdim=True)


def small(seed=0, size=12, outputs=3):
    """A network with the layers of the paper's, in eval mode, with statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * (size // 2) ** 2, 8), nn.ReLU(), nn.Linear(8, outputs)),
    )
    with torch.no_grad():
        for _ in range(3):
            net(2 * torch.randn(16, 1, size, size) + 1)
    return net.eval()


def images(n=2, size=12, seed=1):
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def correlation(a, b):
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


# ------------------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("c", [0.01, 1.0, 30.0])
def test_linear_networks_give_their_weights(steps, c):
    weights = torch.tensor([[[1.0, -2.0], [0.0, 4.0]], [[3.0, 0.0], [0.0, 0.0]]])  # (K, 2, 2)
    other = Linear(torch.tensor([[[4.0, 4.0], [0.0, 0.0]], [[0.0, 2.0], [-4.0, 0.0]]]))
    r = torch.tensor([[2.0, 1.0], [-1.0, 1.0]])  # mean of the four
    x = images(3, 2)
    found = omig.explain([Linear(weights), other], x, c=c, steps=steps, z_max=None)
    assert_close(found.change, (-c * r).expand(3, 1, 2, 2))
    assert_close(found.sensitivity, -r.expand(3, 1, 2, 2))
    assert_close(found.clipped_sensitivity, found.sensitivity)
    assert_close(found.start, (x[:, 0] * r).sum((1, 2)))
    assert_close(found.end, found.start - c * 7)  # |r|^2 = 4 + 1 + 1 + 1
    assert found.clipped_share.tolist() == [0, 0, 0]


def test_the_first_gradient_is_not_clipped():
    # mean 2, sd sqrt((4 * 4 + 64) / 5) = 4: the last component lies 2 sd off, the others 0.5 sd
    r = torch.tensor([[0.0, 0.0, 0.0, 0.0, 10.0]])
    found = omig.explain([Linear(r[None])], images(1, 5)[:, :, :1], c=1, steps=4, z_max=1.9)
    assert_close(found.change[0, 0], -r / 4)  # one of four steps
    assert_close(found.sensitivity[0, 0], -r)
    assert_close(found.clipped_sensitivity[0, 0], 0 * r)
    assert found.clipped_share.item() == pytest.approx(1 / 5)
    assert found.end - found.start == pytest.approx(-25)
    for more, moved in ({"clip_first": True}, 0), ({"z_max": 2.01}, 1), ({"z_max": None}, 1):
        found = omig.explain([Linear(r[None])], images(1, 5)[:, :, :1], **{"steps": 4, "z_max": 1.9, **more})
        assert_close(found.change[0, 0], -moved * r)


def test_one_step_has_nothing_to_clip():
    found = omig.explain([Linear([[[0.0, 0.0, 0.0, 0.0, 10.0]]])], torch.ones(1, 1, 1, 5), steps=1, z_max=1.9)
    assert found.change[0, 0, 0, 4] == -10 and found.clipped_share == 0
    found = omig.explain([Linear([[[0.0, 0, 0, 0, 10]]])], torch.ones(1, 1, 1, 5), steps=1, z_max=1.9, clip_first=True)
    assert found.change.abs().sum() == 0 and found.clipped_share.item() == pytest.approx(0.2)


def test_quadratic_by_hand():
    # c = 1, L = 2: x1 = x (1 - a / 2), x2 = x1 (1 - a / 2); a = (1, 2, -1), x = (4, 3, 2): x2 = (1, 0, 4.5)
    x = torch.tensor([4.0, 3.0, 2.0]).view(1, 1, 1, 3)
    found = omig.explain([Quadratic([[1.0, 2.0, -1.0]])], x, c=1, steps=2, z_max=None)
    assert_close(found.change.flatten(), torch.tensor([-3.0, -3.0, 2.5]))
    assert_close(found.sensitivity.flatten(), torch.tensor([-4.0, -6.0, 2.0]))
    assert found.start.item() == pytest.approx(8 + 9 - 2)
    assert found.end.item() == pytest.approx(0.5 + 0 - 4.5**2 / 2)


def test_printed_order_of_the_clipping():
    # x = (1, 1, 1, 1, 2), a = 1, L = 2: the first step takes (1, 1, 1, 1, 2) / 2 -> x1 = (.5, .5, .5, .5, 1), whose
    # last component lies 2 sd off and is dropped: x2 = (.25, .25, .25, .25, 1)
    x = torch.tensor([1.0, 1, 1, 1, 2]).view(1, 1, 1, 5)
    net = Quadratic([[1.0] * 5])
    found = omig.explain([net], x, c=1, steps=2, z_max=1.9)
    assert_close(found.change.flatten(), torch.tensor([-0.75, -0.75, -0.75, -0.75, -1.0]))
    found = omig.explain([net], x, c=1, steps=2, z_max=1.9, clip_first=True)
    # x1 = (.5, .5, .5, .5, 2), again the last one is dropped
    assert_close(found.change.flatten(), torch.tensor([-0.75, -0.75, -0.75, -0.75, 0]))


def test_z_scores_are_of_each_image():
    x = torch.stack([torch.tensor([1.0, 1, 1, 1, 2]), torch.tensor([1e6, 1, 1, 1, 1])]).view(2, 1, 1, 5)
    assert omig.outliers(x, 1.9).flatten(1).int().tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    assert not omig.outliers(x, None).any()
    assert not omig.outliers(torch.full((1, 1, 9, 9), 0.1), 3).any()  # sd 0: nothing lies off


def test_exactly_so_many_gradients(monkeypatch):
    calls = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: calls.append(1) or real(*a))
    omig.explain([small(0), small(1)], images(), steps=5)
    assert len(calls) == 5 * 2  # Algorithm 1 as printed: 6 * 2


# --------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("z_max", [3.0, None])
@pytest.mark.parametrize("c", [0.1, 1.0])
def test_the_midpoint_falls(c, z_max):
    found = omig.explain([small(0), small(1)], images(5), c=c, steps=20, z_max=z_max)
    assert (found.end < found.start).all()
    assert_close(found.end, omig.midpoint([small(0), small(1)], images(5) + found.change))


@pytest.mark.parametrize("steps", [2, 5])
def test_small_c_is_a_mixture_of_sensitivities(steps):
    members, x = [small(0), small(1)], images()
    found = omig.explain(members, x, c=1e-5, steps=steps, z_max=2.0)
    mixture = found.sensitivity / steps + found.clipped_sensitivity * (steps - 1) / steps
    assert_close(found.change / 1e-5, mixture, rtol=1e-4, atol=1e-6)
    assert correlation(found.change, mixture) > 0.999999 > correlation(found.change, found.sensitivity)
    assert found.clipped_share.min() > 0
    assert_close(omig.explain(members, x, c=1e-5, steps=steps, z_max=None).change / 1e-5, found.sensitivity)


def test_steps_converge():
    members, x = [small(0), small(1)], images()
    fine = omig.explain(members, x, steps=400, z_max=None).change
    errors = [(omig.explain(members, x, steps=n, z_max=None).change - fine).norm() for n in (2, 10, 50)]
    assert errors[0] > errors[1] > errors[2]


def test_images_are_independent():
    members, x = [small(0), small(1)], images(4)
    together = omig.explain(members, x, steps=4, z_max=2.0)
    for i in range(4):
        alone = omig.explain(members, x[i : i + 1], steps=4, z_max=2.0)
        assert_close(alone.change[0], together.change[i])
        assert_close(alone.clipped_share[0], together.clipped_share[i])


def test_gradient_is_the_slope():
    members = [small(0).double(), small(1).double()]
    x = images(1).double()
    r, _ = omig.gradient(members, x)
    for row, column in (3, 4), (0, 0):
        moved = x.clone()
        moved[0, 0, row, column] += 1e-6
        slope = (omig.midpoint(members, moved) - omig.midpoint(members, x)) / 1e-6
        assert slope.item() == pytest.approx(r[0, 0, row, column].item(), rel=1e-5, abs=1e-9)


def test_not_square():
    assert omig.explain([Linear(torch.ones(2, 3, 7))], torch.ones(1, 1, 3, 7), steps=2).change.shape == (1, 1, 3, 7)


# ------------------------------------------------------------------------------------- speed: the same result


def test_folded_members_give_the_same():
    members, x = [small(0), small(1)], images(6)
    plain, fast = omig.explain(members, x, steps=5), omig.explain(members, x, steps=5, fast=True)
    folded = omig.fold(members[0])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    kinds = [type(dict(folded.named_modules()).get(n.target)).__name__ for n in folded.graph.nodes]
    assert kinds[1:5] == ["Conv2d", "MaxPool2d", "ReLU", "Conv2d"]
    trained = omig.fold(folded.train())
    assert folded.training and not trained.training
    assert_close(trained(x), members[0](x), rtol=1e-5, atol=1e-6)
    folded.eval()
    assert not any(p.requires_grad for p in folded.parameters()) and isinstance(members[0][1], nn.BatchNorm2d)
    assert_close(folded(x), members[0](x), rtol=1e-5, atol=1e-6)
    assert correlation(plain.change, fast.change) > 0.99999
    assert_close(fast.end, plain.end, rtol=1e-4, atol=1e-6)
    assert_close(omig.explain([folded], x, steps=5).change, omig.explain(members[:1], x, steps=5, fast=True).change)


def test_a_network_without_a_graph_is_not_folded():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small(0)

        def forward(self, x):
            return self.inner(x if float(x.detach().sum()) > 1e9 else x + 0)

    member = Asks().train()
    found = omig.explain([member], images(), steps=3, fast=True)
    assert_close(found.change, omig.explain([small(0)], images(), steps=3).change)
    assert member.training and member.inner[0].weight.is_contiguous()


# ---------------------------------------------------------------------------------------------- occlusion


def test_occlusion_by_hand():
    weights = torch.tensor([[[1.0, -2.0], [0.0, 4.0]], [[3.0, 0.0], [0.0, 0.0]]])  # midpoint weights 2, -1, 0, 2
    x = torch.tensor([[[[5.0, 6.0], [7.0, 8.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    assert_close(omig.occlusion([Linear(weights)], x), torch.tensor([[-10.0, 6, 0, -16], [-2, 1, 0, -2]]))
    assert_close(omig.occlusion([Linear(weights)], x, value=1.0)[0], torch.tensor([-8.0, 5, 0, -14]))
    assert_close(omig.occlusion([Linear(weights)], x, [(1, 1), (0, 0)])[0], torch.tensor([-16.0, -10]))
    mask = np.array([[False, True], [False, True]])
    for pixels in mask, torch.from_numpy(mask):
        assert_close(omig.occlusion([Linear(weights)], x, pixels)[0], torch.tensor([6.0, -16]))
    assert omig.occlusion([Linear(weights)], x, ~mask & mask).shape == (2, 0)
    assert omig.occlusion([Linear(weights)], x, []).shape == (2, 0)


def test_occlusion_in_batches():
    members, x = [small(0), small(1)], images(2)
    whole = omig.occlusion(members, x, batch=200)
    assert whole.shape == (2, 144)
    assert_close(omig.occlusion(members, x, batch=7), whole, rtol=1e-3, atol=1e-6)
    assert omig.occlusion(members, 0 * x, batch=7).abs().max() == 0  # nothing changes: exactly 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"pixels": np.ones((3, 3), bool)}, r"pixels: a mask of \(3, 3\) for images of \(12, 12\)"),
        ({"pixels": [(0, 12)]}, r"pixels: \(0, 12\) lies outside"),
        ({"pixels": [(-1, 0)]}, r"pixels: \(-1, 0\) lies outside"),
        ({"pixels": [1, 2]}, "pixels: .*expected a boolean mask or pairs"),
        ({"pixels": [(0.5, 1.0)]}, "pixels: float64"),
        ({"batch": 0}, "batch: 0"),
        ({"value": float("nan")}, "value: nan"),
    ],
)
def test_occlusion_refuses(more, words):
    with pytest.raises(ValueError, match=words):
        omig.occlusion([small()], images(), **more)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"c": 0}, "c: 0 is not"),
        ({"c": -1.0}, "c: -1.0"),
        ({"c": float("inf")}, "c: inf"),
        ({"steps": 0}, "steps: 0 is not an integer >= 1"),
        ({"steps": 2.5}, "steps: 2.5"),
        ({"steps": True}, "steps: True"),
        ({"z_max": 0.0}, "z_max: 0.0"),
        ({"z_max": float("nan")}, "z_max: nan"),
        ({"x": torch.ones(12, 12)}, r"x: torch.float32 \(12, 12\), expected"),
        ({"x": torch.ones(1, 3, 12, 12)}, "x: "),
        ({"x": torch.ones(1, 1, 12, 12, dtype=torch.int64)}, "x: torch.int64"),
        ({"x": torch.ones(0, 1, 12, 12)}, "x: "),
        ({"x": np.ones((1, 1, 12, 12))}, "x: ndarray"),
        ({"x": torch.stack([torch.ones(1, 12, 12), torch.full((1, 12, 12), torch.nan)])}, "x: image 1 holds NaN"),
        ({"members": []}, "members: the list is empty"),
        ({"members": [small(), small(outputs=4)]}, "members: network 1 gives 4 values, network 0 gives 3"),
        ({"members": [nn.Flatten(0)]}, "members: network 0 gives"),
    ],
)
def test_bad_values(more, words):
    with pytest.raises(ValueError, match=words):
        omig.explain(**{"members": [small()], "x": images(), "steps": 2, **more})


@pytest.mark.parametrize("members", [small(), "abc", [small(), 3], None, nn.Sequential(small())])
def test_members_are_a_list_of_networks(members):
    with pytest.raises(TypeError, match=r"members: .*expected a list of networks"):
        omig.explain(members, images(), steps=2)


def test_a_network_that_gives_no_tensor():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="members: network 0 gives tuple"):
        omig.explain([Two().eval()], images())


@pytest.mark.parametrize("fast", [False, True])
def test_nan_weights_are_named(fast):
    broken = small(1)
    with torch.no_grad():
        broken[0].weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"members: network 1 has NaN or infinite weights in '.*weight'"):
        omig.explain([small(0), broken], images(), fast=fast)


def test_a_list_of_modules_will_do():
    found = omig.explain(nn.ModuleList([small(0)]), images(), steps=2)
    assert_close(found.change, omig.explain((small(0),), images(), steps=2).change)


# --------------------------------------------------------------------------------- the user's networks stay


@pytest.mark.parametrize("fast", [False, True])
def test_networks_stay_as_they_are(fast):
    member, x = small(0), images().requires_grad_()
    member.train()
    member[4].eval()
    member[0].weight.requires_grad_(False)
    seen = []
    member[2].register_forward_hook(lambda *_: seen.append(1))
    before = {n: t.clone() for n, t in member.state_dict().items()}
    flags = [m.training for m in member.modules()], [p.requires_grad for p in member.parameters()]
    found = omig.explain([member], x, steps=3, fast=fast)
    assert_close(found.change, omig.explain([small(0)], images(), steps=3).change)  # no dropout, stored statistics
    assert ([m.training for m in member.modules()], [p.requires_grad for p in member.parameters()]) == flags
    assert all(p.grad is None for p in member.parameters()) and x.grad is None
    assert all(torch.equal(t, before[n]) for n, t in member.state_dict().items())
    assert len(member[2]._forward_hooks) == 1
    assert not found.change.requires_grad and not found.start.requires_grad
