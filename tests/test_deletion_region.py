"""The smallest deletion region: terms by hand, the sign, extreme scores, models that read one square, bad input."""

import math
from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose
from test_inpainting import drawn, net
from torch import nn

from xai_lib import deletion_region as dr
from xai_lib.deletion_region import DeletionConfig, log_odds, smallest_deletion_region
from xai_lib.studies.deletion.controls import blur

SIDE = 32
READ = (slice(8, 16), slice(16, 24))  # what `Reads` reads: four of the cells below
SHORT = DeletionConfig(steps=40, learning_rate=0.01, cell=4, spacing=2)
SMALL = replace(SHORT, steps=60, lambda2=0.01, lambda3=5.0)  # size matters most


class Reads(nn.Module):
    """logit = gain (mean of one square - level), in one of the forms that classifiers have."""

    def __init__(self, gain=20.0, level=0.25, form="column", where=READ):
        super().__init__()
        self.gain, self.level = nn.Parameter(torch.tensor(gain)), nn.Parameter(torch.tensor(level))
        self.form, self.where = form, where
        self.eval()

    def forward(self, x):
        z = self.gain * (x[(..., 0, *self.where)].mean((1, 2)) - self.level)
        forms = {"row": z, "column": z[:, None], "two": torch.stack((3 - z / 2, 3 + z / 2), 1)}
        return (forms | {"reversed": forms["two"].flip(1)})[self.form]


