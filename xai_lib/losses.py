"""Losses of the classifiers, for one output (sigmoid) and for several (softmax).

Usage::

    loss(logits, labels)                                        # cross-entropy
    loss(logits, labels, "focal", positive_weight=3.0)

References: Lin et al. 2017, "Focal loss for dense object detection", equation 4 with an exponent of 2; Sam-Millan et
al. 2023, section 3.2.3 (focal loss, weight of the positive class).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("cross_entropy", "focal")


def loss(logits: Tensor, labels: Tensor, kind: str = "cross_entropy", positive_weight: float = 1.0) -> Tensor:
    """Mean loss of logits (N, outputs): of the sigmoid for one output, of the softmax for several.

    Args:
        logits: (N, outputs).
        labels: (N,), int64.
        kind: "cross_entropy", or "focal": each term times (1 - p)^2, p the probability of the true class (Lin 2017).
        positive_weight: weight of the images of label 1.
    """
    if logits.shape[1] == 1:
        terms = F.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float(), reduction="none")
    else:
        terms = F.cross_entropy(logits.float(), labels, reduction="none")
    terms = terms * (1 - torch.exp(-terms)) ** 2 if kind == "focal" else terms
    weights = torch.where(labels == 1, positive_weight, 1.0)
    return (weights * terms).mean() / weights.mean()
