import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from xai_lib.attribution import calls
from xai_lib.attribution.core import Refused
from xai_lib.attribution.rules import DEEPLIFT, GUIDED, PLAIN, RULES, Rules, refuse_unseen

SHAPE = (2, 4, 6, 6)


def tensor(seed, *shape, scale=2.0):
    return scale * torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explained(f, x, baseline=None, downstream=None):
    """Output of f, and the gradient of sum(downstream * f(x)) by x under every rule."""
    baseline = torch.zeros_like(x[:1]) if baseline is None else baseline
    before = Rules(record=True)
    with before:
        f(baseline.clone().requires_grad_().clone())
    rules = Rules(guided=True, references=before.calls)
    leaf = x.clone().requires_grad_()
    with rules:
        y = f(leaf.clone())
    found = {}
    for rule in RULES:
        rules.rule = rule
        g = torch.ones_like(y) if downstream is None else downstream
        (found[rule],) = torch.autograd.grad(y, leaf, g, retain_graph=True)
    return y.detach(), found


def native(f, x, downstream=None):
    leaf = x.clone().requires_grad_()
    y = f(leaf.clone())
    (g,) = torch.autograd.grad(y, leaf, torch.ones_like(y) if downstream is None else downstream)
    return y.detach(), g


# ------------------------------------------------------------------------------------------ every name of the table

PRELU = nn.PReLU(4, dtype=torch.float64).requires_grad_(False)
FORMS = {
    "relu": [
        nn.ReLU(),
        F.relu,
        torch.relu,
        lambda z: z.relu(),
        nn.ReLU(inplace=True),
        torch.relu_,
        lambda z: z.relu_(),
    ],
    "relu6": [F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), lambda z: F.relu6(z, True)],
    "hardtanh": [nn.Hardtanh(), F.hardtanh, nn.Hardtanh(0.0, 6.0, inplace=True), F.hardtanh_],
    "leaky_relu": [nn.LeakyReLU(), F.leaky_relu, nn.LeakyReLU(0.2, inplace=True), F.leaky_relu_],
    "prelu": [PRELU, lambda z: F.prelu(z, PRELU.weight), lambda z: z.prelu(PRELU.weight)],
    "elu": [nn.ELU(), F.elu, nn.ELU(inplace=True), F.elu_],
    "celu": [nn.CELU(), F.celu, torch.celu, nn.CELU(inplace=True)],
    "selu": [nn.SELU(), F.selu, torch.selu, nn.SELU(inplace=True)],
    "hardswish": [nn.Hardswish(), F.hardswish, nn.Hardswish(inplace=True)],
    "threshold": [nn.Threshold(0.1, 0.0), lambda z: F.threshold(z, 0.1, 0.0), nn.Threshold(0.1, 0.0, inplace=True)],
    "clamp": [
        lambda z: z.clamp(min=0),
        lambda z: torch.clamp(z, 0, 3),
        lambda z: torch.clamp(input=z, min=0),
        lambda z: z.clamp_(0),
    ],
    "clamp_min": [lambda z: z.clamp_min(0), lambda z: torch.clamp_min(z, 0), lambda z: z.clamp_min_(0)],
    "clip": [lambda z: z.clip(0, 1), lambda z: torch.clip(z, -1, 1), lambda z: z.clip_(0)],
    "silu": [nn.SiLU(), F.silu, nn.SiLU(inplace=True)],
    "gelu": [nn.GELU(), F.gelu, nn.GELU("tanh")],
    "mish": [nn.Mish(), F.mish, nn.Mish(inplace=True)],
    "softplus": [nn.Softplus(), F.softplus],
    "sigmoid": [nn.Sigmoid(), torch.sigmoid, F.sigmoid, lambda z: z.sigmoid(), torch.sigmoid_, torch.special.expit],
    "tanh": [nn.Tanh(), torch.tanh, F.tanh, lambda z: z.tanh(), torch.tanh_, torch.ops.aten.tanh],
    "logsigmoid": [nn.LogSigmoid(), F.logsigmoid],
    "exp": [torch.exp, lambda z: z.exp(), lambda z: z.exp_()],
    "square": [torch.square, lambda z: z.square(), lambda z: z.square_()],
    "pow": [lambda z: z**3, lambda z: z.pow(2), lambda z: torch.pow(z, 2), lambda z: z.pow_(3)],
    "hardsigmoid": [nn.Hardsigmoid(), F.hardsigmoid, nn.Hardsigmoid(inplace=True)],
    "abs": [abs, torch.abs, lambda z: z.abs(), lambda z: z.abs_(), torch.absolute],
    "clamp_max": [lambda z: z.clamp_max(1), lambda z: torch.clamp_max(z, 1), lambda z: z.clamp_max_(1)],
}


