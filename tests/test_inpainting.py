"""Partial convolution by hand, against nn.Conv2d and finite differences; the U-Net: sizes, masks, norms; bad input."""

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional

from xai_lib.inpainting import PartialConv2d, PartialUNet, inpaint


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def holes(*shape, share=0.3, seed=1):
    return (drawn(*shape, seed=seed) > share).float()


def layer(*args, weight=None, bias=None, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = PartialConv2d(*args, bias=bias is not None, **options)
    with torch.no_grad():
        if weight is not None:
            made.weight.fill_(weight)
        if bias is not None:
            made.bias.fill_(bias)
    return made


def net(depth=2, base=2, scale="liu", seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PartialUNet(depth, base, scale).eval()


def assert_gradient(function, at, step=1e-6):
    """The gradient of a weighted sum of what `function` returns is that of finite differences, in every pixel."""
    at = at.clone().requires_grad_(True)
    out = function(at)
    weights = drawn(*out.shape, seed=7, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * out).sum(), at)
    sides = torch.eye(at.numel(), dtype=torch.float64).view(-1, *at.shape) * step
    with torch.no_grad():
        found = [(weights * (function(at + side) - function(at - side))).sum() / (2 * step) for side in sides]
    assert_allclose(gradient.flatten(), torch.stack(found), rtol=1e-5, atol=1e-7)


LEFT = torch.tensor([1.0, 1, 0, 0, 0]).expand(1, 1, 5, 5)  # the left two of five columns are known


# ---------------------------------------------------------------------------------------- partial convolution


@pytest.mark.parametrize(("scale", "row"), [("liu", [18, 18, 18, 0, 0]), ("major", [2, 2, 2, 0, 0])])
def test_both_scalings_by_hand(scale, row):
    """A constant 2 under a window of ones: 2 x 9 wherever one of its pixels is known; printed: 2."""
    y, keep = layer(1, 1, 3, padding=1, weight=1, scale=scale)(torch.full((1, 1, 5, 5), 2.0), LEFT)
    assert y[0, 0, 2].tolist() == row
    assert keep[0, 0].tolist() == [[1, 1, 1, 0, 0]] * 5


def test_borders_count_as_unknown():
    y, keep = layer(1, 1, 3, padding=1, weight=1)(torch.full((1, 1, 5, 5), 2.0), torch.ones(1, 1, 5, 5))
    assert (y == 18).all() and (keep == 1).all()
    y, _ = layer(1, 1, 3, padding=1, weight=1, scale="major")(torch.full((1, 1, 5, 5), 2.0), torch.ones(1, 1, 5, 5))
    assert (y == 2).all()


def test_mask_update_and_a_hole_that_closes_from_its_rim():
    """A hole of 5 x 5 pixels: after one window of 3 x 3 the inner 3 x 3 are unknown, then 1, then none."""
    keep = torch.ones(1, 1, 9, 9)
    keep[..., 2:7, 2:7] = 0
    x, left = drawn(1, 1, 9, 9), []
    for _ in range(3):
        x, keep = layer(1, 1, 3, padding=1)(x, keep)
        left.append((keep == 0).sum().item())
        assert ((keep == 0) | (keep == 1)).all()
    assert left == [9, 1, 0]


def test_new_mask_with_a_stride():
    keep = torch.zeros(1, 1, 6, 6)
    keep[..., 0, 5] = 1
    _, new = layer(1, 1, 3, stride=2, padding=1)(drawn(1, 1, 6, 6), keep)
    assert new[0, 0].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_full_mask_is_an_ordinary_convolution_inside_the_border(stride):
    made, x = layer(3, 4, 3, stride=stride, padding=1, bias=0.7), drawn(2, 3, 9, 9)
    y, keep = made(x, torch.ones(2, 1, 9, 9))
    plain = functional.conv2d(x, made.weight, made.bias, stride, 1)
    inside = (..., slice(1, -1), slice(1, -1))
    assert_allclose(y[inside].detach(), plain[inside].detach(), rtol=1e-5)
    corner = (plain[..., 0, 0] - 0.7) * 9 / 4 + 0.7  # of 9 pixels 4 lie in the image
    assert_allclose(y[..., 0, 0].detach(), corner.detach(), rtol=1e-4)
    assert (keep == 1).all()


def test_without_padding_it_is_nn_conv2d():
    made, x = layer(2, 3, 3, bias=-0.2), drawn(1, 2, 7, 7)
    plain = nn.Conv2d(2, 3, 3)
    plain.load_state_dict(made.state_dict())
    y, _ = made(x, torch.ones(1, 1, 7, 7))
    assert_allclose(y.detach(), plain(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["liu", "major"])
def test_the_bias_is_added_where_something_is_known(scale):
    y, _ = layer(1, 1, 3, padding=1, weight=0, bias=5, scale=scale)(torch.full((1, 1, 5, 5), 2.0), LEFT)
    assert y[0, 0, 2].tolist() == [5, 5, 5, 0, 0]


def test_what_lies_in_the_hole_is_not_seen():
    made, x, keep = layer(2, 3, 3, padding=1, bias=0.1), drawn(2, 2, 8, 8), holes(2, 1, 8, 8)
    y, _ = made(x, keep)
    other, _ = made(x + 9 * (1 - keep), keep)
    assert torch.equal(y, other)


@pytest.mark.parametrize("scale", ["liu", "major"])
def test_shares_are_masks_repeated_for_their_channels(scale):
    made, x, keep = layer(5, 3, 3, padding=1, bias=0.3, scale=scale), drawn(2, 5, 6, 6), holes(2, 2, 6, 6, share=0.7)
    y, new = made(x, keep, (2, 3))
    each = keep[:, [0, 0, 1, 1, 1]]
    whole, also = made(x, each)
    assert_allclose(y.detach(), whole.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(new, also)
    known = functional.conv2d(each, torch.ones(1, 5, 3, 3), padding=1)
    by_hand = functional.conv2d(x * each, made.weight, padding=1) * (45 if scale == "liu" else 1) / known + 0.3
    assert_allclose(y.detach(), torch.where(known > 0, by_hand, 0).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", ["liu", "major"])
def test_gradient_with_respect_to_a_soft_mask(scale):
    made = layer(2, 2, 3, stride=2, padding=1, bias=0.1, scale=scale).double()
    x, keep = drawn(1, 2, 5, 5, dtype=torch.float64), 0.1 + 0.8 * drawn(1, 1, 5, 5, seed=2, dtype=torch.float64)
    assert_gradient(lambda k: made(x, k)[0], keep)
    assert_gradient(lambda a: made(a, keep)[0], x)


def test_gradient_of_a_mask_that_keeps_everything():
    """Nothing is hidden yet, and still the gradient says what hiding a pixel would do."""
    made, x = layer(1, 1, 3, padding=1, bias=0).double(), drawn(1, 1, 4, 4, dtype=torch.float64)
    keep, step = torch.ones(1, 1, 4, 4, dtype=torch.float64, requires_grad=True), 1e-6
    (gradient,) = torch.autograd.grad(made(x, keep)[0].square().sum(), keep)
    for row, col in ((0, 0), (1, 2)):
        less = torch.ones_like(keep).detach()
        less[0, 0, row, col] -= step
        value = [made(x, k)[0].square().sum().item() for k in (torch.ones_like(less), less)]
        assert_allclose(gradient[0, 0, row, col], (value[0] - value[1]) / step, rtol=1e-4)


# ---------------------------------------------------------------------------------------- U-Net


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (7, 5)])
def test_sizes_that_the_depth_does_not_divide(shape):
    """As if the image stood in the corner of one whose sides are multiples of 8 and whose other pixels are unknown."""
    model, image, keep = net(depth=3), drawn(2, 1, *shape), holes(2, 1, *shape)
    out = model(image, keep)
    assert out.shape == image.shape and torch.isfinite(out).all()
    pad = (0, -shape[1] % 8, 0, -shape[0] % 8)
    large = model(functional.pad(image, pad, value=0.7), functional.pad(keep, pad))
    assert_allclose(out.detach(), large[..., : shape[0], : shape[1]].detach(), rtol=1e-4, atol=1e-6)


def test_known_pixels_stay_and_the_hole_is_not_seen():
    model, image, keep = net(), drawn(2, 1, 32, 24), holes(2, 1, 32, 24)
    filled = inpaint(model, image, keep)
    assert torch.equal(filled[keep == 1], image[keep == 1])
    assert torch.equal(filled[keep == 0], model(image, keep)[keep == 0])
    other = torch.where(keep == 1, image, 1 - image)
    assert torch.equal(inpaint(model, other, keep), filled)
    assert torch.equal(inpaint(model, image, torch.ones_like(keep)), image)


def test_images_of_a_batch_are_filled_one_by_one():
    model, image, keep = net(), drawn(3, 1, 16, 16), holes(3, 1, 16, 16)
    keep[1] = 1
    together = model(image, keep)
    for i in range(3):
        assert_allclose(together[i : i + 1].detach(), model(image[i : i + 1], keep[i : i + 1]).detach(), atol=1e-6)


def test_a_hole_wider_than_the_window_is_filled():
    """Far from anything known the deeper layers still bring what is known; a network without them draws nothing."""
    image, keep = drawn(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    keep[..., :4, :] = 1
    for depth, reaches in ((1, False), (5, True)):
        model = net(depth, base=4)
        far = (model(image, keep) - model(image / 2, keep))[..., 48:, :]
        assert (far.abs().max() > 1e-4) == reaches


def test_gradient_through_the_network_to_the_mask():
    model = net().double()
    image = drawn(1, 1, 8, 8, dtype=torch.float64)
    keep = 0.2 + 0.6 * drawn(1, 1, 8, 8, seed=3, dtype=torch.float64)
    assert_gradient(lambda k: inpaint(model, image, k), keep)


def test_the_paper_s_network_has_eight_layers_down_and_eight_up():
    model = PartialUNet(depth=8, base=1).eval()
    assert [len(model.down), len(model.up)] == [8, 8]
    assert [d.conv.kernel_size[0] for d in model.down] == [7, 5, 5, 3, 3, 3, 3, 3]
    assert [d.conv.out_channels for d in model.down] == [1, 2, 4, 8, 8, 8, 8, 8]
    assert [d.conv.stride[0] for d in model.down] == [2] * 8
    assert [u.conv.out_channels for u in model.up] == [8, 8, 8, 8, 4, 2, 1, 1]
    assert isinstance(model.down[0].norm, nn.Identity) and isinstance(model.up[-1].norm, nn.Identity)
    assert all(isinstance(part.norm, nn.BatchNorm2d) for part in [*model.down[1:], *model.up[:-1]])
    assert model.up[0].activation.negative_slope == 0.2
    assert model(drawn(1, 1, 36, 28), holes(1, 1, 36, 28)).shape == (1, 1, 36, 28)


def test_all_layers_take_the_scale():
    assert {m.scale for m in net(scale="major").modules() if isinstance(m, PartialConv2d)} == {"major"}
    image, keep = drawn(1, 1, 16, 16), holes(1, 1, 16, 16)
    assert not torch.allclose(net(scale="major")(image, keep), net()(image, keep))


def test_frozen_norms_of_the_encoder_stay():
    model = net(depth=3).train()
    model(drawn(2, 1, 16, 16), holes(2, 1, 16, 16))
    model.freeze_encoder_norms()
    model.eval().train()
    down, up = ([m for m in part.modules() if isinstance(m, nn.BatchNorm2d)] for part in (model.down, model.up))
    assert not any(m.training for m in down) and all(m.training for m in up)
    before = [m.running_mean.clone() for m in (*down, *up)]
    model(drawn(2, 1, 16, 16, seed=5), holes(2, 1, 16, 16)).sum().backward()
    moved = [not torch.equal(m.running_mean, b) for m, b in zip((*down, *up), before, strict=True)]
    assert moved == [False] * len(down) + [True] * len(up)
    assert all(m.weight.grad is None and m.bias.grad is None for m in down)
    assert all(m.weight.grad is not None for m in up)
    assert all(d.conv.weight.grad is not None for d in model.down)


# ---------------------------------------------------------------------------------------- bad input

IMAGE = torch.zeros(2, 1, 8, 8)
ALL = torch.ones(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (ALL.bool(), TypeError, r"keep: torch.bool, expected a tensor of floats"),
        (ALL.long(), TypeError, r"keep: torch.int64"),
        (ALL.numpy(), TypeError, r"keep: float32|keep: ndarray"),
        (ALL[:1], ValueError, r"keep: shape \(1, 1, 8, 8\), expected \(2, 1, 8, 8\)"),
        (ALL[..., :7], ValueError, r"keep: shape \(2, 1, 8, 7\)"),
        (ALL[:, 0], ValueError, r"keep: shape \(2, 8, 8\)"),
        (ALL * 255, ValueError, r"keep: values from 255 to 255"),
        (ALL - 1.5, ValueError, r"keep: values from -0.5"),
        (ALL * float("nan"), ValueError, r"keep: values from nan"),
        (ALL * 0, ValueError, r"keep: an image is all hole"),
        (torch.cat((ALL[:1], ALL[:1] * 0)), ValueError, r"keep: an image is all hole"),
        (ALL.expand(2, 2, 8, 8), ValueError, r"keep: 2 masks"),
    ],
)
def test_bad_masks(keep, error, message):
    with pytest.raises(error, match=message):
        net()(IMAGE, keep)


@pytest.mark.parametrize("image", [IMAGE[0], IMAGE.expand(2, 3, 8, 8)])
def test_bad_images(image):
    with pytest.raises(ValueError, match="image: expected shape"):
        net()(image, ALL)


def test_bad_layers():
    with pytest.raises(ValueError, match="scale: 'nvidia' is not one of liu, major"):
        PartialConv2d(1, 1, 3, scale="nvidia")
    with pytest.raises(ValueError, match="scale"):
        PartialUNet(2, 2, scale="printed")
    for depth, base in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match="depth and base"):
            PartialUNet(depth, base)
    for masks, shares in ((2, (2, 2)), (2, (5,)), (2, None), (5, (2, 3))):
        with pytest.raises(ValueError, match=rf"keep: {masks} masks"):
            layer(5, 1, 3)(drawn(1, 5, 4, 4), torch.ones(1, masks, 4, 4), shares)
