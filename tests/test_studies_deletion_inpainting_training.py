"""Teaching the inpainter: losses by hand, holes, phases, kills and resumes, NaN, checkpoints and bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from test_inpainting import drawn, holes, net
from torch import nn

from xai_lib import models
from xai_lib.checkpoints import CheckpointError, card_path
from xai_lib.config import runtime
from xai_lib.studies.deletion import inpainting_losses as il
from xai_lib.studies.deletion import inpainting_training as it
from xai_lib.studies.deletion.inpainting_training import Settings
from xai_lib.training import Stack

CPU = runtime("cpu", threads=1)
SETTINGS = Settings((2, 2), (1e-2, 1e-3), batch_size=4, side=4, share=0.2, perceptual=0.5, style=2.0)
SIDE = 24


def same(x):
    """The image itself as its features."""
    return [x]


def slopes(count, seed=0):
    """Smooth images: what lies in a hole follows from what is around it."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, SIDE)
    rows = [0.2 + 0.35 * rng.random() * ramp[:, None] + 0.35 * rng.random() * ramp for _ in range(count)]
    images = torch.tensor(np.stack(rows)[:, None] * 255).round().to(torch.uint8)
    return Stack(images, torch.zeros(count, dtype=torch.int64))


def trained(model, settings=SETTINGS, seed=0, healthy=None, held_out=None, features=same, **options):
    healthy, held_out = slopes(8) if healthy is None else healthy, slopes(3, 1) if held_out is None else held_out
    return it.train(model, healthy, held_out, settings, features, CPU, seed, progress=False, **options)


# ---------------------------------------------------------------------------------------- losses by hand


def test_gram_by_hand():
    features = torch.tensor([[[[1.0, 2]], [[3, 4]]]])  # two channels, two pixels
    assert_allclose(il.gram(features), [[[5 / 4, 11 / 4], [11 / 4, 25 / 4]]])
    assert_allclose(il.gram(features.repeat(2, 1, 3, 1)), [[[5 / 4, 11 / 4], [11 / 4, 25 / 4]]] * 2)


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 1, 4, 1)])
def test_six_terms_by_hand(shape):
    """Four pixels, the second is a hole. comp is .0 .4 .4 .6; means of squares .3325, .17 and .14 of out, comp, truth.

    Unevenness: the hole and its neighbours are pixels 1 to 3, whose steps are .4 and 0.
    """
    truth, out, keep = (
        torch.tensor(row).view(shape) for row in ([0.0, 0.2, 0.4, 0.6], [0.1, 0.4, 0.4, 1.0], [1.0, 0.0, 1.0, 1.0])
    )
    terms = {name: value.item() for name, value in il.losses(out, truth, keep, same).items()}
    assert list(terms) == list(il.WEIGHTS)
    assert_allclose(terms["valid"], (0.1 + 0.4) / 4, rtol=1e-5)
    assert_allclose(terms["hole"], 0.2 / 4, rtol=1e-5)
    assert_allclose(terms["perceptual"], (0.1 + 0.2 + 0.4) / 4 + 0.2 / 4, rtol=1e-5)
    assert_allclose(terms["style_out"], 0.3325 - 0.14, rtol=1e-5)
    assert_allclose(terms["style_comp"], 0.17 - 0.14, rtol=1e-5)
    assert_allclose(terms["tv"], 0.4 / 4, rtol=1e-5)


def test_weights_are_those_of_liu():
    assert il.WEIGHTS == {"valid": 1, "hole": 6, "perceptual": 0.05, "style_out": 120, "style_comp": 120, "tv": 0.1}
    phases = {"epochs": (100, 50), "learning_rates": (1e-5, 1e-6), "batch_size": 1}
    shape = {"side": 8, "share": 400 * 64 / (576 * 448), "rows": None}
    assert Settings() == Settings(**phases, **shape, perceptual=0.05, style=120)


