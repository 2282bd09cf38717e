"""RISE, meaningful and extremal perturbations: by hand, on models that read one square, and bad input."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from xai_lib.perturbation_maps import (
    Extremal,
    Meaningful,
    Rise,
    extremal_perturbation,
    meaningful_perturbation,
    rise,
)
from xai_lib.perturbation_masks import blur

SIDE = 32
READ = (slice(8, 12), slice(16, 20))  # the square that `Reads` reads
OTHER = (slice(20, 24), slice(4, 8))  # as bright, and not read
SHORT = Extremal(steps=150, levels=4, step=14, sigma=21, flip=False)  # cells of 2 pixels


class Linear(nn.Module):
    """logit = sum(weights * x) + bias; keeps what it saw."""

    def __init__(self, weights: Tensor, bias: float = 0.0, column: bool = True) -> None:
        super().__init__()
        self.weights, self.bias, self.column = nn.Parameter(weights), bias, column
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits = (x[:, 0] * self.weights).sum((1, 2)) + self.bias
        return logits[:, None] if self.column else logits


class Reads(nn.Module):
    """logit = gain * (mean of one square - 0.5), after a layer that would change in train mode."""

    def __init__(self, gain: float = 15.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.norm = nn.BatchNorm2d(1, eps=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (self.norm(x)[:, :, READ[0], READ[1]].mean((2, 3)) - 0.5)


def image(level: float = 0.9) -> Tensor:
    x = torch.full((1, 1, SIDE, SIDE), 0.1)
    x[0, 0][READ] = level
    x[0, 0][OTHER] = level
    return x


def model() -> Reads:
    return Reads().eval()


# ---------------------------------------------------------------- by hand


def test_masks_of_one_cell_are_all_or_nothing() -> None:
    """s = 1: a mask is 1 or 0 everywhere, so the map is the share of 1s times sigmoid(logit) over p, everywhere."""
    net = Linear(torch.full((4, 6), 0.5), bias=-3.0).eval()
    found = rise(net, torch.full((1, 1, 4, 6), 0.5), Rise(masks=50, cells=1, p=0.3, chunk=50))
    share = torch.cat(net.seen).flatten(1).amax(1).gt(0).float().mean()
    torch.testing.assert_close(found, torch.full((1, 4, 6), float(share * torch.sigmoid(torch.tensor(3.0)) / 0.3)))


def test_rise_is_the_sum_of_scores_times_masks() -> None:
    """A white image shows the masks themselves to the model."""
    net = Linear(torch.linspace(-1, 1, 30).reshape(5, 6), bias=0.2, column=False).eval()
    found = rise(net, torch.ones(1, 1, 5, 6), Rise(masks=40, cells=3, chunk=7))
    masks = torch.cat(net.seen)[:, 0]
    assert masks.shape == (40, 5, 6) and masks.min() >= 0 and masks.max() <= 1
    scores = [1 / (1 + math.exp(-float((m * net.weights.detach()).sum()) - 0.2)) for m in masks]
    expected = sum(s * m for s, m in zip(scores, masks, strict=True)) / (40 * 0.5)
    torch.testing.assert_close(found[0], expected.detach())


def test_the_published_parameters() -> None:
    assert (Rise().masks, Rise().cells, Rise().p) == (4000, 7, 0.5)
    fong = Meaningful()
    assert (fong.steps, fong.lr, fong.l1, fong.tv, fong.beta) == (300, 0.1, 1e-4, 1e-2, 3)
    assert (fong.cells, fong.blur, fong.mask_blur, fong.jitter) == (28, 10, 5, 4)
    late = Extremal()
    assert (late.steps, late.lr, late.momentum, late.weight, late.growth) == (800, 0.01, 0.9, 300, 1.0035)
    assert (late.step, late.sigma, late.temperature, late.blur, late.levels) == (7, 21, 0.05, 20, 8)


# ---------------------------------------------------------------- models that read one square


def test_rise_is_highest_where_the_model_reads() -> None:
    found = rise(model(), image(), Rise(masks=1000, chunk=250))[0]
    assert found[READ].mean() > 1.15 * found[OTHER].mean()
    at = int(found.argmax())
    assert abs(at // SIDE - 9.5) <= 4 and abs(at % SIDE - 17.5) <= 4


def test_meaningful_perturbation_deletes_what_is_read_and_nothing_else_that_is_bright() -> None:
    found = meaningful_perturbation(model(), image())[0]
    assert found[READ].mean() > 0.9 and found[OTHER].mean() < 0.05 and 0 <= found.min() and found.max() <= 1
    assert found.mean() < 0.25
    blurred = torch.lerp(image(), blur(image(), 10 * SIDE / 224), found)
    assert model()(blurred).sigmoid() < 0.7 * model()(image()).sigmoid()


@pytest.mark.parametrize("variant", ["preserve", "delete"])
def test_an_extremal_mask_lies_on_what_is_read_and_has_its_area(variant: str) -> None:
    found = extremal_perturbation(Reads(30.0).eval(), image(), 0.06, replace(SHORT, variant=variant))[0]
    assert found[READ].mean() > 0.8 and found[OTHER].mean() < 0.2
    assert float((found > 0.5).float().mean()) == pytest.approx(0.06, abs=0.02)
    assert found.min() >= 0 and found.max() <= 1


# ---------------------------------------------------------------- properties

METHODS: list[Callable[[nn.Module, Tensor], Tensor]] = [
    lambda m, x: rise(m, x, Rise(masks=60, chunk=25)),
    lambda m, x: meaningful_perturbation(m, x, Meaningful(steps=25, chunk=2)),
    lambda m, x: extremal_perturbation(m, x, 0.1, replace(SHORT, steps=25, chunk=2)),
]


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_images_one_by_one_and_the_model_is_as_before(method: Callable[..., Tensor]) -> None:
    net = model().double()
    net.gain.requires_grad_(False)
    net.norm.weight.grad = torch.tensor([7.0], dtype=torch.float64)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.cat([image(), image(0.7), image(0.8)]).double()[..., :28]  # three in parts of two; not square
    before, random = x.clone(), torch.get_rng_state()
    found = method(net, x)
    assert found.shape == (3, 32, 28) and found.dtype == torch.float64 and not found.requires_grad
    for k in range(3):
        torch.testing.assert_close(found[k], method(net, x[k : k + 1])[0], rtol=0, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(method(net, x), found, rtol=0, atol=0)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), random)
    assert not net.training and not net.gain.requires_grad and net.norm.weight.requires_grad
    assert net.gain.grad is None and net.norm.weight.grad.tolist() == [7.0]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_the_seed_and_the_chunk() -> None:
    net, x, settings = model(), image(), Rise(masks=60, chunk=60)
    found = rise(net, x, settings, seed=3)
    torch.testing.assert_close(rise(net, x, replace(settings, chunk=7), seed=3), found)
    assert not torch.allclose(rise(net, x, settings, seed=4), found)
    fong = Meaningful(steps=10, jitter=30)
    assert not torch.equal(meaningful_perturbation(net, x, fong, 1), meaningful_perturbation(net, x, fong, 2))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("method", METHODS)
def test_bad_images_and_models(method: Callable[..., Tensor]) -> None:
    x = image()
    for wrong, name in (
        (x[0], r"x: expected"),
        (x.expand(1, 3, SIDE, SIDE), "x: expected grey"),
        (x[:0], "x: expected at least one"),
        (torch.where(x > 0.5, float("nan"), x), "x: it holds NaN"),
    ):
        with pytest.raises(ValueError, match=name):
            method(model(), wrong)
    with pytest.raises(ValueError, match="model: its output is not finite"):
        method(Linear(torch.full((SIDE, SIDE), float("nan"))).eval(), x)
    with pytest.raises(ValueError, match="model: expected one logit"):
        method(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).eval(), x)
    with pytest.raises(ValueError, match="model: it is in train mode"):
        method(Reads().train(), x)


class Rounds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() > 0.5).float().mean((2, 3))


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_model_without_gradient_is_refused(method: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="in a way that can be differentiated"):
        method(Rounds().eval(), image())


@pytest.mark.parametrize("area", [0.0, 1.0, -0.1, float("nan")])
def test_an_area_outside_0_to_1(area: float) -> None:
    with pytest.raises(ValueError, match="area: "):
        extremal_perturbation(model(), image(), area)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (Rise, {"masks": 0}),
        (Rise, {"cells": 0}),
        (Rise, {"chunk": 0}),
        (Rise, {"p": 1.0}),
        (Meaningful, {"steps": 0}),
        (Meaningful, {"chunk": 0}),
        (Meaningful, {"blur": 0.0}),
        (Meaningful, {"suppression": 1.0}),
        (Extremal, {"steps": 0}),
        (Extremal, {"chunk": -1}),
        (Extremal, {"levels": 1}),
        (Extremal, {"variant": "dual"}),
    ],
)
def test_settings_out_of_range(settings: type, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: "):
        settings(**wrong)