def test_every_element_wise_name_has_its_forms_here():
    assert set(FORMS) == calls.ELEMENTWISE


@pytest.mark.parametrize(("name", "f"), [(name, f) for name, forms in FORMS.items() for f in forms])
def test_element_wise(name, f):
    x, baseline, downstream = tensor(0), tensor(1, 1, *SHAPE[1:]), tensor(2)
    x[0, 0, 0] = baseline[0, 0, 0]  # the same there: no secant
    y, found = explained(f, x, baseline, downstream)
    expected, slope = native(f, x)
    assert_close(y, expected)
    assert_close(found[PLAIN], downstream * slope)
    rise = expected - native(f, baseline)[0]
    assert_close(found[DEEPLIFT] * (x - baseline), downstream * rise, atol=1e-12, rtol=1e-12)
    assert_close(found[DEEPLIFT][0, 0, 0], found[PLAIN][0, 0, 0])
    guided = downstream.clamp(min=0) * slope * (x > 0) if name in calls.RECTIFIERS else downstream * slope
    assert_close(found[GUIDED], guided)


def test_relu_is_exact_however_small_the_step():
    """Smooth calls take the gradient there, calls with a kink may not."""
    x, baseline = torch.tensor([[[[1e-9]]]]), torch.tensor([[[[-3e-9]]]])
    assert explained(F.relu, x, baseline)[1][DEEPLIFT].item() == pytest.approx(0.25)
    assert explained(F.silu, x, baseline)[1][DEEPLIFT].item() == pytest.approx(0.5)


