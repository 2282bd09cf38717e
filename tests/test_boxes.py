from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from skimage.measure import label, regionprops
from skimage.morphology import dilation, footprint_rectangle, opening
from torchvision.ops import box_iou

from xai_lib import box_scores as bs
from xai_lib import boxes as bx
from xai_lib.data.case import Case


def picture(*rows):
    """A mask drawn with . and #."""
    return np.array([[c == "#" for c in row] for row in rows])


def block(shape, *boxes, value=1.0):
    """A map that is `value` in the boxes and 0 elsewhere."""
    return bs.box_mask(boxes, shape) * value


def noise(seed, shape=(40, 30)):
    return np.random.default_rng(seed).normal(size=shape)


def case_of(boxes, shape=(20, 20), name="a", patient="p"):
    boxes = torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)
    return Case(torch.zeros(1, *shape), 1, None, boxes, None, patient, "CC", name)


raw = partial(bx.boxes_from_map, dilation=1, opening=1)


# ------------------------------------------------------------------------------------------------ by hand, step by step


@pytest.mark.parametrize(("height", "sizes"), [(1024, (9, 5)), (512, (5, 3)), (256, (3, 1)), (2048, (19, 11))])
def test_scaled_is_the_nearest_odd_number(height, sizes):
    assert (bx.scaled(9, height), bx.scaled(5, height)) == sizes


def test_dilate_by_hand():
    scores = np.array([[0.0, 0, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, 0, 0, -1]])
    assert_array_equal(bx.dilate(scores, 3), [[0, 3, 3, 3, 0], [0, 3, 3, 3, 0], [0, 3, 3, 3, 0]])
    assert_array_equal(bx.dilate(scores, 1), scores)
    assert bx.dilate(block((20, 20), (10, 10, 11, 11))).sum() == 81  # the paper's 9x9 by default


def test_binarise_by_hand():
    scores = np.arange(10.0).reshape(2, 5)
    assert_array_equal(bx.binarise(scores, 0.7), scores > 6.3)  # 7, 8 and 9
    assert_array_equal(bx.binarise(scores, 1 / 3), scores > 3)  # the quantile is 3 itself, and only higher is kept
    inside = scores < 5  # the quantile of 0 ... 4 is 2.8
    assert_array_equal(bx.binarise(scores, 0.7, inside), (scores == 3) | (scores == 4))


def test_binarise_with_ties_keeps_fewer():
    scores = np.array([[1.0] * 6 + [2.0] * 4])
    assert bx.binarise(scores, 0.5).sum() == 4
    assert bx.binarise(scores, 0.7).sum() == 0  # 30 % asked for, but 40 % tie for the first place


def test_open_regions_by_hand():
    mask = picture("##.....", "##...#.", "...###.", "...###.", "#..###.", ".......")
    assert_array_equal(bx.open_regions(mask, 1), mask)
    # the corner survives: only two of three columns are in the image, and what lies beyond does not erode
    expected = picture("##.....", "##.....", "...###.", "...###.", "...###.", ".......")
    assert_array_equal(bx.open_regions(mask, 3), expected)


def test_region_boxes_and_merge_by_hand():
    mask = picture("#....", ".#...", ".....", "...##", "...#.")  # a corner connects
    assert_array_equal(bx.region_boxes(mask), [[0, 0, 2, 2], [3, 3, 5, 5]])
    assert_array_equal(bx.merge([[4, 1, 5, 9], [2, 3, 3, 4]]), [[2, 1, 5, 9]])
    assert bx.region_boxes(np.zeros((3, 3))).shape == bx.merge([]).shape == (0, 4)
    assert bx.merge([]).dtype == bx.region_boxes(mask).dtype == np.int64


def test_boxes_from_map_by_hand():
    scores = block((60, 50), (10, 12, 13, 15)) + block((60, 50), (40, 30, 43, 33), value=2)
    # 18 pixels of 3000, 242 after the dilation by 4 on each side: the 0.9-quantile is 0
    separate = bx.boxes_from_map(scores, 0.9, merged=False)
    assert_array_equal(separate, [[6, 8, 17, 19], [36, 26, 47, 37]])
    assert_array_equal(bx.boxes_from_map(scores, 0.9), [[6, 8, 47, 37]])
    assert_array_equal(bx.boxes_from_map(scores, 0.95), [[36, 26, 47, 37]])  # 150 pixels: the weaker region ties
    assert_array_equal(raw(scores, 0.99), [[10, 12, 43, 33]])  # without dilation there are fewer than 30 pixels
    assert bx.boxes_from_map(scores, 0.9, dilation=1, opening=5).shape == (0, 4)  # 3x3 regions are opened away


