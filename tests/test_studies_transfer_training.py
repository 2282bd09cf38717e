"""Training with a teacher: on small squares with a tiny network; what is cached, what is refused, what a kill costs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from test_knowledge_transfer import tiny, weights

from xai_lib import knowledge_transfer as kt
from xai_lib import models, stored_tables, training
from xai_lib.config import runtime
from xai_lib.data import splits
from xai_lib.data.case import Case, CaseDataset, DataError
from xai_lib.studies.mammograms.folds import Start
from xai_lib.studies.transfer import inputs as kti
from xai_lib.studies.transfer import training as ktt
from xai_lib.studies.transfer.inputs import Inputs, Method, Settings
from xai_lib.training import FitConfig, Stack

CPU = runtime("cpu", threads=1)
SIZE = 32
FIT = FitConfig(epochs=2, batch_size=4, learning_rate=0.01, patience=None, augment="turn")
SETTINGS = Settings(Start("tiny"), SIZE, fit=FIT)


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch, tmp_path):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    make = lambda weights=None: tiny(seed=int(torch.randint(1000, ())))  # noqa: E731  drawn from the start's seed
    monkeypatch.setitem(models.ARCHITECTURES, "tiny", (make, lambda net: net.features, 8))


def square(row):
    """A bright square somewhere; malignant ones are larger."""
    rng = np.random.default_rng(int(row["number"]))
    side = 8 + 8 * int(row["label"])
    top, left = rng.integers(0, SIZE - side, 2)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + side, left : left + side] = True
    image = torch.tensor(0.3 * rng.random((SIZE, SIZE)) + 0.5 * mask, dtype=torch.float32)[None]
    return Case(
        image, int(row["label"]), torch.tensor(mask), torch.zeros(0, 4), None, row["patient_id"], "", row["source"]
    )


def squares(patients=10, name="squares", first=0, read=square):
    rows = [
        {"source": f"{name}/{p}{v}", "label": p % 2, "patient_id": f"0{p}", "view": v, "number": first + 2 * p + k}
        for p in range(patients)
        for k, v in enumerate("ab")
    ]
    return CaseDataset(name, pd.DataFrame(rows), read, parameters={"first": first})


def validated(methods=None, settings=SETTINGS, dataset=None, **options):
    dataset = squares() if dataset is None else dataset
    return ktt.cross_validated(settings, dataset, CPU, methods, folds=2, progress=False, **options)


def not_cached(monkeypatch):
    monkeypatch.setattr(Settings, "cached", property(lambda self: False))


# images with masks


def test_roi_stack():
    dataset = squares(2)
    stack = kti.roi_stack(dataset, SIZE, progress=False)
    assert stack.images.shape == (4, 2, SIZE, SIZE) and stack.images.dtype == torch.uint8
    assert stack.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(stack.images[0, 1], 255 * dataset[0].mask.to(torch.uint8))
    assert torch.equal(stack.images[3, 0], (255 * dataset[3].image[0]).round().to(torch.uint8))
    small = kti.roi_stack(dataset, 16, progress=False)
    assert small.images.shape == (4, 2, 16, 16) and set(small.images[:, 1].unique().tolist()) == {0, 255}


def test_a_mask_of_numbers_is_taken_if_it_is_binary():
    read = lambda row: replace(square(row), mask=square(row).mask.float())  # noqa: E731
    assert torch.equal(
        kti.roi_stack(squares(2, read=read), SIZE, False).images, kti.roi_stack(squares(2), SIZE, False).images
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: {"mask": None}, "it has no mask"),
        (lambda case: {"label": None}, "it has no label"),
        (lambda case: {"mask": case.mask[1:]}, r"the mask has shape \(31, 32\), the image \(32, 32\)"),
        (lambda case: {"mask": 0.5 * case.mask}, "the mask is not binary"),
        (lambda case: {"mask": 0 * case.mask}, "the mask is empty"),
        (lambda case: {"mask": torch.ones_like(case.mask)}, "the mask is full"),
    ],
)
def test_cases_that_are_refused(change, message):
    dataset = squares(2, read=lambda row: replace(square(row), **change(square(row))))
    with pytest.raises(ValueError, match=f"squares/0a: {message}"):
        kti.roi_stack(dataset, SIZE, progress=False)


# settings


def test_bad_settings():
    with pytest.raises(
        ValueError, match="augment: 'ultrasound' does not suit masks, expected roi, roi_gain, turn, none"
    ):
        Settings(fit=FitConfig())
    for options, message in (
        ({"teacher": "me"}, "teacher: 'me' is not one of masks, shuffled, disc, untrained"),
        ({"form": "squared"}, "form: 'squared' is not one of"),
        ({"reads": "text"}, "reads: 'text' is not one of image, mask"),
        ({"beta": -1}, "beta: -1"),
        ({"beta": 1, "groups": ()}, "beta: 1"),
        ({"beta": 1, "reads": "mask"}, "beta: 1 for a network that reads masks"),
    ):
        with pytest.raises(ValueError, match=message):
            Method(**options)
    with pytest.raises(ValueError, match="'group7' is not in tiny"):
        validated(settings=replace(SETTINGS, train_from="group7"))
    with pytest.raises(ValueError, match="groups: 'group3' is not a group of the student that trains"):
        validated({"transfer": Method(1, ("group3",))})


# what networks get


def toy_inputs(n=6):
    image = torch.arange(n * 8, dtype=torch.uint8).view(n, 8, 1, 1, 1)
    return Inputs(image, 100 + image, torch.full((1, 8, 1, 1, 1), 255, dtype=torch.uint8), torch.arange(n) % 2)


def test_image_and_mask_of_a_position_lie_side_by_side():
    data = toy_inputs()
    stack = data.guided(np.array([4, 1]), "masks", seed=0)
    assert stack.images[0].flatten().tolist() == [v for k in range(32, 40) for v in (k, 100 + k)]
    assert stack.labels.tolist() == [0, 1]
    assert data.first_position(np.array([4, 1])).images.flatten().tolist() == [32, 132, 8, 108]


def test_what_other_teachers_look_at():
    data, index = toy_inputs(), np.array([0, 2, 3, 5])
    true = data.guided(index, "masks", 0).images.view(4, 8, 2)
    other = data.guided(index, "shuffled", 0).images.view(4, 8, 2)
    assert torch.equal(other[..., 0], true[..., 0]) and not (other[:, 0, 1] == true[:, 0, 1]).any()
    assert sorted(other[:, 0, 1].tolist()) == sorted(true[:, 0, 1].tolist())
    assert not all(torch.equal(other, data.guided(index, "shuffled", s).images.view(4, 8, 2)) for s in (1, 2, 3))
    disc = data.guided(index, "disc", 0).images.view(4, 8, 2)
    assert torch.equal(disc[..., 0], true[..., 0]) and (disc[..., 1] == 255).all()


def test_inputs_are_the_frozen_output_in_eight_positions():
    stack = kti.roi_stack(squares(2), SIZE, progress=False)
    network = kti.reader(SETTINGS, 0)
    data = kti.inputs(network, stack, SETTINGS, CPU)
    assert data.image.shape == data.mask.shape == (4, 8, 6, 4, 4) and data.disc.shape == (1, 8, 6, 4, 4)
    with torch.no_grad():
        wanted = network.frozen_output(torch.rot90(stack.images[:, 1:].float() / 255, 3, (2, 3)))
    assert_allclose(data.mask[:, 3], wanted, rtol=1e-3, atol=1e-3)
    tested = kti.inputs(network, stack, SETTINGS, CPU, trains=False)
    assert torch.equal(tested.image, data.image[:, :1]) and torch.equal(tested.mask, data.mask[:, :1])
    pixels = kti.inputs(network, stack, replace(SETTINGS, fit=replace(FIT, augment="roi")), CPU)
    assert pixels.image.shape == (4, 1, 1, SIZE, SIZE) and pixels.image.dtype == torch.uint8
    assert float((pixels.disc > 0).float().mean()) == pytest.approx(float((pixels.mask > 0).float().mean()), abs=0.02)


# folds


def test_every_case_once_for_each_method_and_seed():
    dataset = squares()
    methods = {"fine-tuning": Method(), "transfer": Method(5.0), "masks": Method(reads="mask")}
    table = validated(methods, dataset=dataset, seeds=(0, 1))
    assert list(table)[:4] == ["case", "patient_id", "label", "logit"]
    assert set(table) == {"case", "patient_id", "label", "logit", "inside", "area", "fold", "method", "seed"}
    for _, part in table.groupby(["method", "seed"]):
        assert sorted(part["case"]) == sorted(dataset.table["source"])
    known = dataset.table.set_index("source")
    assert_array_equal(table["patient_id"], known.loc[table["case"], "patient_id"])  # "01", not 1
    assert_array_equal(table["label"], known.loc[table["case"], "label"])
    assert_allclose(table["area"], np.where(table["label"] == 1, 16**2, 8**2) / SIZE**2, rtol=1e-5)
    folds = table.groupby(["fold", "patient_id"]).size().reset_index().groupby("patient_id").size()
    assert (folds == 1).all()  # the same folds for all methods and seeds
    logits = table.pivot(index="case", columns=["method", "seed"], values="logit")
    assert len({tuple(column) for column in logits.to_numpy().T}) == 6


def test_controls_differ_and_beta_zero_is_fine_tuning():
    table = validated({**kti.METHODS, "beta 0": Method(0.0, teacher="disc")})
    logits = table.pivot(index="case", columns="method", values="logit")
    assert_array_equal(logits["beta 0"], logits["fine-tuning"])
    assert len({tuple(column) for column in logits.to_numpy().T}) == len(kti.METHODS) == 6


def test_caching_the_frozen_part_changes_nothing(monkeypatch):
    methods = {"transfer": Method(5.0), "fine-tuning": Method()}
    fit = replace(FIT, learning_rate=0.05, epochs=3)
    fast, still = (
        validated(methods, replace(SETTINGS, fit=replace(fit, augment=augment)))["logit"]
        for augment in ("turn", "none")
    )
    not_cached(monkeypatch)
    slow = validated(methods, replace(SETTINGS, fit=replace(fit, weight_decay=1e-30)))["logit"]  # another key
    assert not fast.equals(slow)  # half precision
    assert (fast - slow).abs().max() < 0.1 * (fast - still).abs().max()
    assert_allclose(fast, slow, atol=0.1 * fast.std())


def test_augmentation_none_and_random_rotation():
    for augment in ("none", "roi", "roi_gain"):
        table = validated({"transfer": Method(5.0)}, settings=replace(SETTINGS, fit=replace(FIT, augment=augment)))
        assert np.isfinite(table["logit"]).all() and len(table) == 20


def test_logits_and_shares_are_those_of_the_network():
    train, test = squares(), squares(name="others", first=500)
    methods = {"transfer": Method(5.0)}
    half = lambda dataset: torch.arange(SIZE).repeat(len(dataset), SIZE, 1) < SIZE // 2  # noqa: E731
    table = ktt.confounder_shift(SETTINGS, train, {"o": test}, CPU, methods, regions={"left": half}, progress=False)
    [model] = ktt.networks(SETTINGS, train, CPU, methods, progress=False).values()
    stack = kti.roi_stack(test, SIZE, progress=False)
    x, mask = (stack.images.float() / 255).split(1, 1)
    with torch.no_grad():
        assert not model.training
        logits, maps = model(x), kt.activation_map(model.feature_maps(x))
    assert_array_equal(table["case"], test.table["source"])
    assert_allclose(table["logit"], logits[:, 1] - logits[:, 0], atol=0.01)
    assert_allclose(table["inside"], kt.share_inside(maps, mask[:, 0] > 0), atol=0.01)
    assert_allclose(table["inside_left"], kt.share_inside(maps, half(test)), atol=0.01)
    assert (table["area_left"] == 0.5).all() and (table["test"] == "o").all()


def test_transfer_pulls_the_map_to_the_teachers():
    fit = replace(FIT, epochs=10, learning_rate=0.02, batch_size=8, keep="last")
    settings = replace(SETTINGS, train_from="all", fit=fit)
    methods = {"fine-tuning": Method(), "transfer": Method(50.0), "masks": Method(reads="mask")}
    found = ktt.networks(settings, squares(), CPU, methods, progress=False)
    x, mask = (kti.roi_stack(squares(), SIZE, progress=False).images.float() / 255).split(1, 1)
    gaps = {
        name: kt.group_distances(found[name], x, mask, teacher=found["masks"])["group4"].mean()
        for name in ("fine-tuning", "transfer")
    }
    assert gaps["transfer"] < 0.6 * gaps["fine-tuning"]  # 0.27 against 0.71


@pytest.mark.parametrize("augment", ["turn", "roi"])  # with and without a cache
def test_frozen_weights_and_statistics_stay(augment):
    settings = replace(SETTINGS, fit=replace(FIT, augment=augment))
    before = weights(kti.reader(settings, 0).model)
    model = ktt.networks(settings, squares(), CPU, {"transfer": Method(5.0)}, progress=False)["transfer"]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "features.norm3.running_var" in moved and "head.weight" in moved
    assert all(name.startswith(("head", "features.conv3", "features.norm3")) for name in moved)


# stored, killed, refused


def count_fits(monkeypatch, dies_at=None):
    """Count trainings; the one with the number `dies_at` is killed after its first epoch."""
    original, calls = training._train_epoch, []

    def epoch(*args):
        calls.append(len(args[6]))  # finished epochs
        if dies_at is not None and len(calls) == dies_at:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(training, "_train_epoch", epoch)
    return calls


def test_results_are_read_and_a_kill_costs_one_epoch(monkeypatch):
    methods = {"fine-tuning": Method(), "transfer": Method(5.0)}
    dataset = squares()
    whole = validated(methods, dataset=dataset)
    with monkeypatch.context() as patch:
        assert not count_fits(patch)
        assert validated(methods, dataset=dataset).equals(whole)
        patch.setattr(ktt, "roi_stack", None)  # nothing is read
        assert validated({"fine-tuning": Method(0.0, form="mean_squared")}, dataset=dataset)["logit"].equals(
            whole["logit"][whole["method"] == "fine-tuning"].reset_index(drop=True)
        )
    monkeypatch.setenv("XAI_CACHE_DIR", str(stored_tables.cache_dir() / "again"))
    with monkeypatch.context() as patch:
        calls = count_fits(patch, dies_at=6)  # fold 0: fine-tuning, teacher, and in the second epoch of the transfer
        with pytest.raises(KeyboardInterrupt):
            validated(methods, dataset=dataset)
        assert calls == [0, 1, 0, 1, 0, 1]
    with monkeypatch.context() as patch:
        calls = count_fits(patch)
        again = validated(methods, dataset=dataset)
        assert calls == [0, 1, 1, *[0, 1] * 3]  # teacher again, the transfer's second epoch, fold 1
    assert again.equals(whole)
    assert not list((stored_tables.cache_dir() / "knowledge_transfer").iterdir())


def test_results_depend_on_data_recipe_and_seed(monkeypatch):
    methods = {"fine-tuning": Method()}
    base = validated(methods)["logit"]
    for change in (
        {"settings": replace(SETTINGS, fit=replace(FIT, learning_rate=0.02))},
        {"dataset": squares(first=900)},
        {"seeds": (1,)},
        {"split_seed": 1},
    ):
        assert not np.allclose(validated(methods, **change)["logit"].sort_values(), base.sort_values())


def test_given_weights_share_the_frozen_part_among_seeds(monkeypatch, tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "tiny.pth")
    settings = replace(SETTINGS, start=Start("tiny", str(tmp_path / "tiny.pth")))
    original, calls = ktt.inputs, []
    monkeypatch.setattr(ktt, "inputs", lambda *args: calls.append(1) or original(*args))
    validated({"fine-tuning": Method()}, settings, seeds=(0, 1))
    assert len(calls) == 1
    validated({"fine-tuning": Method()}, seeds=(0, 1))
    assert len(calls) == 3


def test_copies_train_and_do_not_test(monkeypatch):
    plain, copied = squares(), squares()
    table = copied.table.loc[copied.table.index.repeat(3)].reset_index(drop=True).assign(copy=[0, 1, 2] * 20)
    table["source"] += np.where(table["copy"] > 0, "-copy" + table["copy"].astype(str), "")
    copied = CaseDataset("squares", table, square)
    original, sizes = training.fit, []
    monkeypatch.setattr(
        training,
        "fit",
        lambda m, train, val, *a, **k: sizes.append((len(train), len(val))) or original(m, train, val, *a, **k),
    )
    one, three = (validated({"fine-tuning": Method()}, dataset=d) for d in (plain, copied))
    assert one[["case", "patient_id", "label", "fold"]].equals(three[["case", "patient_id", "label", "fold"]])
    assert [(3 * train, val) for train, val in sizes[:2]] == sizes[2:]
    shifted = ktt.confounder_shift(SETTINGS, copied, {"o": copied}, CPU, {"fine-tuning": Method()}, progress=False)
    assert len(shifted) == 20 and sizes[-1][0] == 3 * sizes[-1][1] * 4


def test_folds_that_are_refused(monkeypatch):
    with pytest.raises(DataError, match="class 1 has 2 patients, fewer than the 3 folds"):
        ktt.cross_validated(SETTINGS, squares(5), CPU, folds=3, progress=False)
    dataset = squares()
    parts = {"train": np.arange(8), "val": np.array([8, 9, 10, 11]), "test": np.array([12, 13, 16, 17])}
    monkeypatch.setattr(splits, "fold_parts", lambda *args: [parts])
    with pytest.raises(DataError, match=r"squares: fold 0: test: all 4 cases are of class \[0\]"):
        validated(dataset=dataset)


def test_shifts_that_are_refused():
    train = squares()
    shift = lambda tests: ktt.confounder_shift(SETTINGS, train, tests, CPU, progress=False)  # noqa: E731
    with pytest.raises(ValueError, match="tests: none; expected at least one"):
        shift({})
    with pytest.raises(ValueError, match="tests: train; expected"):
        shift({"train": train})
    with pytest.raises(DataError, match=r"squares: benign: all 4 cases are of class \[0\]"):
        shift({"benign": train.subset([0, 1, 4, 5])})


def test_stacks_of_numbers_are_seen_as_they_are():
    data = Stack(torch.tensor([[[[0.5, -3.0]]]], dtype=torch.float16), torch.tensor([0]))
    [(x, _)] = data.batches(4, CPU)
    assert x.dtype == torch.float32 and x.flatten().tolist() == [0.5, -3.0]
