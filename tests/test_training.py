"""The training loop: by hand where numbers are small, then resuming, early stopping and bad input."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from xai_lib import models, training, training_state
from xai_lib.config import Runtime
from xai_lib.training import FitConfig, Stack, fit, predict, scores

CPU = Runtime(torch.device("cpu"), 1, bf16=False, channels_last=False)
BF16 = Runtime(torch.device("cpu"), 1, bf16=True, channels_last=True)


class Tiny(nn.Module):
    """Convolution, batch normalisation, pooling, head: 57 weights."""

    def __init__(self, outputs=1, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
            self.head = nn.Linear(4, outputs)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def blobs(n=12, size=16, seed=0):
    """Noise; images of class 1 have a bright square."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (n, 1, size, size))
    labels = np.arange(n) % 2
    images[labels == 1, :, 4:12, 4:12] += 120
    return Stack(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels))


def settings(**options):
    return FitConfig(**({"epochs": 4, "batch_size": 4, "learning_rate": 0.01, "patience": None} | options))


def train(model=None, config=None, seed=0, data=None, **options):
    """Fit a network and return it with the result."""
    model = Tiny() if model is None else model
    data = blobs() if data is None else data
    options = {"runtime": CPU, "progress": False} | options
    return model, fit(model, data, blobs(8, seed=1), config or settings(), seed=seed, **options)


def weights(model):
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def without_time(result):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


# by hand


def test_scores():
    assert scores(np.array([1.0, -2.0])).tolist() == [1, -2]
    assert scores(np.array([[1.0, 4.0], [0.0, -2.0]])).tolist() == [3, -2]


@pytest.mark.parametrize(("loss", "weight"), [("focal", 1.0), ("cross_entropy", 3.0), ("focal", 3.0)])
def test_loss_and_weight_reach_both_parts(monkeypatch, loss, weight):
    seen, original = [], training.loss
    monkeypatch.setattr(training, "loss", lambda *args: seen.append(args[2:]) or original(*args))
    _, result = train(config=settings(epochs=6, loss=loss, positive_weight=weight, learning_rate=0.03))
    assert seen == [(loss, weight)] * 24  # three batches of training and one of stopping, six times
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_the_rate_is_set_before_every_step(monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def record(self, *args):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    train(config=settings(optimizer="sgd", schedule="cosine", epochs=2, batch_size=6, learning_rate=1.0))
    assert rates == pytest.approx([1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2])


def test_one_sgd_step_by_hand():
    # logit = w * mean + b from w = b = 0: the gradient is mean of (1/2 - label) * (mean, 1)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1))
    nn.init.zeros_(model[2].weight), nn.init.zeros_(model[2].bias)
    images = torch.tensor([51, 255, 255], dtype=torch.uint8).view(3, 1, 1, 1)  # 0.2, 1, 1
    data = Stack(images, torch.tensor([0, 1, 1]))
    config = settings(epochs=1, batch_size=3, learning_rate=6.0, optimizer="sgd", augment="none", keep="last")
    result = fit(model, data, data, config, CPU, 0, progress=False)
    assert model[2].weight.item() == pytest.approx(-6 * (0.5 * 0.2 - 0.5 - 0.5) / 3)  # 1.8
    assert model[2].bias.item() == pytest.approx(1.0)
    losses = [math.log1p(math.exp(1.8 * 0.2 + 1))] + 2 * [math.log1p(math.exp(-2.8))]
    assert result.history[0]["train_loss"] == pytest.approx(math.log(2))
    assert result.history[0]["loss"] == pytest.approx(sum(losses) / 3)
    assert result.history[0]["auc"] == 1 and result.best_epoch == 1 and not result.stopped_early


# images in memory


def test_stack_by_hand():
    cases = [
        SimpleNamespace(image=torch.full((1, 4, 4), 0.5), label=1),  # 127.5, to the even neighbour
        SimpleNamespace(image=torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), label=None),
    ]
    data = training.stack(cases, size=2, progress=False)
    assert data.images.dtype == torch.uint8 and len(data) == 2
    assert data.images.tolist() == [[[[128, 128], [128, 128]]], [[[0, 255], [255, 0]]]]
    assert data.labels.tolist() == [1, -1]
    with pytest.raises(ValueError, match="dataset: it is empty"):
        training.stack([], progress=False)