class Constant(nn.Module):
    """Draws one grey value."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value
        self.eval()

    def forward(self, image, keep):
        return torch.full_like(image, self.value)


def images(count=1, value=0.5, seed=0):
    return value + 0.1 * drawn(count, 1, SIDE, SIDE, seed=seed)


def framed(count=1):
    """Images with background on one side, as mammograms have it: an inpainter needs something to start from."""
    x = images(count)
    x[..., 28:] = 0
    return x


def search(model=None, inpainter=None, x=None, config=SHORT, **options):
    x = images() if x is None else x
    return smallest_deletion_region(model or Reads(), inpainter or Constant(), x, config=config, **options)


# ---------------------------------------------------------------------------------------- the terms


def test_phi_and_psi_by_hand():
    """At even odds phi is log 2; at odds of 3, p is 3/4. From odds of 9 to 3 psi is log 3."""
    z = torch.tensor([0.0, math.log(3), -math.log(3)])
    assert_allclose(dr.phi(z), [math.log(2), -math.log(0.75), -math.log(0.25)], rtol=1e-6)
    assert_allclose(dr.psi(torch.full((3,), math.log(9)), z), [math.log(9), math.log(3), math.log(27)], rtol=1e-6)


def test_total_variation_by_hand():
    masks = torch.tensor([[[0.0, 1, 1], [1, 1, 0.5]], [[0.2, 0.2, 0.2], [0.2, 0.2, 0.2]]])[:, None]
    assert_allclose(dr.tv(masks), [(1 + 0 + 0.5) + (1 + 0 + 0 + 0.5), 0])


def test_size_by_hand():
    """Deleted: 2 pixels wholly and 2 by half, one of each inside a breast of 4 pixels: 2 x 1.5 / (3 + 4)."""
    deleted = torch.tensor([[1.0, 0.5, 0, 0], [1, 0.5, 0, 0]])[None, None]
    breast = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]])[None, None]
    assert_allclose(dr.ar(deleted, breast), [3 / 7])
    assert_allclose(dr.ar(deleted, None), [3 / 8])
    assert_allclose(dr.ar(breast, breast), [1])
    assert_allclose(dr.ar(0 * breast, breast), [0])


def test_terms_of_the_start_by_hand():
    """The first row of `terms` belongs to the start, whose soft mask mixes image and inpainting."""
    config = replace(SHORT, steps=1, cell=8, spacing=2)
    found = search(config=config)
    cells = torch.full((4, 4), 0.55)
    cells[::2, ::2] = 0.45
    assert torch.equal(found.way[0, 0], cells)
    keep = nn.functional.interpolate(cells[None, None], scale_factor=8, mode="bilinear", align_corners=False)
    z = 20 * ((keep * images())[(0, 0, *READ)].mean().item() - 0.25)
    score = found.score.item()
    assert_allclose(found.terms[0, 0, :2], [math.log(1 + math.exp(-z)), score - z], rtol=1e-4)
    steps = 4 * 3 * 2 - 2 * 3  # neighbours; those of two odd rows or columns are equal
    assert_allclose(found.terms[0, 0, 2], 0.1 * (steps - 6), rtol=1e-5)
    deleted = 1 - keep
    assert_allclose(found.terms[0, 0, 3], 2 * deleted.sum() / (deleted.sum() + SIDE**2), rtol=1e-5)
    mean = search(config=replace(config, size="mean"))
    assert_allclose(mean.terms[0, 0, 3], deleted.mean(), rtol=1e-5)


@pytest.mark.parametrize("z", [math.log((1 - 1e-9) / 1e-9), 50.0, -50.0, 1000.0, -1000.0])
def test_value_and_gradient_are_finite_at_extreme_scores(z):
    """At p = 1 - 1e-9 log(p / (1 - p)) in float32 would be infinite; in logits nothing happens."""
    odds = torch.tensor([z], requires_grad=True)
    value = dr.phi(odds) + dr.psi(torch.tensor([z]), odds)
    (gradient,) = torch.autograd.grad(value.sum(), odds)
    assert_allclose(value.item(), max(-z, 0) + math.log1p(math.exp(-abs(z))), rtol=1e-6)
    assert_allclose(gradient.item(), -1 - (1 / (1 + math.exp(z)) if z < 500 else 0), rtol=1e-6)


@pytest.mark.parametrize("score", [math.log((1 - 1e-9) / 1e-9), 50.0])
def test_a_search_from_an_extreme_score(score):
    """And where the inpainting brings it to the other extreme."""
    found = search(Reads(gain=4 * score, level=0.25), x=torch.full((1, 1, SIDE, SIDE), 0.5))
    assert_allclose(found.score.item(), score, rtol=1e-6)
    assert_allclose(found.after.item(), -score, rtol=1e-3)
    assert all(torch.isfinite(t).all() for t in (found.way, found.terms))


# ---------------------------------------------------------------------------------------- log odds


@pytest.mark.parametrize("form", ["row", "column", "two"])
def test_log_odds_of_both_classes(form):
    x = images(3, seed=1)
    z = 20 * (x[(slice(None), 0, *READ)].mean((1, 2)) - 0.25)
    assert_allclose(log_odds(Reads(form=form), x).detach(), z, rtol=1e-4)
    assert_allclose(log_odds(Reads(form=form), x, 0).detach(), -z, rtol=1e-4)


def test_log_odds_of_several_classes():
    """The odds of one class against all others together."""
    logits = torch.tensor([[1.0, 2, 3], [0, 0, 0]])
    p = logits.double().softmax(1)
    for target in range(3):
        z = log_odds(lambda x: logits, torch.zeros(2, 1, 4, 4), target)
        assert_allclose(z, torch.logit(p[:, target]), rtol=1e-5)


# ---------------------------------------------------------------------------------------- sign


def test_the_intended_sign_lowers_the_score_and_the_printed_one_raises_it():
    """Black filling: deleting the square lowers the score. White filling: deleting it raises the score."""
    black, white = Constant(0.0), Constant(1.0)
    intended, printed = (search(inpainter=black, config=replace(SHORT, signs=s)) for s in ("intended", "printed"))
    assert intended.after < 0 < intended.score
    assert not printed.hole[(0, *READ)].any() and printed.after >= printed.score - 1e-4
    psi = [found.terms[:, 0, 1] for found in (intended, printed)]
    assert (psi[0].diff() > 0).all() and (psi[1].diff() < 0).all()  # it says how far the score fell
    intended, printed = (search(inpainter=white, config=replace(SHORT, signs=s)) for s in ("intended", "printed"))
    assert not intended.hole[(0, *READ)].any()
    assert printed.hole[(0, *READ)].all() and printed.after > printed.score + 1


@pytest.mark.parametrize("relaxation", ["composite", "soft"])
def test_first_step_against_the_gradient_by_finite_differences(relaxation):
    """Adam's first step goes by the learning rate against the sign of dL / dM."""
    config = replace(SHORT, steps=1, cell=8, lambda2=0.03, relaxation=relaxation)
    x, model = images(), Reads(gain=2.0)
    found = search(model, net(), x, config)
    problem = dr._Problem(model, net(), x, torch.ones_like(x), found.score, 1)
    start, weights = found.way[0][None], torch.tensor([-1, -1, 0.03, 0.1])
    for row, col in ((1, 2), (1, 3), (2, 2)):
        step = torch.zeros_like(start)
        step[..., row, col] = 1e-2
        with torch.no_grad():
            values = [problem.terms(start + s, config)[0] @ weights for s in (step, -step)]
        moved = (found.way[1] - found.way[0])[0, row, col]
        assert_allclose(moved, -0.01 * torch.sign(values[0] - values[1]), rtol=1e-3)


