import copy
import inspect

import pytest
import torch
from torch import nn

from xai_lib import models
from xai_lib.attribution import METHODS, Refused, attribute, attribute_all, options
from xai_lib.attribution.engine import PER_IMAGE

H, W = 40, 32
SEGMENTS = (torch.arange(H)[:, None] // 10 * 4 + torch.arange(W)[None] // 8).contiguous()  # 16 tiles
SMALL = {
    "integrated_gradients": {"steps": 8},
    "occlusion": {"window": 16, "stride": 8},
    "lime": {"segments": SEGMENTS, "samples": 40},
    "kernel_shap": {"segments": SEGMENTS, "samples": 200},
    "gradient_shap": {"samples": 4},
    "deep_shap": {"baselines": torch.zeros(2, 1, H, W)},
}
COMPLETE = {"integrated_gradients", "deeplift", "kernel_shap", "gradient_shap", "deep_shap"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.build("squeezenet1_1", outputs=2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def x():
    return torch.rand(2, 1, H, W, generator=torch.Generator().manual_seed(1))


def test_there_are_thirteen_methods():
    assert len(METHODS) == 13
    for method, function in METHODS.items():
        assert function.__name__ == method and function.__doc__


def test_per_image_options_exist():
    known = {name for method in METHODS for name in options(method)}
    assert set(PER_IMAGE) <= known


@pytest.mark.parametrize("method", METHODS)
def test_one_result_type(method, model, x):
    before = copy.deepcopy(model.state_dict())
    kept = {name: (p, p.requires_grad) for name, p in model.named_parameters()}
    a = attribute(method, model, x, [0, 1], progress=False, **SMALL.get(method, {}))
    assert a.method == method and a.map.shape == (2, H, W) and a.map.dtype == torch.float32
    assert a.target.tolist() == [0, 1]
    torch.testing.assert_close(a.scores, model(x)[[0, 1], [0, 1]].detach(), rtol=1e-4, atol=1e-5)
    assert a.map.abs().sum() > 0 and torch.isfinite(a.map).all() and not a.map.requires_grad
    assert (a.completeness_gap is not None) == (method in COMPLETE)
    assert a.forward_passes >= 2 and a.seconds > 0
    assert (a.grid is not None) == ("cam" in method)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(
        p is kept[n][0] and p.requires_grad == kept[n][1] and p.grad is None for n, p in model.named_parameters()
    )
    assert not model.training and not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("method", METHODS)
def test_images_are_explained_one_by_one(method, model, x):
    both = attribute(method, model, x, 1, progress=False, **SMALL.get(method, {})).map
    alone = attribute(method, model, x[1:], 1, progress=False, **SMALL.get(method, {})).map
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-5 * float(alone.abs().max()) + 1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_three_channels_and_a_bf16_model(method):
    torch.manual_seed(0)
    model = models.build("squeezenet1_1", in_channels=3, outputs=2).bfloat16()
    given = dict(SMALL.get(method, {}))
    if method == "deep_shap":
        given["baselines"] = torch.zeros(2, 3, H, W)
    a = attribute(method, model, torch.rand(1, 3, H, W), 1, progress=False, **given)
    assert a.map.shape == (1, H, W) and torch.isfinite(a.map).all()
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_inside_no_grad_and_inference_mode(method, guard, model, x):
    with guard():
        inside = attribute(method, model, x[:1].clone(), 0, progress=False, **SMALL.get(method, {})).map
    outside = attribute(method, model, x[:1], 0, progress=False, **SMALL.get(method, {})).map
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-6)


def test_a_constant_image_gives_no_nan(model):
    for method in METHODS:
        a = attribute(method, model, torch.full((1, 1, H, W), 0.5), 0, progress=False, **SMALL.get(method, {}))
        assert torch.isfinite(a.map).all(), method


def test_a_linear_model_has_one_answer():
    """Every method that compares with a baseline says w * (x - b)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double().eval()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    base = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    expected = (model[1].weight[1].detach().view(1, 1, 8, 8) * (x - base))[:, 0]
    pixels = torch.arange(64).view(8, 8)
    settings = {
        "integrated_gradients": {"baseline": base, "steps": 3},
        "deeplift": {"baseline": base},
        "occlusion": {"baseline": base, "window": 1, "stride": 1},
        "kernel_shap": {"baseline": base, "segments": pixels, "samples": 2000, "ridge": 0.0},
        "deep_shap": {"baselines": base},
        "gradient_shap": {"baselines": base, "samples": 3},
    }
    for method, given in settings.items():
        found = attribute(method, model, x, 1, progress=False, **given)
        torch.testing.assert_close(found.map, expected, rtol=1e-6, atol=1e-8, msg=method)
        assert found.map.dtype == torch.float64


def test_all_at_once_equals_one_by_one_with_fewer_passes(model, x):
    chosen = ["saliency", "gradient_x_input", "grad_cam", "layer_cam", "guided_backprop", "guided_grad_cam", "deeplift"]
    together = attribute_all([*chosen, "occlusion"], model, x, 1, settings={"occlusion": SMALL["occlusion"]})
    assert list(together) == [*chosen, "occlusion"]
    alone = {m: attribute(m, model, x, 1, progress=False) for m in chosen}
    for method in chosen:
        torch.testing.assert_close(together[method].map, alone[method].map, rtol=1e-4, atol=1e-6, msg=method)
    assert together["saliency"].forward_passes < sum(a.forward_passes for a in alone.values())


def test_settings_of_a_method_that_was_not_asked_for(model, x):
    with pytest.raises(ValueError, match="settings: 'lime' is not among the methods saliency"):
        attribute_all(["saliency"], model, x, 0, settings={"lime": {}})


def test_an_unknown_method(model, x):
    with pytest.raises(ValueError, match=r"method: 'gradcam' is unknown, expected one of saliency, gradient_x_input"):
        attribute("gradcam", model, x, 0)


def test_an_unknown_option_is_named_with_those_there_are(model, x):
    with pytest.raises(TypeError, match=r"n_steps: integrated_gradients has no such option, it has .*steps"):
        attribute("integrated_gradients", model, x, 0, n_steps=5)


def test_options_are_the_keyword_arguments():
    names = [p.name for p in inspect.signature(METHODS["occlusion"]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert list(options("occlusion")) == names


def test_no_image_and_train_mode(model, x):
    with pytest.raises(ValueError, match="x: expected at least one image"):
        attribute("saliency", model, x[:0], 0)
    with pytest.raises(ValueError, match="model: it is in train mode"):
        attribute("saliency", copy.deepcopy(model).train(), x, 0)


def test_a_missing_layer_lists_the_layers(model, x):
    with pytest.raises(ValueError, match=r"layer: 'layer9' is not in the model.*features"):
        attribute("grad_cam", model, x, 0, layer="layer9")


class Hungry(nn.Module):
    """Fails like a full GPU for more than `limit` images."""

    def __init__(self, model, limit):
        super().__init__()
        self.model, self.limit = model, limit

    def forward(self, x):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(x)


@pytest.mark.parametrize("method", METHODS)
def test_short_memory_costs_time_and_not_the_result(method, model):
    x = torch.rand(3, 1, H, W)
    hungry = Hungry(model, 2).eval()
    given = SMALL.get(method, {}) | ({"baselines": torch.zeros(4, 1, H, W)} if method == "deep_shap" else {})
    if "chunk" in options(method):
        given |= {"chunk": 8}
    a = attribute(method, hungry, x, 1, progress=False, **given)
    torch.testing.assert_close(
        a.map, attribute(method, model, x, 1, progress=False, **given).map, rtol=1e-3, atol=1e-5, msg=method
    )
    assert any("memory was short" in note for note in a.notes)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_leaves_the_model_as_it_was(method, model, x):
    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            self.model(x)
            raise KeyboardInterrupt

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        attribute(method, Interrupted().eval(), x[:1], 0, progress=False, **SMALL.get(method, {}))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks or "forward" in m.__dict__ for m in model.modules())


def test_a_layer_without_a_rule_is_refused_by_name():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    model = nn.Sequential(Odd(), nn.Flatten(), nn.Linear(16, 2)).eval()
    with pytest.raises(Refused, match="bessel"):
        attribute("deeplift", model, torch.rand(1, 1, 4, 4), 0)


def test_the_target_is_checked(model, x):
    with pytest.raises(ValueError, match="target: 2 is out of range"):
        attribute("saliency", model, x, 2)