@pytest.mark.parametrize("indices", [[2, 0], np.array([2, 0]), torch.tensor([2, 0])])
def test_subset(indices):
    part = blobs(4).subset(indices)
    assert torch.equal(part.images, blobs(4).images[[2, 0]]) and part.labels.tolist() == [0, 0]


def test_subset_by_booleans_and_by_nothing():
    part = blobs(4).subset(np.array([False, True, True, False]))
    assert torch.equal(part.images, blobs(4).images[1:3]) and part.labels.tolist() == [1, 0]
    assert len(blobs(4).subset([])) == 0


def test_batches():
    data = blobs(5)
    got = list(data.batches(2, BF16))
    assert [len(x) for x, _ in got] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, _ in got]), data.images.float() / 255)
    assert got[0][0].is_contiguous(memory_format=torch.channels_last)


def test_predict():
    model, data = Tiny().train(), blobs(5)
    logits = predict(model, data, CPU)
    assert logits.shape == (5,) and logits.dtype == np.float32 and model.training
    with torch.no_grad():
        assert logits == pytest.approx(model.eval()(data.images.float() / 255)[:, 0].numpy(), abs=1e-6)
    assert predict(model, data, CPU, batch_size=1) == pytest.approx(logits, abs=1e-6)
    assert predict(Tiny(outputs=3), data, CPU).shape == (5, 3) and not model.training


def test_evaluate(monkeypatch):
    data = blobs(4)  # labels 0 1 0 1
    monkeypatch.setattr(training, "predict", lambda *_: np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32))
    loss, auc = training._evaluate(Tiny(), data, settings(), CPU)
    assert auc == 0.75
    assert loss == pytest.approx(np.mean(np.logaddexp(0, [0, -1, 2, -3])))
    assert math.isnan(training._evaluate(Tiny(), Stack(data.images, data.labels * 0), settings(), CPU)[1])


def test_evaluate_two_outputs(monkeypatch):
    data = blobs(4)  # labels 0 1 0 1
    logits = np.array([[5.0, 5.0], [0.0, 1.0], [3.0, 5.0], [1.0, 4.0]], dtype=np.float32)  # log odds 0, 1, 2, 3
    monkeypatch.setattr(training, "predict", lambda *_: logits)
    loss, auc = training._evaluate(Tiny(2), data, settings(), CPU)
    assert auc == 0.75
    assert loss == pytest.approx(np.mean(np.logaddexp(0, [0, -1, 2, -3])))
    monkeypatch.setattr(training, "predict", lambda *_: np.zeros((4, 3), dtype=np.float32))
    assert math.isnan(training._evaluate(Tiny(3), data, settings(), CPU)[1])  # three classes


# training


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_learns_what_is_separable(optimizer):
    rate = 0.1 if optimizer == "sgd" else 0.03
    _, result = train(config=settings(epochs=12, optimizer=optimizer, learning_rate=rate))
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.history[result.best_epoch - 1]["auc"] == 1
    assert all(row["seconds"] > 0 for row in result.history) and result.seconds > 0


@pytest.mark.parametrize("outputs", [2, 3])
def test_several_outputs(outputs):
    model, result = train(Tiny(outputs), settings(epochs=12, learning_rate=0.03))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert math.isnan(result.history[0]["auc"]) if outputs == 3 else result.history[-1]["auc"] == 1
    assert (predict(model, blobs(), CPU).argmax(1) == blobs().labels.numpy()).all()


@pytest.mark.parametrize("group", [2, 3])
def test_a_group_stays_together(group):
    """Images 0 and 1, 2 and 3, ... are in the same batch, one after the other, in every epoch."""
    batches = []
    data = Stack((10 * torch.arange(12, dtype=torch.uint8)).view(12, 1, 1, 1), torch.arange(12) % 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1))
    model.register_forward_pre_hook(
        lambda m, a: batches.append((a[0] * 25.5).flatten().round().int().tolist()) if m.training else None
    )
    config = settings(epochs=3, batch_size=6, group=group, augment="none")
    fit(model, data, data, config, CPU, 0, progress=False)
    assert [len(batch) for batch in batches] == [6] * 6
    for k in range(0, 6, 2):
        assert sorted(batches[k] + batches[k + 1]) == list(range(12))
    for batch in batches:
        starts = batch[::group]
        assert all(start % group == 0 for start in starts)
        assert batch == [start + i for start in starts for i in range(group)]
    assert batches[0] != batches[2]