def test_relaxations_by_hand():
    """The inpainter draws the mean of the mask that it is given: of the hard one, or of the soft one."""

    def told(image, keep):
        return keep.mean((2, 3), keepdim=True).expand_as(image)

    x, cells = torch.full((1, 1, SIDE, SIDE), 0.5), torch.full((1, 1, 4, 4), 0.8)
    cells[..., :2, :] = 0.3
    breast = torch.ones_like(x)
    problem = dr._Problem(Reads(where=(slice(0, 4), slice(0, 4))), told, x, breast, torch.zeros(1), 1)
    mean = {"soft": 0.55, "composite": 17 / 32}  # of 32 rows 17 are above theta: the way from 0.3 to 0.8 is 8 rows long
    for relaxation, drawn_ in mean.items():
        psi = problem.terms(cells, replace(SHORT, cell=8, relaxation=relaxation))[0, 1].item()
        assert_allclose(psi, -20 * (0.3 * 0.5 + 0.7 * drawn_ - 0.25), rtol=1e-4)


# ---------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("inpainter", [Constant(0.0), Constant(0.1), blur])
def test_the_hole_lies_on_the_square_that_the_model_reads(inpainter):
    x = torch.full((1, 1, SIDE, SIDE), 0.2)
    x[(..., *READ)] = 0.8
    found = search(Reads(gain=20.0, level=0.5), inpainter, x, SMALL)
    hole = found.hole[0]
    assert hole[READ].all()
    hole[4:20, 12:28] = False  # the cells around it, which reach into it where the mask is resized
    assert not hole.any()
    assert found.score > 0 > found.after


def test_what_is_returned_belongs_together():
    x = framed(2)
    found = search(x=x, inpainter=net())
    assert found.hole.shape == found.keep.shape == (2, SIDE, SIDE) and found.hole.dtype == torch.bool
    assert found.way.shape == (41, 2, 8, 8) and found.terms.shape == (40, 2, 4)
    assert torch.equal(found.hole, found.keep <= 0.5) and found.hole.any() and not found.hole[x[:, 0] == 0].any()
    assert torch.equal(found.inpainted, dr.fill(net(), x, found.hole))
    assert torch.equal(found.inpainted[:, 0][~found.hole], x[:, 0][~found.hole])
    assert_allclose(found.after, log_odds(Reads(), found.inpainted).detach())
    cells = dr.full_size(found.way[-1][:, None], (SIDE, SIDE), 4)
    assert_allclose(found.keep[:, None], torch.where(x > 0, cells, 1), atol=1e-6)
    assert 0 <= found.way.min() and found.way.max() <= 1
    assert not any(t.requires_grad for t in (found.keep, found.after, found.inpainted, found.way, found.terms))
    assert found.seconds > 0 and not found.skipped.any()


def test_the_paper_s_steps_move_a_cell_by_about_a_fifth():
    config = DeletionConfig(cell=8)
    assert (config.lambda1, config.lambda2, config.lambda3, config.theta) == (1, 0.1, 0.1, 0.5)
    assert (config.steps, config.learning_rate, config.signs, config.size) == (100, 2e-3, "intended", "dice")
    found = search(config=config)
    assert_allclose((found.way[-1] - found.way[0]).abs().max(), 0.2, atol=0.03)


def test_outside_the_breast_everything_is_kept():
    breast = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    breast[..., :20] = True  # the middle of the square that the model reads
    found = search(breast=breast)
    assert found.hole.any() and not found.hole[~breast].any()
    assert (found.keep[~breast] == 1).all()
    x = images()
    x[..., 20:] = 0  # without a mask the breast is where the image is above 0
    assert torch.equal(
        search(x=x, model=Reads(level=0.1)).keep, search(x=x, model=Reads(level=0.1), breast=breast).keep
    )


def test_both_shape_terms_make_the_hole_smaller():
    config = replace(SHORT, lambda2=0.0, lambda3=0.0)
    free = search(config=config)
    assert search(config=replace(config, lambda3=50.0)).hole.sum() < free.hole.sum()
    smooth = search(config=replace(config, lambda2=1.0))
    assert smooth.terms[-1, 0, 2] < free.terms[-1, 0, 2]
    none = search(config=replace(config, lambda1=0.0, lambda3=1.0))
    assert not none.hole.any() and none.after == none.score and torch.equal(none.inpainted, images())


