"""Maps at full resolution: against Algorithm 2 written out, on networks whose map is known, stopped, added, refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter
from torch import nn

from xai_lib import omig
from xai_lib import omig_upsampling as up
from xai_lib.omig_maps import Upsampled, smoothed

SIZE, SHAPE = 8, (20, 17)
IMAGE = np.random.default_rng(5).normal(300, 20, SHAPE).astype(np.float32)
SETTINGS = {"steps": 3, "z_max": 2.0, "normalise": (300.0, 20.0), "progress": False}


def member(seed=0, size=SIZE):
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * (size // 2) ** 2, 3)),
    )
    return net.eval()


MEMBERS = [member(0), member(1)]


def run(n=12, **more):
    return up.upsample(more.pop("members", MEMBERS), more.pop("image", IMAGE), SIZE, n, **{**SETTINGS, **more})


def same(a, b, rtol=0.0):
    assert (a.run, a.methods) == (b.run, b.methods)
    for name in ("sums", "visits", "indices", "start", "end"):
        assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=rtol, err_msg=name)


# ---------------------------------------------------------------------------------------- rows and columns


def test_pick_anywhere():
    rng = np.random.default_rng(0)
    drawn = [up.pick(rng, 30, 10) for _ in range(3000)]
    assert all((np.diff(d) > 0).all() and len(d) == 10 and d[0] >= 0 and d[-1] < 30 for d in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=30)
    assert_allclose(counts / 3000, 1 / 3, atol=5 * np.sqrt(1 / 3 * 2 / 3 / 3000))


def test_pick_blocks():
    rng = np.random.default_rng(0)
    drawn = np.array([up.pick(rng, 32, 10, "blocks") for _ in range(2000)])
    edges = [0, 3, 6, 9, 12, 16, 19, 22, 25, 28, 32]
    assert (drawn >= edges[:-1]).all() and (drawn < edges[1:]).all()
    assert set(drawn[:, 0]) == {0, 1, 2} and set(drawn[:, 4]) == {12, 13, 14, 15}
    for how in up.SAMPLINGS:
        assert_array_equal(up.pick(rng, 7, 7, how), np.arange(7))


@pytest.mark.parametrize(("n", "size", "how"), [(5, 6, "anywhere"), (5, 0, "blocks"), (5, 3, "random")])
def test_pick_refuses(n, size, how):
    with pytest.raises(ValueError, match=r"size: |sampling: 'random'"):
        up.pick(np.random.default_rng(0), n, size, how)


# ----------------------------------------------------------------------------------------- what comes out


class Linear(nn.Module):
    """w . x, one output, for images (N, 1, S, S)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.float32))

    def forward(self, x):
        return torch.einsum("nchw,hw->n", x, self.weight)[:, None]


@pytest.mark.parametrize("fast", [False, True])
def test_constant_weights_come_back(fast):
    found = run(40, members=[Linear(np.full((SIZE, SIZE), 0.3)), Linear(np.full((SIZE, SIZE), 0.5))], fast=fast)
    seen = found.visits > 0
    for method in found.methods:
        assert_allclose(found.average(method)[seen], -0.4, rtol=1e-6)  # c = 1; equal components are never outliers
        assert np.isnan(found.average(method)[~seen]).all()
        assert_allclose(found.standard_error(method)[found.visits > 1], 0, atol=1e-7)
    assert_allclose(found.average("OMIG", over="paper"), -0.4 * found.visits / 40, rtol=1e-6)
    assert_allclose(found.start - found.end, 0.4**2 * SIZE**2, rtol=1e-4)