def test_a_group_that_is_not_whole():
    for images, group in ((9, 2), (2, 4)):
        message = f"train: {images} images do not make whole groups of {group}"
        with pytest.raises(ValueError, match=message):
            train(data=blobs(images), config=settings(group=group))


def test_same_seed_same_weights_other_seed_others():
    (a, first), (b, second), (c, _) = (train(seed=s) for s in (0, 0, 1))
    assert same(weights(a), weights(b)) and without_time(first) == without_time(second)
    assert not torch.equal(a.head.weight, c.head.weight)


def test_training_ignores_the_global_generator():
    torch.manual_seed(1)
    a, _ = train()
    torch.manual_seed(2)
    b, _ = train()
    assert same(weights(a), weights(b))


def test_only_what_requires_grad_trains():
    model = models.add_representation_scaling(models.build("squeezenet1_1"))
    before = weights(model)
    seen = {}
    data = Stack(torch.randint(0, 256, (5, 1, 64, 64), dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 1]))
    fit(
        model,
        data,
        data,
        settings(epochs=2),
        CPU,
        0,
        on_epoch=lambda e, m: seen.update({e: weights(m)}),
        progress=False,
    )
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    moved = {n for n, t in seen[2].items() if not torch.equal(t, before[n])}
    assert moved == trained
    assert set(training_state.copy(model)) == trained  # a frozen backbone is not copied for every epoch


def test_a_single_image_that_is_left_over_is_skipped():
    sizes = []
    model = Tiny()
    model.features.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])) if m.training else None)
    train(model, settings(epochs=2, batch_size=4), data=blobs(9))
    assert sizes == [4, 4, 4, 4]


def test_batches_of_one_all_train():
    sizes = []
    model = Tiny()
    model.features.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])) if m.training else None)
    train(model, settings(epochs=1, batch_size=1), data=blobs(5))
    assert sizes == [1] * 5


def test_bf16_autocast():
    kinds = set()
    model = Tiny()
    model.features[0].register_forward_hook(lambda m, a, out: kinds.add(out.dtype))
    _, result = train(model, settings(epochs=6, learning_rate=0.03), runtime=BF16)
    assert kinds == {torch.bfloat16}
    assert {t.dtype for n, t in model.state_dict().items() if "num" not in n} == {torch.float32}
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert predict(model, blobs(), BF16).dtype == np.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda(tmp_path):
    gpu = Runtime(torch.device("cuda"), 1, bf16=True, channels_last=True)
    with pytest.raises(KeyboardInterrupt):
        train(state=tmp_path / "state", on_epoch=interrupt(3), runtime=gpu)
    model, result = train(state=tmp_path / "state", runtime=gpu)
    assert model.head.weight.is_cuda and len(result.history) == 4
    assert predict(model, blobs(), gpu).shape == (12,)


# early stopping


def scripted(monkeypatch, losses):
    values = iter(losses)
    monkeypatch.setattr(training, "_evaluate", lambda *_: (next(values), 0.5))


@pytest.mark.parametrize(
    ("losses", "options", "kept", "epochs", "early"),
    [
        ([5, 3, 4, 2, 6, 7, 8, 1], {"patience": 3}, 4, 7, True),
        ([5, 3, 4, 4, 2, 6], {"patience": 3, "epochs": 6}, 5, 6, False),
        ([3, 3, 3, 3], {"patience": 2}, 1, 3, True),  # the first of equal ones
        ([5, 3, 4, 6], {"patience": None}, 2, 4, False),
        ([5, 3, 4, 6], {"patience": None, "keep": "last"}, 4, 4, False),
        ([5, 3, 4, 6, 7], {"patience": 2, "keep": "last"}, 4, 4, True),
        ([5, 6], {"patience": 1}, 1, 2, True),
    ],
)
def test_early_stopping(monkeypatch, losses, options, kept, epochs, early):
    scripted(monkeypatch, losses)
    seen = {}
    model, result = train(
        config=settings(**({"epochs": 8 if early else len(losses)} | options)),
        on_epoch=lambda e, m: seen.update({e: weights(m)}),
    )
    assert (result.best_epoch, len(result.history), result.stopped_early) == (kept, epochs, early)
    assert list(seen) == list(range(epochs + 1))
    assert same(weights(model), seen[kept])
    assert not same(seen[kept], seen[kept - 1]) and not model.training