def test_two_outputs_and_target_0_are_the_same_search():
    one = search()
    for form, target in (("row", 1), ("two", 1), ("reversed", 0)):
        other = search(Reads(form=form), target=target)
        assert torch.equal(other.hole, one.hole)
        assert_allclose(other.score, one.score, rtol=1e-4)
        assert_allclose(other.after, one.after, rtol=1e-4)
    healthy = search(Reads(gain=-20.0), target=0)  # of one logit, the other class
    assert torch.equal(healthy.hole, one.hole)


NO_TIES = replace(SHORT, steps=5, lambda2=0.0)  # tv has kinks: rounding turns into other steps


@pytest.mark.parametrize(("inpainter", "config"), [(net(), NO_TIES), (Constant(0.1), replace(SHORT, steps=20))])
def test_several_images_in_one_search_equal_one_by_one(inpainter, config):
    """Also with a healthy one between them, which takes no part, and whatever the chunk."""
    x = torch.cat((images(2), images(1, 0.1), images(2, 0.6, seed=3)))
    x[3, ..., :16] = 0
    together = search(inpainter=inpainter, x=x, config=config)
    assert together.skipped.tolist() == [False, False, True, False, False] and together.hole.any()
    for i in range(len(x)):
        assert_same(together, search(inpainter=inpainter, x=x[i : i + 1], config=config), slice(i, i + 1))
    for chunk in (1, 3):
        assert_same(together, search(inpainter=inpainter, x=x, config=replace(config, chunk=chunk)), slice(None))


def assert_same(together, other, part):
    assert torch.equal(together.hole[part], other.hole) and torch.equal(together.skipped[part], other.skipped)
    for name in ("keep", "score", "after", "inpainted"):
        assert_allclose(getattr(together, name)[part], getattr(other, name), atol=1e-4, err_msg=name)
    for name in ("way", "terms"):
        assert_allclose(getattr(together, name)[:, part], getattr(other, name), atol=1e-4, err_msg=name)


def test_images_of_the_other_class_are_skipped():
    """A logit of 0 is no call either: there is nothing to delete."""
    x = torch.cat((torch.full((1, 1, SIDE, SIDE), 0.25), images(1, 0.1)))
    found = search(x=x)
    assert found.skipped.all() and found.score[0] == 0
    assert not found.hole.any() and torch.equal(found.inpainted, x) and torch.equal(found.after, found.score)
    assert (found.keep == 1).all() and (found.way == 1).all() and torch.isnan(found.terms).all()


def test_model_inpainter_and_images_stay_as_they_are():
    model, inpainter, x = Reads(), net(), framed(2)
    model.level.requires_grad_(False)
    model.gain.grad = torch.tensor(3.0)
    before = [t.clone() for m in (model, inpainter) for t in (*m.parameters(), *m.buffers())]
    with torch.no_grad():  # whether or not the caller wants gradients
        found = search(model, inpainter, x)
    after = [t for m in (model, inpainter) for t in (*m.parameters(), *m.buffers())]
    assert found.hole.any() and all(map(torch.equal, before, after))
    assert model.gain.grad == 3 and model.level.grad is None and all(p.grad is None for p in inpainter.parameters())
    assert [p.requires_grad for p in (*model.parameters(), *inpainter.parameters())] == [
        True,
        False,
        *[True] * len(list(inpainter.parameters())),
    ]
    assert not model.training and not inpainter.training
    assert torch.equal(x, framed(2))


def test_float64_images():
    found = search(Reads().double(), net().double(), framed().double(), NO_TIES)
    assert found.inpainted.dtype == found.keep.dtype == torch.float64
    assert_allclose(found.keep, search(inpainter=net(), x=framed(), config=NO_TIES).keep, atol=1e-4)


# ---------------------------------------------------------------------------------------- the grid


def test_the_start_grid_by_hand():
    config = DeletionConfig(theta=0.6, margin=0.1, cell=2, spacing=3, offset=(1, -1))
    mask = dr.start_mask(2, (10, 7), config)
    assert mask.shape == (2, 1, 5, 4)
    low = [[False, False, True, False] if row in (1, 4) else [False] * 4 for row in range(5)]
    expected = torch.where(torch.tensor(low), 0.5, 0.7)
    assert_allclose(mask, expected.expand(2, 1, 5, 4))