def test_boxes_from_map_parts_and_breast():
    scores = block((20, 20), (2, 2, 5, 5)) - block((20, 20), (10, 10, 14, 14), value=3)
    assert_array_equal(raw(scores, 0.9), [[2, 2, 5, 5]])
    assert_array_equal(raw(scores, 0.9, part="absolute"), [[2, 2, 14, 14]])
    inside = block((20, 20), (8, 8, 20, 20)) > 0
    assert_array_equal(raw(scores, 0.8, part="absolute", inside=inside), [[10, 10, 14, 14]])


@pytest.mark.parametrize("scores", [np.zeros((8, 8)), np.full((8, 8), 2.5), -np.ones((8, 8))])
def test_a_constant_map_has_no_box(scores):
    for boxes in (bx.boxes_from_map(scores), bx.boxes_from_map(scores, merged=False), bx.component_box(scores)):
        assert boxes.shape == (0, 4) and boxes.dtype == np.int64
        assert bs.best_iou(boxes, [[0, 0, 2, 2]]) == 0


def test_component_box_by_hand():
    scores = block((30, 30), (2, 2, 8, 8)) + block((30, 30), (20, 20, 23, 23), value=5)
    found = partial(bx.component_box, scores, quantile=0.9, dilation=1, opening=1)
    assert_array_equal(found("area"), [[2, 2, 8, 8]])  # 36 pixels against 9
    assert_array_equal(found("score"), [[20, 20, 23, 23]])  # a sum of 36 against 45


def test_peak_box_by_hand():
    scores = np.zeros((12, 12))
    scores[3, 2:9] = [0.2, 0.31, 0.9, 1.0, 0.5, 0.3, 0.29]
    scores[9, 9] = 0.9
    assert_array_equal(bx.peak_box(scores), [[3, 3, 4, 8]])
    assert_array_equal(bx.peak_box(scores, level=1), [[3, 5, 4, 6]])
    assert_array_equal(bx.peak_box(scores, inside=np.indices((12, 12))[0] > 5), [[9, 9, 10, 10]])
    assert bx.peak_box(-scores).shape == (0, 4)
    assert_array_equal(bx.peak_box(-scores, part="absolute"), [[3, 3, 4, 8]])


def test_a_blur_lets_a_region_win_over_a_pixel():
    scores = block((40, 40), (5, 5, 6, 6), value=2) + block((40, 40), (20, 20, 30, 30))
    assert_array_equal(bx.peak_box(scores, level=0.9), [[5, 5, 6, 6]])
    assert bs.iou(bx.peak_box(scores, level=0.5, blur=2), [20, 20, 30, 30]) == 1


def test_iou_by_hand():
    assert bs.iou([0, 0, 2, 2], [1, 1, 3, 3]) == 1 / 7
    assert bs.iou([0, 0, 2, 2], [0, 2, 2, 4]) == 0  # half-open boxes side by side share nothing
    assert bs.iou([0, 0, 4, 4], [1, 1, 3, 3]) == 1 / 4
    assert_allclose(bs.iou_matrix([[0, 0, 1, 2], [5, 5, 6, 6]], [[0, 0, 1, 1]]), [[0.5], [0]])


def test_best_iou_by_hand():
    true = [[0, 0, 2, 2], [10, 10, 12, 14]]
    assert bs.best_iou([[10, 10, 12, 12]], true) == 0.5
    assert bs.best_iou([[1, 1, 3, 3], [10, 10, 12, 12]], true) == 0.5
    assert bs.best_iou([], true) == 0
    assert np.isnan(bs.best_iou([[0, 0, 1, 1]], [])) and np.isnan(bs.best_iou([], []))


def test_tpr_curve_by_hand():
    curve = bs.tpr_curve([0, 3 / 20, 0.5, 1])
    assert_array_equal(curve[[0, 1, 3, 4, 10, 11, 20]], [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25])
    assert curve.shape == (21,)
    assert_array_equal(bs.tpr_curve([0.2, 0.4], [0.3]), [0.5])