def test_weights_by_place_come_back():
    weights = np.random.default_rng(2).normal(size=SHAPE)
    found = up.upsample([Linear(weights[:17])], IMAGE[:17], 17, 3, z_max=None, steps=2, progress=False)
    assert_allclose(found.average("OMIG"), -weights[:17], rtol=1e-5)  # every pixel is drawn: the map is -w itself
    assert_array_equal(found.visits, 3)
    blocks = run(300, members=[Linear(weights[:SIZE, :SIZE])], sampling="blocks", z_max=None)
    edges = [np.searchsorted(np.arange(SIZE + 1) * n // SIZE, np.arange(n), "right") - 1 for n in SHAPE]
    seen = blocks.visits > 0
    assert_allclose(blocks.average("OMIG")[seen], -weights[np.ix_(*edges)][seen], rtol=1e-5)


@pytest.mark.parametrize("sampling", up.SAMPLINGS)
def test_algorithm_2_written_out(sampling):
    found = run(9, methods=up.METHODS, sampling=sampling, batch=4, fast=False)
    maps, visits, mean, sd = {m: np.zeros(SHAPE) for m in up.METHODS}, np.zeros(SHAPE, int), 300, 20
    values = {m: [] for m in up.METHODS}
    for i in range(9):
        rng = np.random.default_rng([0, i])
        ix = np.ix_(up.pick(rng, SHAPE[0], SIZE, sampling), up.pick(rng, SHAPE[1], SIZE, sampling))
        x = torch.from_numpy((IMAGE[ix] - mean) / sd)[None, None]
        one = omig.explain(MEMBERS, x, steps=3, z_max=2.0)
        each = [one.change, one.sensitivity, one.clipped_sensitivity, omig.occlusion(MEMBERS, x).view_as(x)]
        for method, value in zip(up.METHODS, each, strict=True):
            delta = np.full(SHAPE, np.nan)
            delta[ix] = value[0, 0].numpy()
            values[method].append(delta)
            maps[method] += np.nan_to_num(delta) / 9
        visits[ix] += 1
        assert found.start[i] == pytest.approx(one.start.item(), rel=1e-5)
        assert found.end[i] == pytest.approx(one.end.item(), rel=1e-5)
    assert_array_equal(found.visits, visits)
    assert visits.sum() == 9 * SIZE**2 and found.visits.dtype == np.int32
    for method, value in values.items():
        assert_allclose(found.average(method, over="paper"), maps[method], rtol=1e-3, atol=1e-7)
        with np.errstate(invalid="ignore"):
            error = np.array(
                [np.std(v[~np.isnan(v)], ddof=1) for v in np.array(value).reshape(9, -1).T if (v == v).sum() > 1]
            )
        many = visits > 1
        assert_allclose(found.standard_error(method)[many], error / np.sqrt(visits[many]), rtol=1e-2, atol=1e-7)
        assert np.isnan(found.standard_error(method)[~many]).all()
        assert np.isnan(found.average(method)[visits == 0]).all()


def test_smoothed_is_the_mean_of_the_visits_around():
    total, visits = np.zeros((61, 61)), np.zeros((61, 61), int)
    total[30, 30], visits[30, 30] = 6, 2
    total[30, 34], visits[30, 34] = 1, 1
    map_ = smoothed(total, visits, 2)
    weight = math.exp(-(4**2) / 8)  # of the other pixel
    assert map_[30, 30] == pytest.approx((6 + weight) / (2 + weight), rel=1e-4)
    assert np.isnan(map_[0, 0])


def test_smoothed():
    found = run(12)
    parts = [gaussian_filter(part.astype(float), 2, truncate=3) for part in (found.total("OMIG"), found.visits)]
    assert_allclose(found.smoothed("OMIG", 2), parts[0] / parts[1], rtol=1e-3, atol=1e-6)
    far = replace(found, visits=np.zeros(SHAPE, np.int32))
    assert np.isnan(far.smoothed("OMIG", 1)).all()


def test_every_method_alone():
    whole = run(6, methods=up.METHODS)
    for method in up.METHODS:
        alone = run(6, methods=[method])
        assert_allclose(alone.average(method), whole.average(method), rtol=1e-5, atol=1e-8)
        assert_allclose(alone.start, whole.start, rtol=1e-5)
        assert np.isnan(alone.end).all() == (method != "OMIG")
        with pytest.raises(ValueError, match="method: 'nothing' was not computed, there are"):
            alone.average("nothing")


def test_occlusion_in_a_mask():
    mask = np.zeros(SHAPE, bool)
    mask[5:9, 3:12] = True
    whole, part = run(6, methods=["OMIG", "occlusion"]), run(6, methods=["OMIG", "occlusion"], mask=mask)
    assert_allclose(part.total("occlusion"), whole.total("occlusion") * mask, atol=1e-6)
    assert_array_equal(part.count("occlusion"), whole.visits * mask)
    assert_array_equal(part.count("OMIG"), whole.visits)
    assert np.isnan(part.average("occlusion")[~mask]).all()


def test_a_batch_changes_nothing():
    for batch in 1, 5, 100:
        same(run(12, batch=batch), run(12), rtol=1e-4)
    same(run(12, batch=5, fast=False), run(12), rtol=1e-4)


def test_another_seed_is_another_map():
    assert not np.array_equal(run(3).visits, run(3, seed=1).visits)
    assert_array_equal(run(3, image=IMAGE + 1).visits, run(3).visits)


# -------------------------------------------------------------------------------- stopped, resumed, added


class Stop(Exception):
    pass


def stopping(monkeypatch, after):
    """`upsample` is killed in batch `after`; every batch before it is in the state file."""
    monkeypatch.setattr(up, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(up, "SAVE_SHARE", np.inf)
    real, calls = up.follow, []

    def follow(*args):
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return real(*args)

    monkeypatch.setattr(up, "follow", follow)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    state = tmp_path / "new" / "map.npz"
    whole = run(12, batch=4)
    with monkeypatch.context() as patch:
        stopping(patch, after=2)
        with pytest.raises(Stop):
            run(12, batch=4, state=state)
    assert Upsampled.load(state).indices.tolist() == list(range(8))
    resumed = run(12, batch=4, state=state)
    same(resumed, whole)
    assert [p.name for p in state.parent.iterdir()] == ["map.npz"]
    same(run(12, state=state), whole)  # complete: nothing is computed
    same(run(16, batch=4, state=state), run(16, batch=4))  # and on, to more virtual images
    with pytest.raises(ValueError, match="holds other virtual images than those asked for"):
        run(12, state=state)


def test_a_kill_while_the_state_is_written(tmp_path):
    state = tmp_path / "map.npz"
    run(4, state=state)
    (tmp_path / "map.npz.tmp").write_bytes(b"half")
    same(run(8, batch=4, state=state), run(8, batch=4))
    assert [p.name for p in tmp_path.iterdir()] == ["map.npz"]


def test_halves_are_added():
    whole = run(12, methods=up.METHODS)
    first, second = run(range(5), methods=up.METHODS), run(range(5, 12), methods=up.METHODS)
    same(first + second, whole, rtol=1e-5)
    assert_array_equal((second + first).visits, whole.visits)
    assert_array_equal((second + first).indices, [*range(5, 12), *range(5)])
    with pytest.raises(ValueError, match="share virtual images, such as 4"):
        first + run(range(4, 6), methods=up.METHODS)
    with pytest.raises(ValueError, match="different images, networks"):
        first + run(range(5, 12), methods=up.METHODS, seed=1)


def test_saved_and_loaded(tmp_path):
    found = run(3, methods=["OMIG", "occlusion"], mask=IMAGE > 300)
    found.save(tmp_path / "map.npz")
    back = Upsampled.load(tmp_path / "map.npz")
    same(back, found)
    assert_array_equal(back.mask, found.mask)
    with pytest.raises(FileNotFoundError):
        Upsampled.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "other",
    [
        {"image": IMAGE + 1},
        {"members": MEMBERS[:1]},
        {"members": [MEMBERS[1], MEMBERS[0]]},
        {"c": 2.0},
        {"steps": 4},
        {"z_max": None},
        {"clip_first": True},
        {"normalise": (0.0, 20.0)},
        {"sampling": "blocks"},
        {"methods": ["OMIG"]},
        {"seed": 1},
    ],
)
def test_state_of_another_run(tmp_path, other):
    state = tmp_path / "map.npz"
    run(4, state=state)
    before = state.read_bytes()
    with pytest.raises(ValueError, match=r"state: .*map.npz belongs to another image, network, seed or other settings"):
        run(4, state=state, **other)
    assert state.read_bytes() == before


def test_damaged_state(tmp_path):
    state = tmp_path / "map.npz"
    run(4, state=state)
    whole = state.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in b"", b"text", whole[: len(whole) // 2], bytes(flipped):
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"state: .*map.npz is damaged or not a map"):
            run(4, state=state)
    np.savez(state, other=np.zeros(3))
    with pytest.raises(ValueError, match=r"state: .*map.npz is damaged or not a map"):
        run(4, state=state)


def test_progress_bar(capsys):
    run(4, progress=True)
    assert "virtual images: 100%" in capsys.readouterr().err
    run(4)
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"n": 0}, r"virtual_images: range\(0, 0\), expected a number >= 1"),
        ({"n": -3}, "virtual_images: "),
        ({"n": range(-1, 2)}, "virtual_images: "),
        ({"steps": 0}, "steps: 0"),
        ({"c": -1.0}, "c: -1.0"),
        ({"c": 0.0}, "c: 0.0"),
        ({"z_max": -3.0}, "z_max: -3.0"),
        ({"image": IMAGE[:7]}, r"size: a grid of 8 x 8 does not fit into an image of \(7, 17\)"),
        ({"image": IMAGE[None]}, r"image: \(1, 20, 17\), expected an array \(H, W\)"),
        ({"image": torch.from_numpy(IMAGE)}, "image: "),
        ({"image": np.full(SHAPE, 300.0)}, r"image: it is constant \(300.0\)"),
        ({"image": np.where(IMAGE > 340, np.nan, IMAGE)}, "image: it holds NaN"),
        ({"normalise": (300.0, 0.0)}, "normalise: mean 300.0 and sd 0.0"),
        ({"sampling": "random"}, "sampling: 'random' is not one of anywhere, blocks"),
        ({"methods": ["omig"]}, "methods: 'omig' is not one of OMIG"),
        ({"methods": []}, r"methods: \(\), expected at least one"),
        ({"methods": ["OMIG", "OMIG"]}, "methods: "),
        ({"mask": np.ones(SHAPE, bool)}, "mask: it is for occlusion"),
        ({"mask": np.ones((2, 2), bool), "methods": ["occlusion"]}, "mask: bool"),
        ({"value": np.inf}, "value: inf"),
        ({"batch": 0}, "batch: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"members": [MEMBERS[0], Linear(np.ones((SIZE, SIZE)))]}, "members: network 1 gives 1 values, network 0"),
    ],
)
def test_bad_values(more, words):
    with pytest.raises(ValueError, match=words):
        run(**{"n": 2, **more})