def test_terms_are_means_over_images_and_sums_over_features():
    out, truth, keep = drawn(2, 1, 6, 6), drawn(2, 1, 6, 6, seed=1), holes(2, 1, 6, 6)
    both = il.losses(out, truth, keep, same)
    each = [il.losses(*(x[i : i + 1] for x in (out, truth, keep)), same) for i in range(2)]
    twice = il.losses(out, truth, keep, lambda x: [x, x])
    for name, value in both.items():
        assert_allclose(value, (each[0][name] + each[1][name]) / 2, rtol=1e-5)
        assert_allclose(twice[name], value * (2 if name in ("perceptual", "style_out", "style_comp") else 1), rtol=1e-5)


def test_a_perfect_drawing_costs_only_the_image_s_own_unevenness():
    truth, keep = torch.full((1, 1, 6, 6), 0.3), holes(1, 1, 6, 6)
    assert all(value == 0 for value in il.losses(truth, truth, keep, same).values())
    none = il.losses(drawn(1, 1, 6, 6), truth, torch.ones_like(keep), same)
    assert none["hole"] == none["style_comp"] == none["tv"] == 0 and none["valid"] > 0


def test_stages_are_what_the_halving_layers_return_at_a_size_of_one():
    torch.manual_seed(0)
    halve = [nn.Conv2d(3, 2, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 4, 1), nn.AvgPool2d(2), nn.MaxPool2d(2)]
    model = models.Classifier(nn.Sequential(*halve), 4, {"in_channels": 1, "outputs": 1}).eval()
    examples, other = drawn(4, 1, 16, 16), drawn(2, 1, 16, 16, seed=1)
    features = il.stages(model, examples, CPU)
    assert [tuple(f.shape) for f in features(examples)] == [(4, 2, 8, 8), (4, 2, 4, 4), (4, 4, 2, 2)]
    for stage in features(examples):
        assert_allclose(stage.square().mean().item(), 1, rtol=1e-5)
    first = model.features[0](model.normalize(other))
    size = model.features[0](model.normalize(examples)).square().mean().sqrt()
    assert_allclose(features(other)[0].detach(), (first / size).detach(), rtol=1e-5)
    assert len(il.stages(model, examples, CPU, count=1)(other)) == 1


# ---------------------------------------------------------------------------------------- holes

TISSUE = torch.ones(2, 1, 64, 64, dtype=torch.bool)


def test_one_square_by_hand():
    tissue = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    tissue[..., 9, 6] = True
    keep = it.draw_holes(tissue, Settings(side=4, share=0.01), np.random.default_rng(0))
    for kept in keep[:, 0]:
        assert (kept == 0).nonzero().tolist() == [[row, col] for row in range(7, 11) for col in range(4, 8)]
    assert keep.dtype == torch.float32


def test_holes_cover_a_share_at_most_and_differ():
    settings, rng = Settings(side=4, share=0.2), np.random.default_rng(0)
    shares = torch.stack([(1 - it.draw_holes(TISSUE, settings, rng)).mean((1, 2, 3)) for _ in range(40)])
    assert 0 < shares.min() and shares.max() <= 0.2
    assert shares.std() > 0.02
    again, other = (it.draw_holes(TISSUE, settings, np.random.default_rng(seed)) for seed in (0, 1))
    assert torch.equal(again, it.draw_holes(TISSUE, settings, np.random.default_rng(0)))
    assert not torch.equal(again, other)


def test_holes_are_single_in_even_rows_and_clusters_in_odd_ones():
    """A random walk lies within its number of steps; single squares lie all over the image."""
    from scipy import ndimage

    settings, rng, parts = Settings(side=4, share=0.1), np.random.default_rng(0), {0: 0, 1: 0}
    for _ in range(20):
        for i, kept in enumerate(it.draw_holes(TISSUE, settings, rng)):
            parts[i] += ndimage.label(kept[0].numpy() == 0, np.ones((3, 3)))[1]
    assert parts[0] > 2 * parts[1]


def test_holes_start_in_the_tissue_and_may_stick_out_of_the_image():
    tissue = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    tissue[..., :2, 30:] = True
    keep = it.draw_holes(tissue, Settings(side=8, share=0.3), np.random.default_rng(0))
    assert keep.shape == tissue.shape
    assert (keep[0, 0] == 0).nonzero().numpy().min(0)[1] >= 26  # half a square left of the tissue