def test_energy_and_hit_by_hand():
    scores = block((10, 10), (0, 0, 1, 3)) + block((10, 10), (5, 5, 6, 6), value=2) - block((10, 10), (8, 8, 9, 9))
    box = [[4, 4, 7, 7]]
    assert_allclose(bs.energy_inside(scores, box), 2 / 5)
    assert_allclose(bs.energy_inside(scores, box, "absolute"), 2 / 6)
    assert_allclose(bs.energy_inside(scores, [[0, 0, 2, 3], [0, 0, 1, 5]]), 3 / 5)  # overlaps count once
    assert bs.pointing_hit(scores, box) == 1 and bs.pointing_hit(scores, [[0, 0, 5, 5]]) == 0
    assert np.isnan([bs.energy_inside(scores, []), bs.energy_inside(-np.ones((4, 4)), [0, 0, 1, 1])]).all()
    assert np.isnan([bs.pointing_hit(scores, []), bs.pointing_hit(np.ones((4, 4)), [0, 0, 1, 1])]).all()


def test_a_hit_at_the_edge_of_a_half_open_box():
    scores = block((10, 10), (5, 5, 6, 6))
    hits = [bs.pointing_hit(scores, b) for b in ([5, 5, 6, 6], [0, 0, 5, 9], [6, 0, 9, 9], [0, 5, 6, 6])]
    assert hits == [1, 0, 0, 1]
    assert bs.pointing_hit(block((10, 10), (2, 2, 5, 5)), [3, 3, 4, 4]) == 1  # the middle of a plateau


def test_boxes_without_a_network_by_hand():
    breast = block((20, 10), (4, 0, 12, 6)) > 0  # centroid (7.5, 2.5), that is 8, 3 as a corner of pixels
    assert_array_equal(bs.breast_box(breast), [[4, 0, 12, 6]])
    assert_array_equal(bs.centre_box((4, 2), breast), [[6, 2, 10, 4]])
    assert_array_equal(bs.centre_box((2, 10), breast), [[7, 0, 9, 10]])  # moved into the image


def test_random_boxes_by_hand():
    breast = block((20, 10), (4, 0, 12, 6)) > 0
    rng = np.random.default_rng(0)
    drawn = bs.random_boxes((3, 3), breast, 4000, rng)
    assert drawn.shape == (4000, 4) and (drawn[:, 2:] - drawn[:, :2] == 3).all()
    assert (drawn[:, :2] >= 0).all() and breast[drawn[:, 0] + 1, drawn[:, 1] + 1].all()
    counts = np.unique(drawn[:, :2], axis=0, return_counts=True)[1]
    assert len(counts) == 8 * 5  # rows 3 to 10, columns 0 to 4
    assert 60 < counts.min() and counts.max() < 140  # 100 each, +-10
    assert_array_equal(bs.random_boxes((20, 10), breast, 2, rng), [[0, 0, 20, 10]] * 2)
    low = block((20, 10), (0, 0, 2, 10)) > 0  # no box of 18 rows has its centre in it
    assert set(bs.random_boxes((18, 10), low, 50, rng)[:, 0]) == {0, 1, 2}


# ------------------------------------------------------------------------------------------------ references


@pytest.mark.parametrize("seed", range(3))
def test_steps_against_scikit_image(seed):
    scores = noise(seed)
    square = footprint_rectangle((5, 5))
    wide = bx.dilate(scores, 5)
    assert_array_equal(wide, dilation(scores, square))
    mask = bx.binarise(wide, 0.7)
    assert_array_equal(mask, wide > np.quantile(wide, 0.7))
    opened = bx.open_regions(mask, 5)
    assert_array_equal(opened, opening(mask, square, mode="ignore"))
    expected = sorted(region.bbox for region in regionprops(label(opened, connectivity=2)))
    found = bx.boxes_from_map(scores - scores.min(), 0.7, 5, 5, merged=False)
    assert sorted(map(tuple, found.tolist())) == expected and len(expected) > 1


@pytest.mark.parametrize("q", [0.05, 0.5, 0.9, 0.99, 0.995, 1 / 3])
def test_binarise_is_the_comparison_with_numpys_quantile(q):
    scores = noise(7, (101, 1))
    assert_array_equal(bx.binarise(scores, q), scores > np.quantile(scores, q))


