import numpy as np
import pytest
import torch

from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms import variants as mv
from xai_lib.studies.mammograms.thesis_methods import GREY, THESIS, Setup, method_maps

CHOSEN = mn.WholeSettings(patients=2, size=(128, 64))
SETUP = Setup(window=32, stride=16, steps=4, segments=12, samples=12)


@pytest.fixture(scope="module")
def scene():
    cases, twins = mn.cases(CHOSEN, 0), mn.cases(CHOSEN, 0, twins=True)
    return mv.scene_of(cases, twins, int(cases.labels.argmax()))


@pytest.fixture(scope="module")
def networks():
    return {name: mn.fresh("squeezenet1_1", None, seed) for seed, name in enumerate(("trained", "untrained"))}


def test_scene_is_what_the_network_saw(scene):
    assert torch.equal((scene.case.image * 255).round() / 255, scene.case.image)
    changed = (scene.case.image != scene.twin)[0].numpy()
    assert changed.any() and not changed[~scene.breast].any()  # the lesion alone
    assert scene.case.mask.numpy()[changed].mean() > 0.1


def test_names():
    assert list(mv.THE_SEVEN) == list(THESIS)
    assert set(mv.THE_SEVEN) | set(mv.CHEAP) | set(mv.CONTROLS) == set(mv.MAIN)
    assert not set(mv.CHEAP) & set(mv.COSTLY) and not set(mv.ABLATIONS) & set(mv.MAIN)
    for name, variant in mv.VARIANTS.items():
        assert not variant.reference or variant.reference in mv.VARIANTS, name


def test_plain_variants_are_the_thesis_maps(scene, networks):
    names = ["saliency", "occlusion", "grad_cam", "deeplift_as_captum", "guided_grad_cam_as_captum"]
    expected = method_maps(networks["trained"], scene.case.image[None], names, SETUP, progress=False)
    for name in names:
        found = mv.explain(mv.VARIANTS[name], scene, networks, SETUP)
        np.testing.assert_allclose(found.map, expected[name][0], atol=1e-6)
        assert found.seconds > 0 and found.forward >= 1
    assert (mv.explain(mv.VARIANTS["brightness"], scene, {}, SETUP).map == scene.case.image[0].numpy()).all()


def test_untrained_is_another_network(scene, networks):
    mine = mv.explain(mv.VARIANTS["saliency"], scene, networks, SETUP).map
    other = mv.explain(mv.VARIANTS["untrained saliency"], scene, networks, SETUP).map
    assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] < 0.9
    with pytest.raises(ValueError, match="networks: 'untrained' is missing, got trained"):
        mv.explain(mv.VARIANTS["untrained saliency"], scene, {"trained": networks["trained"]}, SETUP)


def test_options(scene):
    def of(name):
        return mv.options(mv.VARIANTS[name], scene, SETUP)

    assert of("saliency") == {}
    assert of("occlusion")["baseline"] == GREY and of("occlusion")["edge"] == 0
    assert of("occlusion, black")["baseline"] == 0.0
    assert of("occlusion, soft edge")["edge"] == 12  # 0.4 of 32
    assert of("occlusion, twin")["baseline"] is scene.twin
    assert of("kernel_shap, 25 samples")["samples"] == 12  # no more than the setup's
    assert of("kernel_shap, other seed")["seed"] == 1
    assert of("untrained integrated_gradients")["steps"] == 4


def test_blur_removes_the_lesion_and_keeps_the_mean(scene):
    filled = mv.fill_of("blur", scene, SETUP)
    assert filled.shape == scene.case.image.shape and filled.std() < scene.case.image.std()
    assert float(filled.mean()) == pytest.approx(float(scene.case.image.mean()), abs=0.02)


def test_twin_fill_asks_only_where_the_lesion_is(scene, networks):
    """Windows in which image and twin are equal are not run, and their pixels are 0."""
    found = mv.explain(mv.VARIANTS["occlusion, twin"], scene, networks, SETUP)
    everywhere = mv.explain(mv.VARIANTS["occlusion"], scene, networks, SETUP)
    assert found.forward < everywhere.forward
    rows, cols = np.nonzero((scene.case.image != scene.twin)[0].numpy())
    assert found.map[: max(rows.min() - 31, 0)].any() == False  # noqa: E712
    assert found.map[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1].any()


def test_breast_segments(scene):
    labels = mv.breast_segments(scene.case.image[0].numpy(), scene.breast, 12)
    names = labels.unique()
    assert names.tolist() == list(range(len(names))) and len(names) > 6
    assert (labels.numpy()[~scene.breast] == 0).all() and (labels.numpy()[scene.breast] > 0).all()


def test_bad_fills_are_named(scene, networks):
    with pytest.raises(ValueError, match="fill: 'white' is unknown, expected one of grey, black, blur, twin"):
        mv.explain(mv.Variant("occlusion", fill="white"), scene, networks, SETUP)
    bare = mv.Scene(scene.case, None, scene.breast)
    with pytest.raises(ValueError, match="fill: 'twin' needs a healthy twin"):
        mv.explain(mv.VARIANTS["occlusion, twin"], bare, networks, SETUP)


def test_few_samples_are_no_warning_inside(scene, networks, recwarn):
    with mv.few_samples():
        mv.explain(mv.VARIANTS["kernel_shap"], scene, networks, SETUP)
    assert not [w for w in recwarn if "samples" in str(w.message)]
