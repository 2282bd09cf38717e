"""Study 3, networks that learn nothing or little: random weights, and a linear head on frozen features.

Usage::

    runs = linear_runs(dataset, images, backbone, runtime(), folds=5, seeds=range(5))
    extras = controls(backbone, train, test, seed=0, runtime=runtime())     # points and logits, for `Run.extras`

What the pointing game gives on these networks did not come from training the backbone on the masses.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from xai_lib import models, training
from xai_lib.config import Runtime
from xai_lib.data import CaseDataset
from xai_lib.data.splits import fold_parts
from xai_lib.studies.ultrasound.cam import explain, measured_offset, relative_points
from xai_lib.studies.ultrasound.runs import Backbone, Run, log_loss


def linear_head(model: models.Classifier, train: training.Stack, runtime: Runtime) -> models.Classifier:
    """Set the head to a logistic regression on the pooled features of `train` (standardised, C = 0.01), in place."""
    with torch.inference_mode():
        pooled = torch.cat([model.feature_maps(x).mean((2, 3)).cpu() for x, _ in train.batches(32, runtime)]).numpy()
    weight, bias = _regression(pooled, train.labels.numpy())
    with torch.no_grad():
        model.head.weight.copy_(torch.as_tensor(weight)[None])
        model.head.bias.fill_(bias)
    return model


def _regression(pooled: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Weights (K,) and bias of a logistic regression on pooled features (N, K), in the features' own units."""
    mean, sd = pooled.mean(0), pooled.std(0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=1000).fit((pooled - mean) / sd, labels)
    weight = fit.coef_[0] / sd
    return weight, float(fit.intercept_[0] - weight @ mean)


def controls(
    backbone: Backbone, train: training.Stack, test: training.Stack, seed: int, runtime: Runtime
) -> dict[str, NDArray[Any]]:
    """Points and logits on `test` of a network with random weights and, for pretrained ones, of a linear head.

    Args:
        backbone: of the network that they stand beside; both controls have its architecture and padding.
        train: the images that the linear head is fitted on.
        test: the images to test.
        seed: of the random weights.
        runtime: device.

    Returns:
        ``random_network`` (N, 2, 2) and ``logits_random_network`` (N,); with weights ``linear_head`` and its logits.
    """
    networks = {"random_network": backbone.build(seed, pretrained=False).to(runtime.device)}
    if backbone.weights:
        plain = Backbone(backbone.name, backbone.weights, backbone.padding, "head").build(seed).to(runtime.device)
        networks["linear_head"] = linear_head(plain.eval(), train, runtime)
    out: dict[str, NDArray[Any]] = {}
    for name, model in networks.items():
        logits, maps = explain(model, test, runtime)
        out |= {name: relative_points(maps), f"logits_{name}": logits}
    return out


def linear_runs(
    dataset: CaseDataset,
    images: training.Stack,
    backbone: Backbone,
    runtime: Runtime,
    folds: int = 5,
    seeds: Iterable[int] = range(5),
) -> list[Run]:
    """Cross-validation with a linear head only: the frozen features of every image are computed once.

    The head is the logistic regression of `linear_head`; nothing is stopped early, so it learns from the training and
    the validation part. Fast enough to compare backbones.
    """
    model = replace(backbone, transfer="head").build(0).to(runtime.device).eval()
    with torch.inference_mode():
        features = torch.cat([model.feature_maps(x).float().cpu() for x, _ in images.batches(32, runtime)])
    pooled, labels = features.mean((2, 3)).numpy(), images.labels.numpy()
    offset = measured_offset(model, images, runtime)
    runs = []
    for seed in seeds:
        for fold, parts in enumerate(fold_parts(dataset, folds, seed)):
            train = np.concatenate([parts["train"], parts["val"]])
            weight, bias = _regression(pooled[train], labels[train])
            maps = torch.einsum("k,nkhw->nhw", torch.from_numpy(weight).float(), features[parts["test"]]).numpy()
            logits = (pooled[parts["test"]] @ weight + bias).astype(np.float32)
            gap = np.abs(logits - maps.mean((1, 2)) - bias) / np.maximum(1, np.abs(logits))
            loss = np.array([log_loss(labels[parts["test"]], logits)])
            nothing = np.array([np.nan])
            runs.append(Run(seed, fold, parts["test"], logits[None], maps[None], nothing, loss, offset, gap.max()))
    return runs