def test_iou_against_torchvision():
    rng = np.random.default_rng(0)
    a, b = (np.hstack([c := rng.integers(0, 20, (k, 2)), c + rng.integers(1, 15, (k, 2))]) for k in (7, 5))
    assert_allclose(bs.iou_matrix(a, b), box_iou(torch.from_numpy(a).double(), torch.from_numpy(b).double()))
    masks = [bs.box_mask(boxes, (40, 40)) for boxes in (a[:1], b[:1])]
    assert_allclose(bs.iou(a[0], b[0]), (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


# ------------------------------------------------------------------------------------------------ properties


def test_iou_is_symmetric_and_bounded():
    found = bx.boxes_from_map(noise(1), 0.8, 3, 1, merged=False)
    table = bs.iou_matrix(found, found)
    assert_array_equal(table, table.T)
    assert_array_equal(np.diag(table), 1)
    assert (table >= 0).all() and (table <= 1).all() and bs.iou_matrix(found, []).shape == (len(found), 0)


@pytest.mark.parametrize("change", [lambda m: 1e-30 * m, lambda m: 1e12 * m, lambda m: m**3, np.tanh])
def test_boxes_do_not_depend_on_the_scale(change):
    scores = noise(2)
    expected = bx.boxes_from_map(scores, 0.9, 3, 3, merged=False)
    assert_array_equal(bx.boxes_from_map(change(scores), 0.9, 3, 3, merged=False), expected)
    assert len(expected) > 1


def test_boxes_move_with_the_map():
    scores = block((60, 50), (20, 12, 26, 15)) + block((60, 50), (30, 20, 34, 26))
    moved = np.roll(scores, (-3, 7), (0, 1))
    for rule in (bx.boxes_from_map, bx.component_box, bx.peak_box, partial(bx.peak_box, blur=1)):
        assert_array_equal(rule(moved), rule(scores) + np.array([-3, 7, -3, 7]))


@pytest.mark.parametrize("q", [0.5, 0.8, 0.9, 0.95])
def test_a_higher_quantile_never_makes_the_big_box_larger(q):
    scores = noise(3)
    low, high = (bs.box_mask(bx.boxes_from_map(scores, v, 3, 3), scores.shape) for v in (q, q + 0.04))
    assert (high <= low).all() and low.any()


def test_the_single_regions_are_among_the_regions():
    scores = noise(4)
    regions = bx.boxes_from_map(scores, 0.9, 3, 3, merged=False).tolist()
    assert all(bx.component_box(scores, by, 0.9, 3, 3)[0].tolist() in regions for by in ("score", "area"))


def test_tensors_and_arrays_are_read_alike():
    scores = noise(5)
    tensor = torch.from_numpy(scores).requires_grad_()
    assert_array_equal(bx.boxes_from_map(tensor, 0.9), bx.boxes_from_map(scores, 0.9))
    box = torch.tensor([2, 2, 30, 20])
    assert bs.energy_inside(tensor, box) == bs.energy_inside(scores, box.numpy())


def test_the_input_is_not_changed():
    scores = noise(6)
    before = scores.copy()
    bx.boxes_from_map(scores, part="absolute")
    bx.peak_box(scores, blur=1)
    assert_array_equal(scores, before)


# ------------------------------------------------------------------------------------------------ tables


def test_score_by_hand():
    cases = [case_of([[5, 5, 9, 9]], name="a"), case_of([[0, 0, 4, 4], [10, 10, 14, 14]], name="b", patient="q")]
    maps = np.stack([block((20, 20), (5, 5, 9, 13)), block((20, 20), (0, 0, 4, 4), (10, 10, 14, 14))])
    find = {"m": partial(raw, quantile=0.8, merged=False), "n": partial(raw, quantile=0.8, merged=False)}
    frame = bs.score({"m": maps, "n": np.zeros_like(maps)}, cases, find)
    assert frame.method.tolist() == ["m", "m", "n", "n"] and frame.image.tolist() == [0, 1, 0, 1]
    assert frame.source.tolist() == ["a", "b"] * 2 and frame.patient_id.tolist() == ["p", "q"] * 2
    assert frame.components.tolist() == [1, 2, 0, 0]
    assert frame.iou.tolist() == [0.5, 1, 0, 0]
    assert_array_equal(frame.area_ratio, [2, 1, np.nan, np.nan])
    assert_allclose(frame.area, [32 / 400, 196 / 400, 0, 0])
    assert_allclose(frame.true_share, [16 / 400, 32 / 400] * 2)
    assert_allclose(frame.energy, [0.5, 1, np.nan, np.nan])
    assert_array_equal(frame.hit, [0, 1, np.nan, np.nan])  # the plateau's middle, column 8.5, is beyond the box
    assert (frame.iou_chance[:2] > 0).all() and (frame.iou_chance[2:] == 0).all()


def test_score_without_merging():
    case = case_of([[0, 0, 4, 4], [10, 10, 14, 14]])
    maps = block((20, 20), (0, 0, 4, 4), (10, 10, 12, 14))[None]
    find = {"m": partial(raw, quantile=0.8, merged=False)}
    table = {(m, t): bs.score({"m": maps}, [case], find, merged=m, truth=t) for m in (1, 0) for t in ("union", "best")}
    ious = {key: frame.iou[0] for key, frame in table.items()}
    big = 12 * 14
    assert_allclose(ious[1, "union"], big / 196)
    assert_allclose(ious[1, "best"], 16 / big)
    assert_allclose([ious[0, "union"], ious[0, "best"]], [16 / 196, 1])
    assert table[0, "best"].area_ratio[0] == 24 / 32 and table[1, "best"].components[0] == 2


def test_score_of_a_case_without_a_lesion():
    frame = bs.score({"m": noise(0, (1, 20, 20))}, [case_of([])])
    assert frame[["iou", "iou_chance", "area_ratio", "true_share", "energy", "hit"]].isna().all(axis=None)


def test_the_paper_does_not_dilate_segments():
    rules = {name: bx.paper_rule(name, 1024).keywords for name in ("saliency", "lime", "kernel_shap", "lime, breast")}
    assert [rule["dilation"] for rule in rules.values()] == [9, 1, 1, 1]
    assert all(rule["opening"] == 5 and not rule["merged"] and rule["quantile"] == 0.99 for rule in rules.values())
    assert bx.paper_rule("saliency", 512, 0.98).keywords["dilation"] == 5


def test_score_uses_the_papers_rule_by_default():
    maps, case = noise(1, (1, 256, 20)), case_of([[2, 2, 9, 9]], (256, 20))
    frame = bs.score({"saliency": maps, "lime": maps}, [case]).set_index("method")
    for method, dilation_px in (("saliency", 3), ("lime", 1)):
        boxes = bx.boxes_from_map(maps[0], 0.99, dilation_px, 1, merged=False)
        assert frame.components[method] == len(boxes)
        assert frame.iou[method] == bs.iou(bx.merge(boxes), [2, 2, 9, 9])


def test_score_in_the_breast():
    maps = block((20, 20), (0, 15, 3, 18), value=9)[None] + block((20, 20), (10, 2, 13, 5))
    case, breast = case_of([[10, 2, 13, 5]]), (np.arange(20) < 10)[None].repeat(20, 0)[None]
    find = {"m": partial(raw, quantile=0.95, merged=False)}
    ious = {r: bs.score({"m": maps}, [case], find, inside=breast, region=r).iou[0] for r in ("image", "breast")}
    assert ious == {"image": 9 / (13 * 16), "breast": 1}
    assert bs.score({"m": maps}, [case], find, inside=breast).true_share[0] == 9 / 200


def test_chance_is_the_mean_over_all_places():
    case = case_of([[3, 3, 7, 7]])
    frame = bs.score_boxes({"m": [[[0, 0, 4, 4]]]}, [case], draws=20000)
    places = np.array([[r, c, r + 4, c + 4] for r in range(17) for c in range(17)])
    exact = bs.iou_matrix(places, [3, 3, 7, 7]).mean()
    assert_allclose(frame.iou_chance[0], exact, rtol=0.05)
    again = bs.score_boxes({"other": [[]], "m": [[[0, 0, 4, 4]]]}, [case], draws=20000)
    assert again.iou_chance[1] == frame.iou_chance[0]  # does not depend on the methods beside it
    assert bs.score_boxes({"m": [[[0, 0, 4, 4]]]}, [case], draws=9).iou_chance[0] != frame.iou_chance[0]


def test_boxes_without_a_map_are_measured_too():
    case, breast = case_of([[4, 4, 8, 8]]), block((20, 20), (0, 0, 12, 12)) > 0
    found = {"breast": [bs.breast_box(breast)], "centre": [bs.centre_box((4, 4), breast)]}
    frame = bs.score_boxes(found, [case], inside=breast[None])
    assert_allclose(frame.iou, [16 / 144, 1])
    assert_allclose(frame.area_ratio, [9, 1])


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("q", [0, 1, -0.1, 1.5, np.nan, 99])
def test_a_quantile_outside_0_1(q):
    with pytest.raises(ValueError, match=r"quantile: .* is not in \(0, 1\)"):
        bx.boxes_from_map(noise(0), q)


@pytest.mark.parametrize("scores", [np.array([[0, np.nan]]), np.array([[np.inf, 0]]), np.zeros(5), np.zeros((0, 3))])
def test_scores_that_are_no_map(scores):
    for call in (bx.boxes_from_map, bx.component_box, bx.peak_box, partial(bs.energy_inside, boxes=[0, 0, 1, 1])):
        with pytest.raises(ValueError, match=r"scores: expected finite values of shape \(H, W\)"):
            call(scores)


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([[0, 0, 3]], "whole numbers of shape"),
        ([[0, 0, 2.5, 3]], "whole numbers of shape"),
        ([[0, 0, np.nan, 3]], "whole numbers of shape"),
        ([[0, 0, np.inf, 3]], "row0 < row1"),
        ([["a", "b", "c", "d"]], "whole numbers of shape"),
        ([[3, 0, 3, 3]], "row0 < row1"),
        ([[0, 5, 3, 3]], "row0 < row1"),
        ([[0, 0, 3, 11]], "outside the image of 10 x 10"),
        ([[-1, 0, 3, 3]], "outside the image of 10 x 10"),
    ],
)
def test_boxes_that_are_none(boxes, why):
    with pytest.raises(ValueError, match=f"boxes: .*{why}"):
        bs.box_mask(boxes, (10, 10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bx.dilate(noise(0), 4), "dilation: 4 is not an odd number"),
        (lambda: bx.open_regions(noise(0) > 0, 0), "opening: 0 is not an odd number"),
        (lambda: bx.dilate(noise(0), 2.5), "dilation: 2.5 is not an odd number"),
        (lambda: bx.binarise(noise(0), 0.5, np.ones((3, 3))), r"inside: expected shape \(40, 30\)"),
        (lambda: bx.binarise(noise(0), 0.5, np.zeros((40, 30))), "inside: expected shape"),
        (lambda: bx.boxes_from_map(noise(0), part="signed"), "part: 'signed' is unknown"),
        (lambda: bx.component_box(noise(0), by="size"), "by: 'size'"),
        (lambda: bx.peak_box(noise(0), level=0), "level: 0"),
        (lambda: bx.peak_box(noise(0), blur=-1), "blur: -1"),
        (lambda: bs.iou([], [0, 0, 1, 1]), "one box"),
        (lambda: bs.iou([[0, 0, 1, 1]] * 2, [0, 0, 1, 1]), "one box"),
        (lambda: bs.tpr_curve([]), "ious: expected"),
        (lambda: bs.tpr_curve([0.5, np.nan]), "ious: expected"),
        (lambda: bs.random_boxes((41, 3), noise(0) > 0, 1, np.random.default_rng(0)), "size: .* inside the image"),
        (lambda: bs.centre_box((0, 3), noise(0) > 0), "size: .* inside the image"),
        (lambda: bs.breast_box(np.zeros((4, 4))), "inside: expected shape"),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": {"m": noise(0, (2, 20, 20))}}, "maps: 2 of 'm' for 1 cases"),
        ({"maps": {"m": noise(0, (20, 20))}}, "m: expected shape"),
        ({"maps": {"m": np.full((1, 20, 20), np.nan)}}, "m: map 0 holds NaN"),
        ({"maps": {"m": noise(0, (1, 20, 10))}}, r"cases: a has \(20, 20\) pixels, expected \(20, 10\)"),
        ({"cases": []}, "cases: is empty"),
        ({"cases": [case_of([[0, 0, 21, 4]])]}, "cases: a: .* outside the image"),
        ({"find": {"other": bx.boxes_from_map}}, "find: has no rule for 'm', only for other"),
        ({"truth": "first"}, "truth: 'first'"),
        ({"draws": 0}, "draws: 0"),
        ({"region": "breast"}, "region: 'breast'"),
        ({"region": "body"}, "region: 'body'"),
        ({"inside": np.ones((20, 20))}, "inside: shape"),
        ({"inside": np.zeros((1, 20, 20))}, r"inside\[0\]: expected"),
        ({"part": "negative"}, "part: 'negative'"),
    ],
)
def test_bad_input_of_score(change, message):
    given = {"maps": {"m": noise(0, (1, 20, 20))}, "cases": [case_of([[0, 0, 4, 4]])]} | change
    with pytest.raises(ValueError, match=message):
        bs.score(given.pop("maps"), given.pop("cases"), **given)


def test_score_boxes_needs_boxes_for_every_case():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        bs.score_boxes({"m": []}, [case_of([[0, 0, 4, 4]])])