W = {
    k: tensor(i, *s) for i, (k, s) in enumerate({"c": (3, 4, 2, 2), "t": (4, 3, 2, 2), "l": (5, 6), "m": SHAPE}.items())
}
REFLECTING = nn.Conv2d(4, 2, 3, padding="same", padding_mode="reflect").double().requires_grad_(False)
STATISTICS = (tensor(20, 4), tensor(21, 4).abs(), tensor(22, 4), tensor(23, 4))  # mean, variance, weight, bias
AFFINE = {
    "add": [lambda x: x + x, lambda x: 1 + x, lambda x: torch.add(x, W["m"], alpha=2), lambda x: x.add_(x)],
    "sub": [lambda x: x - W["m"], lambda x: torch.sub(x, 1), lambda x: x.sub_(1), lambda x: x.subtract(2)],
    "rsub": [lambda x: 1 - x, lambda x: torch.rsub(x, 2)],
    "neg": [lambda x: -x, torch.negative, lambda x: x.neg_()],
    "cat": [lambda x: torch.cat([x, W["m"], x], 1), lambda x: torch.concat((x, x)), lambda x: torch.cat(tensors=[x])],
    "stack": [lambda x: torch.stack([x, 2 * x])],
    "hstack": [lambda x: torch.hstack([x, x])],
    "vstack": [lambda x: torch.vstack([x, x])],
    "mean": [lambda x: x.mean((2, 3)), lambda x: torch.mean(x, 1, keepdim=True)],
    "sum": [lambda x: x.sum(1), torch.sum],
    "avg_pool1d": [lambda x: F.avg_pool1d(x.flatten(2), 2)],
    "avg_pool2d": [nn.AvgPool2d(3, 2, 1, ceil_mode=True), lambda x: F.avg_pool2d(x, 2)],
    "avg_pool3d": [nn.AvgPool3d(2)],
    "adaptive_avg_pool1d": [lambda x: F.adaptive_avg_pool1d(x.flatten(2), 3)],
    "adaptive_avg_pool2d": [nn.AdaptiveAvgPool2d(1), lambda x: F.adaptive_avg_pool2d(x, (4, 5))],
    "adaptive_avg_pool3d": [nn.AdaptiveAvgPool3d(2)],
    "interpolate": [lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), nn.Upsample((3, 9))],
    "pad": [lambda x: F.pad(x, (1, 2), value=3.0), nn.ZeroPad2d(1), nn.ReflectionPad2d(2)],
    "flatten": [nn.Flatten(), lambda x: torch.flatten(x, 1), lambda x: x.flatten(1)],
    "unflatten": [nn.Unflatten(1, (2, 2)), lambda x: x.unflatten(1, (2, 2))],
    "view": [lambda x: x.view(2, -1)],
    "view_as": [lambda x: x.view_as(W["m"])],
    "reshape": [lambda x: x.reshape(2, -1), lambda x: torch.reshape(x, (2, -1))],
    "reshape_as": [lambda x: x.reshape_as(W["m"])],
    "permute": [lambda x: x.permute(0, 2, 3, 1), lambda x: torch.permute(x, (1, 0, 2, 3))],
    "transpose": [lambda x: x.transpose(1, 2), lambda x: torch.transpose(x, 1, 2)],
    "swapaxes": [lambda x: x.swapaxes(1, 2)],
    "swapdims": [lambda x: x.swapdims(1, 2)],
    "movedim": [lambda x: x.movedim(1, 3)],
    "t": [lambda x: x[0, 0].t()],
    ".T": [lambda x: x[0, 0].T],
    ".mT": [lambda x: x.mT],
    "getitem": [lambda x: x[:, 1:], lambda x: x[..., [0, 2]], lambda x: x[:, None]],
    "setitem": [lambda x: assigned(torch.zeros(2, 4, 6, 6, dtype=x.dtype), x[:, :2]), lambda x: assigned(x, 1.0)],
    "select": [lambda x: x.select(1, 2)],
    "narrow": [lambda x: x.narrow(1, 0, 2)],
    "chunk": [lambda x: x.chunk(2, 1)[1], lambda x: torch.chunk(x, 2, 1)[0]],
    "split": [lambda x: x.split(3, 1)[1], lambda x: torch.split(x, [1, 3], 1)[0]],
    "tensor_split": [lambda x: x.tensor_split(2, 1)[0]],
    "unbind": [lambda x: x.unbind(1)[2]],
    "squeeze": [lambda x: x[:, :1].squeeze(1), lambda x: x[:, :1].squeeze_(1)],
    "unsqueeze": [lambda x: x.unsqueeze(1), lambda x: torch.unsqueeze(x, 0)],
    "expand": [lambda x: x[:, :1].expand(-1, 5, -1, -1)],
    "expand_as": [lambda x: x[:, :1].expand_as(W["m"])],
    "broadcast_to": [lambda x: x[:, :1].broadcast_to(W["m"].shape)],
    "repeat": [lambda x: x.repeat(1, 2, 1, 1)],
    "tile": [lambda x: x.tile(2, 2)],
    "repeat_interleave": [lambda x: x.repeat_interleave(2, 1)],
    "clone": [lambda x: x.clone()],
    "contiguous": [lambda x: x.contiguous()],
    "copy": [lambda x: torch.zeros_like(x).copy_(x), lambda x: torch.empty(SHAPE, dtype=x.dtype).copy_(x)],
    "to": [lambda x: x.to(torch.float32).to(torch.float64) * 0 + x, lambda x: x.to("cpu")],
    "float": [lambda x: x.float().double() * 0 + x],
    "double": [lambda x: x.double()],
    "type": [lambda x: x.type(torch.float64)],
    "type_as": [lambda x: x.type_as(W["m"])],
    "roll": [lambda x: x.roll(1, 2)],
    "flip": [lambda x: x.flip(2)],
    "cumsum": [lambda x: x.cumsum(2)],
    "pixel_shuffle": [nn.PixelShuffle(2)],
    "pixel_unshuffle": [nn.PixelUnshuffle(2)],
    "where": [lambda x: torch.where(W["m"] > 0, x, 2 * x), lambda x: x.where(W["m"] > 0, 0.0)],
    "masked_fill": [lambda x: x.masked_fill(W["m"] > 0, 1.0), lambda x: x.masked_fill_(W["m"] > 0, 1.0)],
    "index_select": [lambda x: x.index_select(1, torch.tensor([0, 3]))],
    "conv1d": [lambda x: F.conv1d(x.flatten(2), W["c"].flatten(2))],
    "conv2d": [lambda x: F.conv2d(x, W["c"], dilation=2), REFLECTING],
    "conv3d": [lambda x: F.conv3d(x[:, None], W["t"][:, None, 0:2])],
    "conv_transpose1d": [lambda x: F.conv_transpose1d(x.flatten(2), W["t"].flatten(2))],
    "conv_transpose2d": [lambda x: F.conv_transpose2d(x, W["t"])],
    "conv_transpose3d": [lambda x: F.conv_transpose3d(x[:, None], W["t"][:1, :, None])],
    "linear": [lambda x: F.linear(x, W["l"], torch.ones(5, dtype=x.dtype))],
    "matmul": [lambda x: x @ W["l"].mT, lambda x: W["l"] @ x, lambda x: torch.matmul(x, W["m"])],
    "mm": [lambda x: torch.mm(x[0, 0], W["l"].mT)],
    "bmm": [lambda x: torch.bmm(x[0], W["m"][0])],
    "mv": [lambda x: x[0, 0].mv(W["l"][0])],
    "dot": [lambda x: x[0, 0, 0].dot(W["l"][0])],
    "einsum": [lambda x: torch.einsum("nchw,ow->no", x, W["l"])],
    "addmm": [lambda x: torch.addmm(W["m"][0, 0], x[0, 0], W["m"][0, 1])],
    "mul": [lambda x: x * W["m"], lambda x: 3 * x, lambda x: x.mul_(2), lambda x: x.multiply(2)],
    "div": [lambda x: x / 3, lambda x: torch.div(x, W["m"]), lambda x: x.div_(2), lambda x: x.true_divide(2)],
    "batch_norm": [nn.BatchNorm2d(4).double().requires_grad_(False).eval(), lambda x: F.batch_norm(x, *STATISTICS)],
    "dropout": [nn.Dropout().eval(), lambda x: F.dropout(x, 0.5, False), lambda x: torch.dropout(x, 0.5, train=False)],
    "dropout1d": [lambda x: F.dropout1d(x.flatten(2), 0.5, False)],
    "dropout2d": [nn.Dropout2d().eval()],
    "dropout3d": [lambda x: F.dropout3d(x, 0.5, False)],
    "alpha_dropout": [nn.AlphaDropout().eval()],
    "feature_alpha_dropout": [nn.FeatureAlphaDropout().eval()],
}  # fmt: skip