# killed and resumed


def interrupt(at):
    def stop(epoch, model):
        if epoch == at:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "schedule": "cosine"},
        {"optimizer": "adamw", "keep": "last", "augment": "patch"},
        {"optimizer": "sgd", "schedule": "warm_restarts", "loss": "focal", "group": 2, "augment": "mammogram"},
    ],
)
@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path, options, at):
    config = settings(**options)
    whole, expected = train(config=config)
    state = tmp_path / "deep" / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(config=config, state=state, on_epoch=interrupt(at))
    assert state.is_file() == (at > 1)
    seen = []
    again, result = train(config=config, state=state, on_epoch=lambda e, m: seen.append(e))
    assert same(weights(again), weights(whole)) and without_time(result) == without_time(expected)
    assert result.best_epoch == expected.best_epoch
    assert seen == list(range(max(at, 1) - (at <= 1), 5))  # the epoch that was cut off is reported again
    assert not list(state.parent.glob("*"))


@pytest.mark.parametrize(("module", "where"), [(training, "loss"), (training_state, "save_file")])
def test_killed_at_any_place(tmp_path, monkeypatch, module, where):
    whole, _ = train()
    original, calls = getattr(module, where), []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == (10 if where == "loss" else 3):  # both in the third epoch
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, where, killed)
        with pytest.raises(KeyboardInterrupt):
            train(state=tmp_path / "state")
    seen = []
    again, _ = train(state=tmp_path / "state", on_epoch=lambda e, m: seen.append(e))
    assert seen == [3, 4] and same(weights(again), weights(whole))


def test_a_reduced_rate_survives_a_kill(tmp_path, monkeypatch):
    """On a plateau the rate is a tenth after seven epochs: the resumed training takes it from the losses it stored."""
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o, *a: rates.append(o.param_groups[0]["lr"]) or step(o, *a))
    config = settings(epochs=9, optimizer="sgd", schedule="plateau", batch_size=12)
    scripted(monkeypatch, [1.0] * 8)
    with pytest.raises(KeyboardInterrupt):
        train(config=config, state=tmp_path / "state", on_epoch=interrupt(8))
    scripted(monkeypatch, [1.0] * 2)
    train(config=config, state=tmp_path / "state")
    assert rates == pytest.approx([0.01] * 7 + [0.001] + [0.001] * 2)  # the eighth epoch is trained again


def test_resumed_after_the_best_epoch(tmp_path, monkeypatch):
    config, kept = settings(epochs=9, patience=3), {}
    scripted(monkeypatch, [5, 2, 3, 4])
    with pytest.raises(KeyboardInterrupt):
        train(
            config=config,
            state=tmp_path / "state",
            on_epoch=lambda e, m: kept.update({e: weights(m)}) or interrupt(4)(e, m),
        )
    scripted(monkeypatch, [4, 6])
    model, result = train(Tiny(seed=7), config, state=tmp_path / "state")  # the fresh weights do not matter
    assert (result.best_epoch, len(result.history), result.stopped_early) == (2, 5, True)
    assert same(weights(model), kept[2])


