import math

import pytest
import torch
from torch.nn import functional as F

from xai_lib.losses import loss


def test_loss_by_hand():
    labels = torch.tensor([1, 0])
    assert float(loss(torch.zeros(2, 1), labels)) == pytest.approx(math.log(2))
    # sigmoid(log 3) = 3/4: right with -log 3/4, wrong with -log 1/4
    found = float(loss(torch.full((2, 1), math.log(3)), labels))
    assert found == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    # softmax(0, log 3) = (1/4, 3/4)
    found = float(loss(torch.tensor([[0, math.log(3)]] * 2), labels))
    assert found == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


@pytest.mark.parametrize("outputs", [1, 2])
def test_focal_loss_by_hand(outputs):
    # p of the true class is 3/4 and 1/4: each term times (1 - p)^2
    logits = torch.full((2, 1), math.log(3)) if outputs == 1 else torch.tensor([[0, math.log(3)]] * 2)
    found = float(loss(logits, torch.tensor([1, 0]), "focal"))
    assert found == pytest.approx((math.log(4 / 3) / 16 + math.log(4) * 9 / 16) / 2)
    sure = loss(40 * logits, torch.tensor([1, 1]), "focal")
    assert float(sure) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("outputs", [1, 2])
def test_focal_loss_has_a_finite_gradient(outputs):
    logits = torch.tensor([[0.0], [90.0], [-90.0]]).repeat(1, outputs) * torch.arange(1.0, outputs + 1)
    logits.requires_grad_()
    loss(logits, torch.tensor([1, 1, 1]), "focal").backward()
    assert torch.isfinite(logits.grad).all()


def test_positive_weight_as_in_torch():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(20, 2, generator=generator), torch.arange(20) % 3 // 2
    for weight in (1.0, 3.0, 0.25):
        want = F.cross_entropy(logits, labels, weight=torch.tensor([1.0, weight]))
        assert float(loss(logits, labels, positive_weight=weight)) == pytest.approx(float(want))
        one = logits[:, 1:] - logits[:, :1]  # the same probabilities from one output
        assert float(loss(one, labels, positive_weight=weight)) == pytest.approx(float(want))
        only = loss(logits[:3], torch.ones(3, dtype=torch.long), positive_weight=weight)
        assert float(only) == pytest.approx(float(F.cross_entropy(logits[:3], torch.ones(3, dtype=torch.long))))