def assigned(whole, part):
    whole = whole.clone()
    whole[:, 1:3] = part
    return whole


def test_every_affine_name_has_its_forms_here():
    assert set(AFFINE) == calls.AFFINE | calls.AFFINE_IN_ONE | calls.DROPOUTS | {"div"}


@pytest.mark.parametrize(("name", "f"), [(name, f) for name, forms in AFFINE.items() for f in forms])
def test_affine(name, f):
    x, other = tensor(3), tensor(4)
    y, found = explained(f, x, torch.zeros_like(x))
    half = f(x.clone()) / 2 + f(other.clone()) / 2
    assert_close(f((x + other) / 2), half.to(y.dtype))  # it is affine
    for rule in RULES:
        assert_close(found[rule], native(f, x)[1])
    seen = set()

    class Names(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.add(calls.call_name(func))
            return func(*args, **(kwargs or {}))

    with Names():
        f(x.clone())
    assert name in seen


def test_augmented_assignment():
    def f(x):
        z = x * 1
        z += x
        z -= 1
        z *= W["m"][:1]
        z /= 2
        return z

    x = tensor(3)
    assert_close(explained(f, x)[1][GUIDED], W["m"][:1].expand(SHAPE))


@pytest.mark.parametrize("name", sorted(calls.ASKS))
def test_questions_are_answered(name):
    arguments = {"size": [0], "stride": [], "is_same_size": [W["m"]], "new_zeros": [2], "new_ones": [2]}
    arguments |= {"new_empty": [2], "new_full": [[2], 1.0], "full_like": [1.0]}
    with Rules():
        x = tensor(0).requires_grad_() * 1
        if name.startswith("."):
            assert getattr(x, name[1:], None) is not NotImplemented
        elif name == "len":
            assert len(x) == 2
        else:
            f = getattr(x, name, None)
            assert (f(*arguments.get(name, [])) if f else getattr(torch, name)(x, *arguments.get(name, []))) is not None


# --------------------------------------------------------------------------------------------------------- DeepLIFT


def test_secant_of_two_units_by_hand():
    """y = 3 relu(2x - 1) - relu(1 - x): at x = 2 against 0 the slopes are 3/4 (of -1 ... 3) and 1/2 (of 1 ... -1)."""
    x, baseline = torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.0]]]])
    y, found = explained(lambda x: 3 * F.relu(2 * x - 1) - F.relu(1 - x), x, baseline)
    assert y.item() == 9
    assert found[PLAIN].item() == 6
    assert found[DEEPLIFT].item() == pytest.approx(3 * 0.75 * 2 + 0.5)  # 5; times 2 is 9 - (-1)
    assert found[GUIDED].item() == 6  # the second unit is off