def test_offset_and_margin_of_a_search():
    found = search(config=replace(SHORT, steps=1, offset=(1, 0), margin=0.02, spacing=4))
    assert_allclose((found.way[0, 0] < 0.5).nonzero(), [[1, 0], [1, 4], [5, 0], [5, 4]])
    assert sorted(set(found.way[0].flatten().tolist())) == pytest.approx([0.48, 0.52])


def test_cells_resized_to_the_image_by_hand():
    """Centres of cells of two pixels lie at 0.5 and 2.5; between them the way is straight."""
    mask = torch.tensor([[[[0.0, 1.0]]]])
    assert_allclose(dr.full_size(mask, (2, 4), 2), [[[[0, 0.25, 0.75, 1]] * 2]])
    assert_allclose(dr.full_size(mask, (1, 3), 2), [[[[0, 0.25, 0.75]]]])  # what sticks out is cut off
    assert dr.full_size(mask, (1, 2), 1) is mask


def test_sizes_that_the_cells_do_not_divide():
    x = images()[..., :30, :27]
    found = search(x=x, config=replace(SHORT, cell=8))
    assert found.hole.shape == (1, 30, 27) and found.way.shape[2:] == (4, 4)


def test_within_the_breast_by_hand():
    keep, breast = torch.tensor([[[[0.2, 0.7, 0.0, 1.0]]]]), torch.tensor([[[[1.0, 1, 0, 0]]]])
    assert_allclose(dr.within(keep, breast), [[[[0.2, 0.7, 1, 1]]]])


def test_fill_by_hand():
    hole = torch.tensor([[[True, False], [False, False]]])
    assert dr.fill(Constant(0.3), torch.ones(1, 1, 2, 2), hole)[0, 0].tolist() == [[pytest.approx(0.3), 1], [1, 1]]


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signs": "right"}, "signs: 'right' is not one of intended, printed"),
        ({"size": "area"}, "size: 'area' is not one of dice, mean"),
        ({"relaxation": "hard"}, "relaxation: 'hard' is not one of composite, soft"),
        ({"steps": 0}, "steps: 0 is below 1"),
        ({"cell": 0}, "cell: 0"),
        ({"spacing": 0}, "spacing: 0"),
        ({"chunk": -1}, "chunk: -1"),
        ({"theta": 0.0}, "theta, margin"),
        ({"theta": 0.97}, "theta, margin"),
        ({"margin": 0.0}, "theta, margin"),
        ({"theta": float("nan")}, "theta, margin"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not above 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        DeletionConfig(**changes)


NAN = images().clone()
NAN[0, 0, 3, 3] = float("nan")
TISSUE = torch.ones(1, SIDE, SIDE, dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": images()[0]}, r"x: expected shape \(N, 1, H, W\)"),
        ({"x": images().expand(1, 3, SIDE, SIDE)}, "x: expected shape"),
        ({"x": images()[:0]}, "x: expected shape"),
        ({"x": NAN}, "x: an image has NaN"),
        ({"breast": TISSUE[0]}, r"breast: torch.bool, \(32, 32\)"),
        ({"breast": TISSUE.float()}, r"breast: torch.float32"),
        ({"breast": TISSUE[..., :9]}, r"breast: torch.bool, \(1, 32, 9\)"),
        ({"breast": ~TISSUE}, "breast: the mask of an image is empty"),
        ({"x": 0 * images()}, "breast: the mask of an image is empty"),
        ({"model": Reads().train()}, r"model: it is in train mode; call model.eval\(\)"),
        ({"inpainter": net().train()}, r"inpainter: it is in train mode"),
        ({"target": 2}, "target: 2, expected a class from 0 to 1"),
        ({"target": -1}, "target: -1"),
        ({"model": Reads(gain=float("nan"))}, "model: its logit is not finite for image 0"),
        ({"model": Reads(gain=float("inf"))}, "model: its logit is not finite for image 0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        search(**options)


def test_model_and_inpainter_of_different_ranges():
    model, inpainter = Reads(), net()
    model.value_range = (-1.0, 1.0)
    with pytest.raises(ValueError, match=r"inpainter: it expects grey values from \(0.0, 1.0\), the model from \(-1.0"):
        search(model, inpainter)
    model.value_range = [0, 1]
    assert search(model, inpainter, config=replace(SHORT, steps=1)).hole.any()


def test_a_score_that_is_not_finite_on_the_way():
    with pytest.raises(FloatingPointError, match="step 1 of the search: the model's logit is not finite"):
        search(inpainter=Constant(float("nan")))
