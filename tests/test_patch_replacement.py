"""Patch replacement: eq. 6 by hand, against a plain loop over networks, and the verdict held against masks."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from xai_lib import models
from xai_lib.glcm import lesion_background
from xai_lib.patch_replacement import (
    PatchReplacement,
    agreement,
    cells,
    image_scores,
    patch_replacement,
    patch_replacements,
    pixels_alone,
)
from xai_lib.statistics import auc


def disc(size: int = 64, radius: float = 18, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy bright disc, and its mask."""
    mask = np.hypot(*(np.indices((size, size)) - (size - 1) / 2)) < radius
    return np.where(mask, 0.7, 0.25) + 0.1 * np.random.default_rng(seed).random((size, size)), mask


def small_network(stride: int = 16, channels: int = 3, seed: int = 0) -> nn.Module:
    """Overlapping receptive fields, one cell for every `stride` pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, channels, 5, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 5, stride=stride // 4, padding=2),
        )
    return net.double().eval()


def plain(model: nn.Module, roi: np.ndarray, contents: dict[str, np.ndarray], patch: int) -> np.ndarray:
    """Eq. 6 as it is written: one image after the other."""

    def activations(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            x = torch.as_tensor(image[None, None]).to(next(model.parameters()).dtype)
            return (model.feature_maps(x) if isinstance(model, models.Classifier) else model(x))[0].double().numpy()

    before = activations(roi)
    found = np.zeros((2, *before.shape[1:]))
    for k, content in enumerate((contents["lesion"], contents["background"])):
        for p, q in np.ndindex(before.shape[1:]):
            replaced = roi.copy()
            at = (slice(p * patch, (p + 1) * patch), slice(q * patch, (q + 1) * patch))
            replaced[at] = content[at]
            found[k, p, q] = np.sqrt(((activations(replaced) - before) ** 2).sum(0)).mean()
    return found


def verdict(lesion: list, background: list, activation: list | None = None, patch: int = 2) -> PatchReplacement:
    distances = np.array([lesion, background], float)
    ones = np.ones(distances.shape[1:])
    return PatchReplacement(distances, ones if activation is None else np.array(activation, float), ones, patch)


# ---------------------------------------------------------------- by hand


def test_the_pixels_alone_by_hand() -> None:
    """Four patches of 2 x 2 pixels; a change of a in a patch is sqrt(4 a^2), over four cells a / 2."""
    roi = np.array([[0.2, 0.2, 0.6, 0.6], [0.2, 0.2, 0.6, 0.6], [0.0, 0.0, 0.9, 0.9], [0.0, 0.0, 0.9, 0.9]])
    contents = {"background": np.full((4, 4), 0.1), "lesion": np.full((4, 4), 0.5)}
    found = patch_replacement(pixels_alone(2), roi, contents, patch=2)
    assert_allclose(found.distances, [[[0.15, 0.05], [0.25, 0.2]], [[0.05, 0.25], [0.05, 0.4]]], atol=1e-6)
    assert_array_equal(found.labels, [[False, True], [False, True]])
    assert_allclose(found.score, [[-0.5, 2 / 3], [-2 / 3, 1 / 3]], atol=1e-6)
    assert_allclose(found.activation, roi[::2, ::2] ** 2, atol=1e-6)
    assert_allclose(found.brightness, roi[::2, ::2])


def test_all_activations_count_not_only_the_cell_s_own() -> None:
    """A kernel of two patches with two channels, (1, 1) and (3, 4): the right patch moves both cells of its row."""
    net = nn.Conv2d(1, 2, (1, 2), padding=(0, 1), bias=False).eval()
    net.weight.data = torch.tensor([[[[1.0, 3.0]]], [[[1.0, 4.0]]]])  # cell q sees the pixels q - 1 and q
    cut = nn.Sequential(net, _First(2)).eval()  # without the padding's cell on the right
    contents = {"lesion": np.array([[0.1, 0.0]]), "background": np.array([[1.0, 1.0]])}
    found = patch_replacement(cut, np.zeros((1, 2)), contents, patch=1)
    own, next_one = np.hypot(3, 4), np.hypot(1, 1)
    assert_allclose(found.distances[1], [[(own + next_one) / 2, own / 2]], rtol=1e-6)
    assert_allclose(found.distances[0], [[(own + next_one) / 20, 0]], atol=1e-7)
    assert_array_equal(found.activation, [[0, 0]])


class _First(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.count]


# ---------------------------------------------------------------- against a plain loop


@pytest.mark.parametrize("local", [True, False, "auto"])
def test_a_network_by_a_plain_loop(local: bool | str) -> None:
    roi, _ = disc()
    contents, net = lesion_background(roi), small_network()
    found = patch_replacement(net, roi, contents, 16, local, chunk=6)
    assert_allclose(found.distances, plain(net, roi, contents, 16), rtol=1e-9)
    with torch.no_grad():
        expected = net(torch.as_tensor(roi[None, None]))[0].square().mean(0)
    assert_allclose(found.activation, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121"])
def test_a_classifier_by_a_plain_loop(name: str) -> None:
    roi, _ = disc()
    model = models.build(name).double()
    weights, contents = copy.deepcopy(model.state_dict()), lesion_background(roi)
    found = patch_replacement(model, torch.as_tensor(roi, dtype=torch.float32)[None], contents)
    exact = np.asarray(roi, np.float32).astype(float)
    assert found.labels.shape == found.activation.shape == (2, 2)
    assert_allclose(found.distances, plain(model, exact, contents, 32), rtol=1e-6)
    assert not model.training and all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


# ---------------------------------------------------------------- properties


def test_several_rois_are_those_taken_one_by_one() -> None:
    net = small_network()
    pairs = [(roi, lesion_background(roi)) for roi, _ in (disc(seed=1), disc(seed=2), disc(48, seed=3))]
    for found, (roi, contents) in zip(patch_replacements(net, pairs, 16), pairs, strict=True):
        single = patch_replacement(net, roi, contents, 16)
        assert_allclose(found.distances, single.distances, rtol=1e-12)
        assert_array_equal(found.activation, single.activation)


def test_contents_that_change_places_change_the_verdict() -> None:
    roi, _ = disc()
    contents, net = lesion_background(roi), small_network()
    swapped = {"lesion": contents["background"], "background": contents["lesion"]}
    found, turned = (patch_replacement(net, roi, c, 16) for c in (contents, swapped))
    assert_array_equal(found.labels, ~turned.labels)
    assert_allclose(found.score, -turned.score)


def test_the_roi_itself_changes_nothing() -> None:
    roi, _ = disc()
    found = patch_replacement(small_network(), roi, {"lesion": roi, "background": roi}, 16)
    assert_allclose(found.distances, 0, atol=1e-12)
    exact = verdict([[0, 1]], [[0, 1]])
    assert_array_equal(exact.labels, [[False, False]])  # a tie is Background
    assert_array_equal(exact.score, [[0, 0]])


def test_another_layer_has_smaller_patches() -> None:
    roi, _ = disc(32)
    model = models.build("resnet10")
    first = nn.Sequential(model.normalize, *list(model.features)[:-2]).eval()  # without layers 3 and 4: stride 8
    found = patch_replacement(first, roi, lesion_background(roi), patch=8)
    assert found.labels.shape == (4, 4)


def test_an_untrained_network_and_the_pixels_alone_find_a_bright_disc() -> None:
    """The reason for the controls: no knowledge is needed where *Lesion* is a blurred picture of the mass."""
    roi, mask = disc(96, 28)
    contents = lesion_background(roi)
    for net in (small_network(channels=16), pixels_alone(16)):
        figures = image_scores(cells(patch_replacement(net, roi, contents, 16), mask))
        assert figures["auc"] > 0.9 and figures["auc_labels"] > 0.7
        assert figures["auc_centre"] > 0.9 and figures["auc_brightness"] > 0.9


# ---------------------------------------------------------------- against a mask


def test_cells_by_hand() -> None:
    mask = np.zeros((4, 6), int)
    mask[:2, 2:4] = 1  # cell (0, 1)
    mask[2:, 2] = 1  # half of cell (1, 1)
    mask[3, 5] = 1  # a quarter of cell (1, 2)
    found = verdict([[3, 1, 3], [3, 1, 1]], [[1, 3, 1], [1, 3, 3]], [[1, 5, 1], [1, 5, 2]])
    frame = cells(found, mask)
    assert frame["row"].tolist() == [0, 0, 0, 1, 1, 1] and frame["col"].tolist() == [0, 1, 2, 0, 1, 2]
    assert frame["share"].tolist() == [0, 1, 0, 0, 0.5, 0.25]
    assert frame["inside"].tolist() == [0, 1, 0, 0, 1, 0]
    assert frame["lesion"].tolist() == [0, 1, 0, 0, 1, 1]
    assert frame["score"].tolist() == [-0.5, 0.5, -0.5, -0.5, 0.5, 0.5]
    assert_allclose(frame["centre"], -np.sqrt([1.25, 0.25, 1.25, 1.25, 0.25, 1.25]))
    assert cells(found, torch.as_tensor(mask) > 0, inside=0.25)["inside"].tolist() == [0, 1, 0, 0, 1, 1]


def test_image_scores_by_hand() -> None:
    frame = pd.DataFrame(
        {
            "inside": [1, 1, 0, 0, 0],
            "score": [0.9, 0.2, 0.3, -0.1, -0.5],
            "lesion": [1, 1, 1, 0, 0],
            "activation": [4.0, 3.0, 2.0, 1.0, 0.0],
            "brightness": [0.5, 0.5, 0.5, 0.5, 0.5],
            "centre": [-1.0, -3.0, -2.0, -3.0, -3.0],
        }
    )
    figures = image_scores(frame)
    assert figures["auc"] == pytest.approx(5 / 6)
    assert figures["auc_labels"] == pytest.approx((1 + 2 / 3) / 2)  # sensitivity 1, specificity 2/3
    assert figures["auc_brightness"] == 0.5
    assert figures["auc_centre"] == pytest.approx(4 / 6)  # 3 pairs won, 2 tied, 1 lost
    assert figures["activation_gap"] == pytest.approx((3 - 0.5) / 2)


@pytest.mark.parametrize(("column", "missing"), [("inside", "auc"), ("lesion", "activation_gap")])
@pytest.mark.parametrize("value", [0, 1])
def test_one_kind_of_cell_gives_no_figure(column: str, missing: str, value: int) -> None:
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = True
    frame = cells(verdict([[1, 2], [2, 2]], [[2, 1], [1, 1]]), mask)
    assert not np.isnan(list(image_scores(frame).values())).any()
    assert np.isnan(image_scores(frame.assign(**{column: value}))[missing])


def test_pooled_cells_go_to_the_usual_statistics() -> None:
    rois = [disc(96, radius, seed) for seed, radius in enumerate((20, 30))]
    contents = [(roi, lesion_background(roi)) for roi, _ in rois]
    found = patch_replacements(pixels_alone(16), contents, 16)
    frame = pd.concat([cells(f, mask) for f, (_, mask) in zip(found, rois, strict=True)])
    assert len(frame) == 72 and auc(frame["inside"], frame["score"]) > 0.9


def test_a_mass_on_the_border_is_scored() -> None:
    mask = np.zeros((4, 4), bool)
    mask[2:] = True
    assert image_scores(cells(verdict([[2, 2], [1, 1]], [[1, 1], [2, 2]]), mask))["auc"] == 1


def test_agreement_is_a_rank_correlation() -> None:
    one = verdict([[1, 2, 3]], [[1, 1, 1]])
    assert agreement(one, one) == pytest.approx(1)
    assert agreement(one, verdict([[3, 2, 1]], [[1, 1, 1]])) == pytest.approx(-1)
    with pytest.raises(ValueError, match=r"other: its score has shape \(1, 2\), expected \(1, 3\)"):
        agreement(one, verdict([[1, 2]], [[1, 1]]))


# ---------------------------------------------------------------- bad input

ROI = np.full((32, 32), 0.5)
CONTENTS = {"lesion": ROI, "background": ROI}


@pytest.mark.parametrize(
    ("roi", "contents", "patch", "message"),
    [
        (ROI, {"lesion": ROI}, 16, "contents: they are named lesion, expected lesion and background"),
        (
            ROI,
            {"lesion": ROI, "background": ROI[:16]},
            16,
            r"contents\['background'\]: it has shape \(16, 32\)",
        ),
        (ROI, {"lesion": ROI * 3, "background": ROI}, 16, r"contents\['lesion'\]: values from 1.5"),
        (ROI[:, :24], {k: v[:, :24] for k, v in CONTENTS.items()}, 16, "roi: 32 x 24 pixels, expected multiples"),
        (ROI, CONTENTS, 0, "multiples of the patch's 0"),
        (ROI, CONTENTS, 8, "patch: 8 pixels give 4 x 4 patches, but the model's activations have shape"),
        (ROI * np.nan, CONTENTS, 16, "roi: it holds NaN"),
    ],
)
def test_bad_arguments_are_named(roi: np.ndarray, contents: dict, patch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patch_replacement(small_network(), roi, contents, patch)


def test_a_network_in_train_mode_is_refused() -> None:
    model = models.build("mobilenet_v2").train()
    with pytest.raises(ValueError, match="model: it is in train mode"):
        patch_replacement(model, ROI, CONTENTS)
    assert model.training


def test_activations_that_are_not_finite_are_refused() -> None:
    net = small_network()
    net[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="activations of the ROI are not finite"):
        patch_replacement(net, ROI, CONTENTS, 16)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((4, 4)), "it is empty"),
        (np.ones((4, 4)), "it is full"),
        (np.eye(4) * 0.5, "expected only 0 and 1"),
        (np.eye(4) * 255, "expected only 0 and 1"),
        (np.eye(6), r"shape \(6, 6\), expected the ROI's \(4, 4\)"),
    ],
)
def test_a_bad_mask_is_refused(mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match="mask: .*" + message):
        cells(verdict([[1, 2], [2, 2]], [[2, 1], [1, 1]]), mask)


@pytest.mark.parametrize("inside", [0, 1.1])
def test_a_share_out_of_range_is_refused(inside: float) -> None:
    with pytest.raises(ValueError, match="inside: "):
        cells(verdict([[1, 2], [2, 2]], [[2, 1], [1, 1]]), np.eye(4), inside)
