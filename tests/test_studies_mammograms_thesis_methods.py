"""The thesis's methods: names, options, and that the two "as Captum" are what Captum returns."""

import captum.attr as captum_attr
import pytest
import torch

from xai_lib.attribution import METHODS, attribute, options
from xai_lib.studies.mammograms import networks as mammogram_networks
from xai_lib.studies.mammograms import thesis_methods
from xai_lib.studies.mammograms.thesis_methods import EXTRAS, GREY, THESIS, Setup, method_maps

SMALL = Setup(window=16, stride=8, steps=4, segments=8, samples=80)
SIZE = (64, 48)


def network(architecture):
    """A network with random weights and batch-norm statistics that fit the images."""
    model = mammogram_networks.fresh(architecture, None, 0).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        for seed in range(5):
            model(images(8, seed))
    return model.eval()


def images(n=2, seed=9):
    """Blurred noise with a little grain, so that SLIC finds segments."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 8, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1)
    return (0.9 * smooth + 0.1 * torch.rand(n, 1, *SIZE, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def relu6():
    return network("mobilenet_v2")


@pytest.fixture(scope="module")
def silu():
    return network("efficientnet_b0")


@pytest.fixture(scope="module")
def relu():
    return mammogram_networks.fresh("squeezenet1_1", None, 0).eval()


# names


def test_names():
    assert len(THESIS) == 7 and set(THESIS) <= set(METHODS)
    assert not set(THESIS) & set(EXTRAS)
    assert pytest.approx((0.485 + 0.456 + 0.406) / 3) == GREY == Setup().baseline


def test_setup_is_the_thesis_s():
    """Section 3.2.4: 200 steps, windows of 60 every 30 pixels, 150 segments, 200 samples."""
    assert Setup().options("integrated_gradients") == {"steps": 200, "baseline": GREY}
    assert Setup().options("occlusion") == {"window": 60, "stride": 30, "baseline": GREY}
    assert Setup().options("lime") == Setup().options("kernel_shap")
    assert Setup().options("lime") == {"segments": 150, "samples": 200, "baseline": GREY, "seed": 0}
    assert Setup().options("saliency") == Setup().options("grad_cam") == {}
    for name in THESIS:
        assert set(Setup().options(name)) <= set(options(name))


def test_every_map(relu6):
    names = THESIS + EXTRAS
    maps = method_maps(relu6, images(), names, SMALL, progress=False)
    assert list(maps) == list(names)
    for name, found in maps.items():
        assert found.shape == (2, *SIZE) and found.dtype == torch.float32 and torch.isfinite(found).all(), name
        assert not found.requires_grad and float(found.abs().max()) > 0, name
        assert not torch.equal(found[0], found[1]), name
    assert float(maps["saliency"].min()) >= 0
    assert not relu6.training and all(p.grad is None for p in relu6.parameters())


def test_order_and_choice_of_names(relu):
    names = ["deeplift", "grad_cam", "saliency"]
    maps = method_maps(relu, images(1), names, SMALL, progress=False)
    assert list(maps) == names
    for name in names:
        alone = method_maps(relu, images(1), (name,), SMALL, progress=False)[name]
        torch.testing.assert_close(maps[name], alone)
    assert method_maps(relu, images(1), [], SMALL) == {}


# options


@pytest.mark.parametrize("name", THESIS)
def test_maps_are_the_engine_s_with_the_setup(relu, name):
    found = method_maps(relu, images(1), [name], SMALL, progress=False)[name]
    given = SMALL.options(name)
    torch.testing.assert_close(found, attribute(name, relu, images(1), 1, progress=False, **given).map)


def record(monkeypatch):
    """The options of every call of the engine, by method; the maps are zero."""
    seen = {}

    class Zero:
        map = torch.zeros(2, *SIZE)

    def attribute(name, model, x, target, **options):
        seen[name] = {"target": target, **options}
        return Zero

    def attribute_all(names, model, x, target, settings, **options):
        seen.update({name: {"target": target, **settings[name], **options} for name in names})
        return dict.fromkeys(names, Zero)

    monkeypatch.setattr(thesis_methods, "attribute", attribute)
    monkeypatch.setattr(thesis_methods, "attribute_all", attribute_all)
    return seen


def test_options_reach_the_engine(relu, monkeypatch):
    seen = record(monkeypatch)
    setup = Setup(window=7, stride=3, steps=5, segments=11, samples=13, baseline=0.25, seed=17)
    method_maps(relu, images(), THESIS, setup, target=0, precision="bf16", progress=False)
    how = {"target": 0, "progress": False}
    exact, fast = how | {"precision": "float32"}, how | {"precision": "bf16"}
    regression = {"segments": 11, "samples": 13, "baseline": 0.25, "seed": 17} | fast
    assert seen == {
        "saliency": how,
        "integrated_gradients": {"steps": 5, "baseline": 0.25} | exact,
        "occlusion": {"window": 7, "stride": 3, "baseline": 0.25} | fast,
        "guided_grad_cam": how,
        "lime": regression,
        "kernel_shap": regression,
        "deeplift": {"baseline": 0.25} | how,  # from the passes that the gradient methods share, in float32
    }


def test_given_options_replace_the_setup_s(relu, monkeypatch):
    seen = record(monkeypatch)
    method_maps(relu, images(), ["occlusion", "deeplift"], SMALL, options={"occlusion": {"stride": 2, "baseline": 0}})
    assert (seen["occlusion"]["window"], seen["occlusion"]["stride"], seen["occlusion"]["baseline"]) == (16, 2, 0)
    assert seen["deeplift"]["baseline"] == GREY and seen["deeplift"]["target"] == 1  # malignant


# as Captum


def last_layer(model):
    return list(model.features.children())[-1]


@pytest.mark.parametrize("architecture", ["relu6", "silu"])
@pytest.mark.filterwarnings("ignore")  # Captum warns about its own hooks
def test_guided_grad_cam_as_captum(architecture, request):
    model, x = request.getfixturevalue(architecture), images()
    found = method_maps(model, x, ["guided_grad_cam_as_captum"], SMALL, progress=False)["guided_grad_cam_as_captum"]
    captum = captum_attr.GuidedGradCam(model, last_layer(model))
    want = captum.attribute(x.clone().requires_grad_(), 1, interpolate_mode="bilinear").sum(1).detach()
    assert float(want.abs().max()) > 0
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))
    guided = method_maps(model, x, ["guided_grad_cam"], SMALL, progress=False)["guided_grad_cam"]
    assert torch.corrcoef(torch.stack((found.flatten(), guided.flatten())))[0, 1] < 0.9  # the method as published


@pytest.mark.parametrize("architecture", ["relu6", "silu"])
@pytest.mark.filterwarnings("ignore")
def test_deeplift_as_captum(architecture, request):
    model, x = request.getfixturevalue(architecture), images()
    x0 = torch.full_like(x, GREY)
    found = method_maps(model, x, ["deeplift_as_captum", "deeplift"], SMALL, progress=False)
    want = captum_attr.DeepLift(model).attribute(x, x0, target=1).sum(1).detach()
    torch.testing.assert_close(found["deeplift_as_captum"], want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))
    plain = (attribute("gradient_x_input", model, x, 1, progress=False).map, found["deeplift_as_captum"])
    assert not torch.allclose(*plain)  # the baseline is grey, not black
    with torch.no_grad():
        change = (model(x) - model(x0))[:, 1]
    torch.testing.assert_close(found["deeplift"].sum((1, 2)), change, rtol=1e-3, atol=1e-4)
    missed = (found["deeplift_as_captum"].sum((1, 2)) - change).abs()
    assert missed.max() > 0.1 * change.abs().max()


def test_as_captum_leaves_the_model_alone(silu):
    before = {name: value.clone() for name, value in silu.state_dict().items()}
    logits = silu(images()).detach()
    method_maps(silu, images(), ["deeplift_as_captum"], SMALL, progress=False)
    assert torch.equal(silu(images()).detach(), logits) and all(p.grad is None for p in silu.parameters())
    assert all(torch.equal(value, before[name]) for name, value in silu.state_dict().items())


# bad input


@pytest.mark.parametrize("name", ["grad_cam_as_captum", "shap", "layer_cam", ""])
def test_unknown_name(relu, name):
    with pytest.raises(
        ValueError, match=rf"names: '{name}' is unknown, expected some of saliency, .*deeplift_as_captum"
    ):
        method_maps(relu, images(), ["saliency", name], SMALL)


def test_unknown_option(relu):
    with pytest.raises(TypeError, match="radius: occlusion has no such option"):
        method_maps(relu, images(1), ["occlusion"], SMALL, options={"occlusion": {"radius": 3}}, progress=False)


def test_target_that_is_not_there(relu):
    with pytest.raises(ValueError, match="target"):
        method_maps(relu, images(1), ["saliency"], SMALL, target=2, progress=False)