def test_a_band_holds_tissue_and_has_its_rows():
    rng = np.random.default_rng(0)
    for first, last in ((0, 4), (60, 64), (20, 44), (0, 64), (40, 41)):
        images = torch.zeros(6, 1, 64, 8)
        images[:, :, first:last] = 0.5
        band = it._band(images, 32, rng)
        assert band.shape == (6, 1, 32, 8)
        assert (band > 0).flatten(1).any(1).all()
    assert it._band(images, None, rng) is images and it._band(images, 64, rng) is images
    assert it._band(torch.zeros(1, 1, 64, 8), 32, rng).shape == (1, 1, 32, 8)


# ---------------------------------------------------------------------------------------- training


def test_the_error_falls_and_the_loss_is_the_weighted_sum():
    history = trained(net(2, 4), replace(SETTINGS, epochs=(8, 2)))
    assert history[-1]["error"] < 0.5 * history[0]["error"]
    weights = il.WEIGHTS | {"perceptual": 0.5, "style_out": 2, "style_comp": 2}
    for row in history:
        assert list(row) == [*il.WEIGHTS, "loss", "error", "seconds"]
        assert_allclose(row["loss"], sum(w * row[name] for name, w in weights.items()), rtol=1e-5)


def test_a_preview_after_each_epoch_and_the_second_phase():
    seen, model = [], net(3, seed=1)

    def look(epoch, given):
        seen.append((epoch, given is model, given.training, given.frozen_norms, norms(given)))

    trained(model, on_epoch=look)
    assert [s[:4] for s in seen] == [(e, True, False, e > 2) for e in (1, 2, 3, 4)]
    assert not torch.equal(seen[0][4], seen[1][4])
    assert torch.equal(seen[1][4], seen[2][4]) and torch.equal(seen[2][4], seen[3][4])
    assert not model.training


def norms(model):
    """Scales and statistics of the encoder's batch norms."""
    found = [m for m in model.down.modules() if isinstance(m, nn.BatchNorm2d)]
    return torch.cat([t.clone() for m in found for t in (m.weight.detach(), m.bias.detach(), m.running_mean)])


def test_each_phase_has_its_learning_rate():
    """At a rate of nearly nothing the weights stay where they are."""
    weights = {}
    settings = replace(SETTINGS, epochs=(1, 1), learning_rates=(1e-2, 1e-12))
    trained(net(), settings, on_epoch=lambda e, m: weights.update({e: m.down[0].conv.weight.detach().clone()}))
    assert not torch.allclose(weights[1], net().down[0].conv.weight)
    assert_allclose(weights[2], weights[1], atol=1e-9)


@pytest.fixture(scope="module")
def uninterrupted():
    model = net(3)
    return model, trained(model)


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_killed_and_resumed_is_uninterrupted(tmp_path, epoch, uninterrupted):
    """Killed in phase one, at the change of phases and in phase two; resumed with fresh weights."""
    (whole, history), again, state = uninterrupted, net(3, seed=9), tmp_path / "state.safetensors"

    def kill(finished, _):  # before the state of this epoch is written
        if finished == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(net(3), state=state, on_epoch=kill)
    resumed = trained(again, state=state)
    assert [{**row, "seconds": 0} for row in resumed] == [{**row, "seconds": 0} for row in history]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.frozen_norms and not state.exists()


def test_a_state_of_another_training_or_a_damaged_one(tmp_path):
    state = tmp_path / "state.safetensors"

    def kill(finished, _):
        if finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(net(), state=state, on_epoch=kill)
    for model, options in ((net(), {"seed": 1}), (net(), {"settings": replace(SETTINGS, side=2)})):
        with pytest.raises(ValueError, match=r"state.safetensors belongs to a training with other settings or another"):
            trained(model, state=state, **options)
    with pytest.raises(ValueError, match="belongs to another network"):
        trained(net(base=3), state=state)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        trained(net(), state=state)


@pytest.mark.parametrize("rows", [None, 8])
def test_bands_of_images_train_too(rows):
    history = trained(net(), replace(SETTINGS, epochs=(1, 0), rows=rows))
    assert len(history) == 1 and np.isfinite(history[0]["loss"])


