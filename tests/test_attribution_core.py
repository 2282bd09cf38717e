from itertools import pairwise

import pytest
import torch
from torch import nn

from xai_lib.attribution.core import (
    Network,
    Refused,
    as_baseline,
    chunked,
    completeness_gap,
    out_of_memory,
    pick,
    require_complete,
    shadow,
)


def small(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2, outputs),
    ).eval()  # fmt: skip


class Counting(nn.Module):
    """Linear in the image; remembers batch sizes and fails like a full GPU above `limit`."""

    def __init__(self, limit=10**9, error=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.batches, self.limit = [], limit
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, x):
        self.batches.append(len(x))
        if len(x) > self.limit:
            raise self.error
        return (x * self.weight).sum((1, 2, 3))[:, None]


def test_a_shadow_computes_the_same_and_shares_memory_but_no_parameter():
    model = small()
    copy = shadow(model)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(copy(x), model(x))
    for (name, own), (other_name, other) in zip(model.named_parameters(), copy.named_parameters(), strict=False):
        assert name == other_name and own is not other and own.data_ptr() == other.data_ptr()
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in model.parameters())
    copy[0].forward = lambda x: x * 0
    assert torch.equal(model(x), small()(x))


def test_a_shadow_keeps_shared_modules_and_parameters_shared():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu).eval()
    model[2].weight = model[0].weight
    copy = shadow(model)
    assert copy[1] is copy[3] and copy[2].weight is copy[0].weight


def test_half_precision_weights_are_computed_in_float32():
    model = small().bfloat16()
    network = Network(model)
    x, _ = network.inputs(torch.rand(1, 1, 8, 8), 0)
    assert network(x).dtype == torch.float32
    assert next(model.parameters()).dtype == torch.bfloat16


def test_a_double_model_stays_double():
    network = Network(small().double())
    x, target = network.inputs(torch.rand(1, 1, 8, 8), 1)
    assert network.scores(x, target).dtype == torch.float64


def test_passes_are_counted_in_images():
    network = Network(small())
    x, target = network.inputs(torch.rand(3, 1, 8, 8), 1)
    scores, gradient = network.gradient(x, target)
    network.scores(x, target)
    assert (network.forward_passes, network.backward_passes) == (6, 3)
    assert scores.shape == (3,) and gradient.shape == x.shape and not scores.requires_grad


def test_the_gradient_of_a_linear_model_is_its_weight():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    network = Network(model)
    x, target = network.inputs(torch.rand(2, 1, 2, 2), [0, 1])
    _, gradient = network.gradient(x, target)
    torch.testing.assert_close(gradient.flatten(1), model[1].weight.detach())
    assert model[1].weight.grad is None


def test_a_first_layer_may_work_in_place():
    network = Network(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 1)).eval())
    x, target = network.inputs(torch.tensor([[[[-1.0, 2.0], [3.0, -4.0]]]]), 0)
    _, gradient = network.gradient(x, target)
    assert (gradient.flatten() != 0).tolist() == [False, True, True, False]
    assert x.min() == -4


@pytest.mark.parametrize(
    ("x", "target", "kind", "says"),
    [
        (torch.rand(1, 8, 8), 0, ValueError, r"x: .*\(N, C, H, W\), got \(1, 8, 8\)"),
        (torch.rand(0, 1, 8, 8), 0, ValueError, "x: expected at least one image"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 0, TypeError, "x: expected a floating-point tensor, got torch.ui"),
        ("image", 0, TypeError, "x: expected a floating-point tensor, got str"),
        (torch.full((1, 1, 8, 8), torch.nan), 0, ValueError, "x: it holds NaN"),
        (torch.rand(2, 1, 8, 8), [0, 1, 2], ValueError, r"target: expected one class or 2 classes, got shape \(3,\)"),
        (torch.rand(2, 1, 8, 8), 1.5, TypeError, "target: expected integers"),
        (torch.rand(2, 1, 8, 8), True, TypeError, "target: expected integers"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_used(x, target, kind, says):
    with pytest.raises(kind, match=says):
        Network(small()).inputs(x, target)


@pytest.mark.parametrize("target", [3, -1])
def test_a_target_out_of_range(target):
    network = Network(small())
    x, wanted = network.inputs(torch.rand(1, 1, 8, 8), target)
    with pytest.raises(ValueError, match=f"target: {target} is out of range, the model has outputs 0 to 2"):
        network.scores(x, wanted)


def test_a_single_output_per_image_may_have_no_column():
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0)).eval())
    x, _ = network.inputs(torch.rand(3, 1, 2, 2), 0)
    assert network(x).shape == (3, 1)


def test_train_mode_is_refused_and_the_module_named():
    model = small()
    model[1].train()
    with pytest.raises(ValueError, match=r"model: it is in train mode \(1\); call model.eval"):
        Network(model)


def test_an_unknown_precision():
    with pytest.raises(ValueError, match="precision: 'fp8' is unknown, expected one of float32, bf16"):
        Network(small(), "fp8")


def test_weights_that_are_not_finite_are_named():
    model = small()
    model[5].bias.data[1] = torch.nan
    network = Network(model)
    x, _ = network.inputs(torch.rand(1, 1, 8, 8), 0)
    with pytest.raises(ValueError, match=r"model: its output is not finite; '5.bias' holds NaN"):
        network(x)