def test_product_by_hand():
    """y = a b with a = 2x, b = x + 1, at 3 against 1: 2 (4 + 2)/2 + (6 + 2)/2 = 10; times 2 is 24 - 4."""
    for f in (lambda x: (2 * x) * (x + 1), lambda x: (2 * x).mul_(x + 1), lambda x: torch.mul(2 * x, other=x + 1)):
        y, found = explained(f, torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1))
        assert (y.item(), found[DEEPLIFT].item(), found[PLAIN].item()) == (24, 10, 14)
    _, found = explained(lambda x: x * x, torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1))
    assert found[DEEPLIFT].item() == 4  # (9 - 1) / (3 - 1)


def test_gate_that_is_broadcast():
    x, baseline = tensor(0), tensor(1, 1, *SHAPE[1:])
    f = lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))  # noqa: E731
    _, found = explained(f, x, baseline)
    assert_close((found[DEEPLIFT] * (x - baseline)).sum((1, 2, 3)), (f(x) - f(baseline)).sum((1, 2, 3)))
    assert_close(found[GUIDED], native(f, x)[1])  # a gate is not guided


def test_max_pool_with_overlapping_windows_by_hand():
    """Windows of 3 with stride 1 over five pixels; the middle one is the maximum of all three windows.

    x = 1 2 9 3 0 against 4 0 1 0 2: maxima 9 9 9 against 4 1 2, so the middle gets 5 + 8 + 7 = 20 over a step of 8.
    """
    x, baseline = (torch.tensor(v, dtype=torch.float64)[None, None, None] for v in ([1, 2, 9, 3, 0], [4, 0, 1, 0, 2]))
    y, found = explained(lambda z: F.max_pool2d(z, (1, 3), 1), x, baseline)
    assert y.flatten().tolist() == [9, 9, 9]
    assert found[DEEPLIFT].flatten().tolist() == [0, 0, 20 / 8, 0, 0]
    _, found = explained(lambda z: F.max_pool2d(z, (1, 3), 1), baseline, x)  # exchanged: the same places
    assert found[DEEPLIFT].flatten().tolist() == [0, 0, 20 / 8, 0, 0]
    x, baseline = (torch.tensor(v, dtype=torch.float64)[None, None, None] for v in ([5, 1, 2], [0, 1, 4]))
    _, found = explained(lambda z: F.max_pool2d(z, (1, 3)), x, baseline)
    assert found[DEEPLIFT].flatten().tolist() == [1 / 5, 0, 0]  # 5 - 4 = 1 to the first pixel, whose step is 5


@pytest.mark.parametrize(
    "f",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 1, 1, dilation=2),
        nn.MaxPool2d((2, 3), (3, 1)),
        nn.AdaptiveMaxPool2d(4),
        lambda z: F.max_pool2d(z, 3, 1, 1),
        lambda z: torch.max_pool2d(z, 3, 2, 1),
        lambda z: F.adaptive_max_pool2d(z, 1),
    ],
)
def test_max_pool_is_complete_window_by_window(f):
    x, baseline = tensor(0, 2, 3, 7, 8), tensor(1, 1, 3, 7, 8)
    rise = f(x) - f(baseline)
    for window in range(0, rise.shape[2] * rise.shape[3], 3):
        downstream = torch.zeros_like(rise)
        downstream.flatten(2)[:, :, window] = 1
        _, found = explained(f, x, baseline, downstream)
        attributed = found[DEEPLIFT] * (x - baseline)
        assert_close(attributed.sum((2, 3)), rise.flatten(2)[:, :, window])
        assert int((attributed != 0).sum((2, 3)).max()) <= 1
    assert_close(explained(f, x, baseline)[1][PLAIN], native(f, x)[1])
    assert_close(explained(f, x, x)[1][DEEPLIFT], native(f, x)[1])  # no difference: the gradient