def test_resuming_a_frozen_network(tmp_path):
    data = Stack(torch.randint(0, 256, (6, 1, 64, 64), dtype=torch.uint8), torch.arange(6) % 2)

    def run(on_epoch=None, state=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = models.add_representation_scaling(models.build("squeezenet1_1"))
        fit(model, data, data, settings(epochs=3), BF16, 0, state, on_epoch, progress=False)
        return weights(model)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt(2), tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 200_000  # scales and head only
    assert same(run(state=tmp_path / "state"), run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "belongs to a training with other settings or another seed; delete it"),
        ({"config": settings(learning_rate=0.02)}, "belongs to a training with other settings"),
        ({"model": Tiny(outputs=2)}, "belongs to another network; delete it"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(256, 1))}, "belongs to another network; delete it"),
    ],
)
def test_state_of_another_training(tmp_path, options, message):
    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        train(state=state, on_epoch=interrupt(2))
    before = state.read_bytes()
    with pytest.raises(ValueError, match=f"state: {state} {message}"):
        train(state=state, **options)
    assert state.read_bytes() == before


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer: 'lbfgs' is not one of adam, adamw, sgd"),
        ({"schedule": "step"}, "schedule: 'step' is not one of constant, cosine, onecycle, plateau, warm_restarts"),
        ({"augment": True}, "augment: True is not one of ultrasound, patch, mammogram"),
        ({"augment": "flip"}, "augment: 'flip' is not one of ultrasound, patch, mammogram"),
        ({"loss": "hinge"}, "loss: 'hinge' is not one of cross_entropy, focal"),
        ({"positive_weight": 0.0}, "positive_weight: 0.0 is not above 0"),
        ({"positive_weight": -3.0}, "positive_weight: -3.0 is not above 0"),
        ({"group": 0}, "group: 0 does not divide the batch_size 4"),
        ({"group": 3}, "group: 3 does not divide the batch_size 4"),
        ({"keep": "first"}, "keep: 'first' is not one of best, last"),
        ({"epochs": 0}, "epochs and batch_size must be at least 1, got 0 and 4"),
        ({"batch_size": 0}, "epochs and batch_size must be at least 1, got 4 and 0"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not above 0"),
        ({"learning_rate": math.nan}, "learning_rate: nan is not above 0"),
        ({"patience": 0}, "patience: 0 is below 1; None trains all epochs"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


def test_wrong_sets():
    data, unknown = blobs(4), Stack(blobs(4).images, torch.tensor([0, 1, -1, -1]))
    for train_set, val, message in (
        (data.subset([0, 2]), data, "train: it holds one class only"),
        (data.subset([]), data, "train: it is empty"),
        (data, data.subset([]), "val: it is empty"),
        (unknown, data, "train: 2 of 4 images have no label"),
        (data, unknown, "val: 2 of 4 images have no label"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(Tiny(), train_set, val, settings(), CPU, 0, progress=False)


def test_loss_that_is_not_finite():
    with pytest.raises(FloatingPointError, match="training loss is not finite in epoch 1; try a lower learning_rate"):
        train(config=settings(learning_rate=1e30, optimizer="sgd"))


def test_stopping_loss_that_is_not_finite():
    model = Tiny()
    model.features[1].running_var[0] = torch.nan  # seen in eval mode only
    with pytest.raises(FloatingPointError, match="loss on the stopping set is not finite"):
        train(model)


def test_the_order_of_every_epoch_is_pinned():
    """Long runs are resumed and repeated: seed and epoch alone give the order, in every version."""
    order = []
    data = Stack((10 * torch.arange(6, dtype=torch.uint8)).view(6, 1, 1, 1), torch.arange(6) % 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1))
    model.register_forward_pre_hook(lambda m, a: order.extend((a[0] * 25.5).flatten().tolist()) if m.training else None)
    fit(model, data, data, settings(epochs=2, augment="none"), CPU, 0, progress=False)
    assert [round(i) for i in order[6:]] == [0, 4, 5, 2, 3, 1]
    assert sorted(round(i) for i in order[:6]) == [0, 1, 2, 3, 4, 5] and order[:6] != order[6:]


def test_images_of_a_group_are_augmented_alike():
    images = torch.rand(6, 1, 20, 20)
    images[1::2] = images[0::2]
    config = settings(batch_size=6, augment="patch", group=2)
    out = training._augmented(images, config, torch.Generator().manual_seed(0))
    assert out.shape == images.shape and torch.equal(out[0::2], out[1::2])
    assert not torch.allclose(out[0], images[0]) and not torch.allclose(out[0] - images[0], out[2] - images[2])
    alone = training._augmented(images, settings(augment="patch"), torch.Generator().manual_seed(0))
    assert not torch.allclose(alone[0], alone[1])


# an own objective


def test_an_objective_adds_its_term_in_training_only():
    def pulled(model, images):
        return model(images), 100 * model.head.weight.square().sum()

    def plain(model, images):
        return model(images), torch.zeros(())

    free, same, small = (train(config=settings(learning_rate=0.003), objective=o) for o in (None, plain, pulled))
    assert same[1].history[0]["train_loss"] == free[1].history[0]["train_loss"]
    assert all(torch.equal(a, b) for a, b in zip(weights(same[0]).values(), weights(free[0]).values(), strict=True))
    assert small[0].head.weight.abs().max() < free[0].head.weight.abs().max()
    assert small[1].history[0]["train_loss"] > free[1].history[0]["train_loss"] + 1
    assert small[1].history[0]["loss"] < 2  # the stopping loss does not have the term
