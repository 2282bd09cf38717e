"""Learning rates: by hand, then against torch's own schedulers."""

import math

import pytest
import torch

from xai_lib.schedules import SCHEDULES, learning_rate, reductions


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 1, 5: 1, 9.9: 1}),
        ("cosine", {0: 1, 10 / 3: 0.75, 5: 0.5, 10: 0}),
        ("onecycle", {0: 0.05, 1: 0.525, 2: 1, 6: 0.5, 10: 0}),
        ("plateau", {0: 1, 9.9: 1}),  # no loss is known yet
        ("warm_restarts", {0: 1, 5: 0.5, 9.999999: 0}),
    ],
)
def test_by_hand(schedule, expected):
    for epoch, share in expected.items():
        assert learning_rate(schedule, 0.2, epoch, 10) == pytest.approx(0.2 * share, abs=1e-9)


def test_warm_restarts_by_hand():
    """Cycles of 10, 20, 40 epochs: whatever the length of the training."""
    for epoch, share in {10: 1, 15: (1 + math.cos(math.pi / 4)) / 2, 20: 0.5, 30: 1, 50: 0.5, 70: 1}.items():
        for epochs in (3, 100):
            assert learning_rate("warm_restarts", 0.01, epoch, epochs) == pytest.approx(0.01 * share)


def test_plateau_by_hand():
    flat = [1.0] * 7  # the first is the best, six more are one too many
    assert [reductions(flat[:k]) for k in range(8)] == [0, 0, 0, 0, 0, 0, 0, 1]
    assert reductions([1.0] * 13) == 2 and reductions([1.0] * 12) == 1
    assert reductions([1.0] + 5 * [2.0] + [0.9] + 5 * [2.0]) == 0  # a better one starts the count anew
    assert reductions([1.0] + 6 * [0.99995]) == 1 and reductions([1.0] + 6 * [0.9998]) == 0
    assert learning_rate("plateau", 1e-3, 7, 30, flat) == pytest.approx(1e-4)
    assert learning_rate("plateau", 1e-3, 13, 30, [1.0] * 13) == pytest.approx(1e-5)


def optimizer(rate):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)


@pytest.mark.parametrize("seed", range(4))
def test_plateau_as_in_torch(seed):
    """With torch's patience of 5 and its own factor and threshold, on losses that fall, wander and stand still."""
    generator = torch.Generator().manual_seed(seed)
    losses = (0.7 + 0.3 * torch.rand(40, generator=generator)) * torch.linspace(1, 0.8, 40)
    losses[15:25] = losses[:15].min() * (1 - 0.00009)  # better by less than the threshold
    losses = losses.tolist()
    sgd = optimizer(1e-3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, patience=5)
    rates = []
    for k in range(len(losses)):
        rates.append(sgd.param_groups[0]["lr"])
        assert learning_rate("plateau", 1e-3, k, 40, losses[:k]) == pytest.approx(rates[-1])
        theirs.step(losses[k])
    assert len(set(rates)) > 2


def test_warm_restarts_as_in_torch():
    sgd = optimizer(0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(sgd, T_0=10, T_mult=2)
    for step in range(4 * 75):
        theirs.step(step / 4)  # four batches in an epoch
        assert learning_rate("warm_restarts", 0.01, step / 4, 75) == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-15)


def test_cosine_as_in_torch():
    sgd = optimizer(0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=20)
    for epoch in range(20):
        assert learning_rate("cosine", 0.01, epoch, 20) == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_never_above_the_rate_nor_negative(schedule):
    rates = [learning_rate(schedule, 0.3, k / 7, 25, [1.0] * (k // 7)) for k in range(25 * 7)]
    assert max(rates) == pytest.approx(0.3, rel=0.01) and max(rates) <= 0.3 * (1 + 1e-12) and min(rates) >= 0


def test_unknown_schedule():
    with pytest.raises(ValueError, match="schedule: 'step' is not one of constant, cosine, onecycle, plateau, warm_re"):
        learning_rate("step", 0.1, 0, 10)