def test_baselines_one_for_every_image_or_one_for_all():
    f = lambda x: F.max_pool2d(F.silu(x), 3, 2, 1) * 2  # noqa: E731
    x, baselines = tensor(0), tensor(1)
    _, together = explained(f, x, baselines)
    for i in range(2):
        _, alone = explained(f, x[i : i + 1], baselines[i : i + 1])
        assert_close(together[DEEPLIFT][i : i + 1], alone[DEEPLIFT])


# ------------------------------------------------------------------------------------------------- in place, re-use


def test_guided_by_hand():
    x = torch.tensor([[[[-1.0, 2.0, 3.0]]]])
    downstream = torch.tensor([[[[1.0, 1.0, -1.0]]]])
    assert explained(F.relu, x, downstream=downstream)[1][GUIDED].tolist() == [[[[0, 1, 0]]]]
    downstream = torch.tensor([[[[1.0, -1.0, 1.0]]]])
    x = torch.tensor([[[[-1.0, 2.0, 7.0]]]])
    assert explained(F.relu6, x, downstream=downstream)[1][GUIDED].tolist() == [
        [[[0, 0, 0]]]
    ]  # below 0, g < 0, above 6


@pytest.mark.parametrize("relu", [torch.relu_, nn.ReLU(inplace=True), nn.Hardtanh(0.0, 6.0, inplace=True)])
def test_in_place_call_changes_its_input(relu):
    def f(x):
        z = 2 * x
        y = relu(z)
        return y + 3 * z  # z is relu(2x) by now

    x, baseline = tensor(0), tensor(1, 1, *SHAPE[1:])
    y, found = explained(f, x, baseline)
    assert_close(y, 4 * relu(2 * x))
    assert_close((found[DEEPLIFT] * (x - baseline)).sum(), (y - f(baseline)).sum())


@pytest.mark.parametrize("view", [lambda z: z.flatten(1), lambda z: z[:, 1:], lambda z: z.chunk(2, 1)[0]])
def test_in_place_call_on_a_view(view):
    def f(x):
        z = 2 * x
        torch.relu_(view(z)) if view(z).shape != (2, 2, 6, 6) else view(z).clone().relu_()
        return z

    x = tensor(0)
    y, found = explained(f, x, torch.zeros_like(x))
    assert_close(y, f(x))
    assert_close((found[DEEPLIFT] * x).sum(), y.sum())
    assert_close(found[PLAIN], native(f, x)[1])


def test_what_is_kept_survives_a_later_change_in_place():
    """x += conv(relu(x)): autograd allows it, so the input of the ReLU may not be kept as it is."""

    def f(x):
        z = x * 1
        h = 3 * F.relu(z)
        z += h
        s = z * torch.sigmoid(z)
        pooled = F.max_pool2d(s, 2)
        pooled += 1
        return pooled

    x, baseline = tensor(0), tensor(1, 1, *SHAPE[1:])
    y, found = explained(f, x, baseline)
    assert_close((found[DEEPLIFT] * (x - baseline)).sum((1, 2, 3)), (y - f(baseline)).sum((1, 2, 3)))


def test_module_that_is_used_twice():
    relu = nn.ReLU(inplace=True)
    f = lambda x: relu(2 - relu(x * 3))  # noqa: E731
    x, baseline = tensor(0), tensor(1)
    y, found = explained(f, x, baseline)
    assert_close(found[DEEPLIFT] * (x - baseline), y - f(baseline))