def test_hole_error_by_hand():
    class Off(nn.Module):
        """Draws what is known, and what is not known 0.1 too bright."""

        def forward(self, image, keep):
            return image + 0.1 * (1 - keep) + 0.7 * keep

    model = Off().train()
    assert_allclose(it.hole_error(model, slopes(10), SETTINGS, CPU, 0), 0.1, rtol=1e-4)
    assert model.training
    first, second, other = (it.hole_error(net(), slopes(3), SETTINGS, CPU, seed) for seed in (0, 0, 1))
    assert first == second != other


def test_a_training_that_is_not_finite_is_named(tmp_path):
    bad = slopes(8)
    images = bad.images.float() / 255
    images[3, 0, 5, 5] = float("nan")
    with pytest.raises(FloatingPointError, match="the inpainter's loss is not finite in epoch 1"):
        trained(net(), healthy=Stack(images, bad.labels), state=tmp_path / "state.safetensors")
    assert not list(tmp_path.iterdir())


def test_without_features_three_terms_are_zero():
    row = trained(net(), replace(SETTINGS, epochs=(1, 0), perceptual=0, style=0), features=None)[0]
    assert row["perceptual"] == row["style_out"] == row["style_comp"] == 0 < row["hole"]
    for weights in ({"perceptual": 0}, {"style": 0}):
        with pytest.raises(ValueError, match="features: None, but the perceptual or the style loss has a weight"):
            trained(net(), replace(SETTINGS, **weights), features=None)


def test_bad_input():
    for name in ("healthy", "held_out"):
        with pytest.raises(ValueError, match=f"{name}: it is empty"):
            trained(net(), **{name: slopes(2).subset([])})
    with pytest.raises(ValueError, match="tissue: image 1 has none"):
        it.draw_holes(
            torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 1, 8, 8), SETTINGS, np.random.default_rng()
        )
    for options in ({"epochs": (0, 0)}, {"epochs": (-1, 2)}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="epochs and batch_size"):
            Settings(**options)
    for options in ({"share": 0}, {"share": 1}, {"side": 0}):
        with pytest.raises(ValueError, match="share and side"):
            Settings(**options)


# ---------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0), ("float16", 2e-3)])
def test_there_and_back(tmp_path, precision, tolerance):
    model, path = net(3, 2, "major"), tmp_path / "inpainter.safetensors"
    trained(model, replace(SETTINGS, epochs=(1, 0)))
    written = it.save(model, path, {"seed": 4}, precision)
    again, card = it.load(path)
    assert card == written
    facts = {"kind": "partial_unet", "depth": 3, "base": 2, "scale": "major", "value_range": [0, 1], "seed": 4}
    assert {key: card[key] for key in facts} == facts
    assert not again.training and again.value_range == (0, 1)
    image, keep = drawn(1, 1, SIDE, SIDE), holes(1, 1, SIDE, SIDE)
    assert_allclose(again(image, keep).detach(), model(image, keep).detach(), atol=tolerance)


def test_the_range_of_grey_values_travels_with_the_weights(tmp_path):
    model = net()
    model.value_range = (-1.0, 1.0)
    it.save(model, tmp_path / "other.safetensors", {})
    assert it.load(tmp_path / "other.safetensors")[0].value_range == (-1, 1)


def test_bad_checkpoints(tmp_path):
    path = tmp_path / "inpainter.safetensors"
    card = it.save(net(), path, {})
    whole = path.read_bytes()

    def rewrite(**changes):
        text = {key: value for key, value in {**card, **changes}.items() if value is not None}
        card_path(path).write_text(json.dumps(text))

    for changes, message in (
        ({"kind": "classifier"}, "kind is 'classifier', expected 'partial_unet'"),
        ({"depth": None}, "the card lacks depth"),
        ({"depth": 3}, "its weights do not fit its card"),
        ({"base": 4}, "its weights do not fit its card"),
    ):
        rewrite(**changes)
        with pytest.raises(CheckpointError, match=message):
            it.load(path)
    rewrite()
    path.write_bytes(whole[:-9])
    with pytest.raises(CheckpointError, match="hash"):
        it.load(path)
    card_path(path).unlink()
    with pytest.raises(CheckpointError, match="needs its card"):
        it.load(path)
    with torch.no_grad():
        broken = net()
        broken.down[0].conv.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        it.save(broken, tmp_path / "broken.safetensors", {})