def test_a_wrong_number_of_channels_names_the_image():
    network = Network(small())
    with pytest.raises(ValueError, match=r"x: the model does not take images of shape \(1, 3, 8, 8\)"):
        network(torch.rand(1, 3, 8, 8))


def test_an_output_of_another_shape():
    network = Network(nn.Conv2d(1, 1, 3).eval())
    with pytest.raises(ValueError, match=r"model: expected outputs of shape \(1, K\), got \(1, 1, 6, 6\)"):
        network(torch.rand(1, 1, 8, 8))


def test_an_output_without_a_gradient_is_refused():
    class Rounded(nn.Module):
        def forward(self, x):
            return x.detach().sum((1, 2, 3))[:, None]

    network = Network(Rounded().eval())
    x, target = network.inputs(torch.rand(1, 1, 2, 2), 0)
    with pytest.raises(Refused, match="does not depend on the image"):
        network.gradient(x, target)


def test_pick():
    assert pick(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0])).tolist() == [2.0, 3.0]


def test_baselines():
    x = torch.rand(2, 1, 4, 4)
    assert as_baseline(None, x).eq(0).all() and as_baseline(None, x).shape == (1, 1, 4, 4)
    assert as_baseline(0.5, x).eq(0.5).all()
    assert as_baseline(torch.ones(1, 4, 4), x).shape == (1, 1, 4, 4)
    assert as_baseline(torch.ones(2, 1, 4, 4), x).shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"baseline: shape \(1, 5, 4\) does not fit, expected a number, \(1, 4, 4\)"):
        as_baseline(torch.ones(1, 5, 4), x)
    with pytest.raises(ValueError, match="baseline: it holds NaN"):
        as_baseline(torch.nan, x)


def test_the_gap_by_hand():
    gap = completeness_gap(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0]))
    assert gap == pytest.approx(0.1)
    small_difference = completeness_gap(torch.tensor([0.0]), torch.tensor([0.001]), torch.tensor([10.0]))
    assert small_difference == pytest.approx(0.1)  # 0.001 relative to the floor 1e-3 * 10


def test_an_incomplete_method_is_refused():
    assert require_complete("deeplift", 1e-4) == 1e-4
    with pytest.raises(Refused, match=r"deeplift: .* by 0.3 of it"):
        require_complete("deeplift", 0.3)
    with pytest.raises(Refused):
        require_complete("deeplift", float("nan"))


@pytest.mark.parametrize("chunk", [1, 3, 100, None])
def test_chunks_cover_everything_once_in_order(chunk):
    network = Network(Counting().eval(), progress=False)
    seen = [(a, b, v.item()) for a, b, v in chunked(network, 50, lambda a, b: torch.tensor(b - a), chunk)]
    assert seen[0][0] == 0 and seen[-1][1] == 50
    assert all(a[1] == b[0] for a, b in pairwise(seen))
    assert all(v == b - a for a, b, v in seen)
    assert max(b - a for a, b, _ in seen) <= (chunk or 8)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes"), MemoryError()],
)
def test_memory_that_runs_out_means_smaller_chunks_and_a_note(error):
    model = Counting(limit=3, error=error).eval()
    network = Network(model, progress=False)
    x, target = network.inputs(torch.rand(1, 1, 2, 2), 0)
    run = lambda a, b: network.scores(x.expand(b - a, -1, -1, -1), target.expand(b - a))  # noqa: E731
    parts = [v for *_, v in chunked(network, 20, run, chunk=16)]
    assert len(torch.cat(parts)) == 20
    assert max(len(p) for p in parts) == 2
    assert any("memory was short: 2 instead of 4" in n for n in network.notes)


def test_memory_that_never_suffices_is_an_error():
    network = Network(Counting(limit=0).eval(), progress=False)
    with pytest.raises(torch.OutOfMemoryError):
        list(chunked(network, 4, lambda a, b: network(torch.rand(b - a, 1, 2, 2)), chunk=4))


def test_other_errors_pass_through():
    assert not out_of_memory(RuntimeError("shape mismatch"))
    network = Network(Counting(limit=0, error=RuntimeError("shape mismatch")).eval(), progress=False)
    with pytest.raises(ValueError, match="shape mismatch"):
        list(chunked(network, 4, lambda a, b: network(torch.rand(b - a, 1, 2, 2)), chunk=4))


def test_a_chunk_below_one():
    with pytest.raises(ValueError, match="chunk: 0 is below 1"):
        list(chunked(Network(small()), 4, lambda a, b: torch.zeros(1), chunk=0))


def test_bf16_runs_by_name_and_notes_its_deviation():
    network = Network(small(), "bf16", progress=False)
    x, target = network.inputs(torch.rand(4, 1, 8, 8), 0)
    list(chunked(network, 4, lambda a, b: network.scores(x[a:b], target[a:b]), chunk=2))
    (note,) = network.notes
    assert note.startswith("bf16: ") and float(note.split()[1]) > 0
    assert network.forward_passes == 4  # the comparison does not count