def test_nothing_keeps_the_graph_alive():
    gc.collect()
    gc.disable()
    try:
        before = Rules(record=True)
        with before:
            F.max_pool2d(F.relu(torch.zeros(SHAPE).requires_grad_() * 1), 2)
        rules = Rules(guided=True, references=before.calls)
        leaf = torch.ones(SHAPE).requires_grad_()
        with rules:
            y = F.max_pool2d(F.relu(leaf * 1), 2)
        alive = weakref.ref(leaf)
        del leaf, y
        assert alive() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (lambda x: x.softmax(1), "'softmax'"),
        (nn.Softmax(1), "'softmax'"),
        (nn.LayerNorm(6), "'layer_norm'"),
        (nn.GroupNorm(2, 4), "'group_norm'"),
        (lambda x: F.batch_norm(x, None, None, training=True), "'batch_norm'"),
        (lambda x: F.dropout(x, 0.5), "'dropout'"),
        (nn.Softsign(), "'softsign'"),
        (lambda x: x / x.mean(), "'div' of two activations"),
        (lambda x: 1 / x, "'rdiv'"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "'div'"),
        (lambda x: x @ x.mT, "'matmul' of two activations"),
        (lambda x: torch.einsum("nchw,nchw->n", x, x), "'einsum' of two activations"),
        (lambda x: F.conv2d(x, x[:, :, :2, :2]), "'conv2d' of two activations"),
        (lambda x: 2**x, "'rpow'"),
        (lambda x: x ** x.mean(), "'pow'"),
        (lambda x: x.amax((2, 3)), "'amax'"),
        (lambda x: x * (x > 0), "'gt'"),
        (lambda x: x * x.detach(), "'detach'"),
        (lambda x: x.data * x, r"'\.data'"),
        (lambda x: x * float(x.mean()), "'__float__'"),
        (lambda x: x.cumsum(0) if x.sum() else x, "'bool'"),
        (lambda x: x.numpy(force=True), "'numpy'"),
        (lambda x: x.long(), "'long'"),
        (lambda x: x.to(torch.int64), "'to' to something that has no gradient"),
        (lambda x: x + torch.rand_like(x), "'rand_like'"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "'max_pool2d_with_indices'"),
        (nn.LPPool2d(2, 2), "'lp_pool2d'"),
        (torch.sort, "'sort'"),
    ],
)
def test_a_call_without_a_rule_is_refused_by_name(f, name):
    with pytest.raises(Refused, match=f"no rule for {name}"), Rules():
        f(tensor(0).requires_grad_() * 1)


def test_inside_no_grad():
    def f(x):
        with torch.no_grad():
            scale = x.mean()
        return x * scale

    with pytest.raises(Refused, match=r"'mean' inside torch\.no_grad"), Rules():
        f(tensor(0).requires_grad_() * 1)


def test_calls_that_do_not_depend_on_the_image_are_free():
    with Rules():
        constant = torch.softmax(torch.randn(3), 0).sort().values
        y = tensor(0).requires_grad_() * constant.max()
    assert y.requires_grad


def test_control_flow_that_differs_from_the_baseline():
    runs = iter([[F.relu], [F.silu], [F.relu, F.relu], [F.relu], [F.relu], []])

    def f(x):
        for g in next(runs):
            x = g(x)
        return 1 * x

    for message in ("'silu', call 1", r"number of calls|'relu', call", "number of calls"):
        with pytest.raises(Refused, match=f"control flow differs between input and baseline.*({message})"):
            explained(f, tensor(0))


def test_call_whose_batch_is_not_the_images():
    f = lambda x: F.relu(x.reshape(-1, 2, 6, 6)).reshape(x.shape)  # noqa: E731
    with pytest.raises(Refused, match=r"'relu' gets shape \(4, 2, 6, 6\) for the images and \(2, 2, 6, 6\)"):
        explained(f, tensor(0), tensor(1, 1, *SHAPE[1:]))
    y, found = explained(f, tensor(0), tensor(1))
    assert_close((found[DEEPLIFT] * (tensor(0) - tensor(1))), y - f(tensor(1)))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_what_the_mode_cannot_see():
    leaf = torch.ones(2, requires_grad=True)
    with pytest.raises(Refused, match="autograd function 'Twice'"):
        refuse_unseen(nn.Identity(), 3 * Twice.apply(leaf))
    with pytest.raises(Refused, match="scripted module '0'"):
        refuse_unseen(nn.Sequential(torch.jit.script(nn.ReLU())), 3 * leaf)
    refuse_unseen(nn.ReLU(), 3 * leaf)