def test_members_must_be_a_list():
    with pytest.raises(TypeError, match=r"members: Sequential, expected a list of networks"):
        run(2, members=MEMBERS[0])


def test_nan_weights():
    broken = member(3)
    with torch.no_grad():
        broken[6].bias[1] = torch.nan
    with pytest.raises(ValueError, match=r"members: network 1 has NaN or infinite weights in '.*bias'"):
        run(2, members=[MEMBERS[0], broken])


def test_an_integer_image_will_do():
    grey = IMAGE.astype(np.uint16)
    same_values = run(3, image=grey), run(3, image=grey.astype(np.float64))
    assert_allclose(same_values[0].sums, same_values[1].sums)


@pytest.mark.parametrize("method", ["OMIG", "occlusion"])
def test_networks_stay_as_they_are(method):
    mine = member(0).train()
    before = {n: t.clone() for n, t in mine.state_dict().items()}
    found = run(3, members=[mine], methods=[method])
    assert_allclose(found.sums, run(3, members=[member(0)], methods=[method]).sums, rtol=1e-5)
    assert all(m.training for m in mine.modules()) and all(p.requires_grad for p in mine.parameters())
    assert all(p.grad is None for p in mine.parameters())
    assert all(torch.equal(t, before[n]) for n, t in mine.state_dict().items())
