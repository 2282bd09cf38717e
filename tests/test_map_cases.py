import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from linear_network import Linear

from xai_lib import checkpoints, map_cases, map_store, models
from xai_lib.attribution import METHODS, attribute
from xai_lib.cli import attribute as command
from xai_lib.data import Case, CaseDataset
from xai_lib.data.case import hashed_id

SIZE = 8
MADE = {"method": "gradient_x_input", "options": {"a": 1}}


def read(row, broken=(), log=""):
    """An image whose pixels are all number / 1000; reading is noted in a file, one byte for each case."""
    if log:
        with open(log, "ab") as file:
            file.write(b".")
        time.sleep(0.02)
    if row["number"] in broken:
        raise ValueError(f"{row['source']}: no image in /home/doe/{row['source']}.png")
    side = row["side"]
    image = torch.full((1, side, side), row["number"] / 1000)
    return Case(image, 0, None, torch.zeros((0, 4)), None, row["patient_id"], "CC", row["source"])


def cases(count=10, side=SIZE, name="tiny", **options):
    rows = range(count)
    table = pd.DataFrame(
        {
            "source": [f"tiny/doe-{i}" for i in rows],
            "label": 0,
            "patient_id": [f"doe-{i}" for i in rows],
            "view": "CC",
            "number": rows,
            "side": side,
        }
    )
    return CaseDataset(name, table, partial(read, **options))


def weights():
    return torch.arange(SIZE * SIZE, dtype=torch.float32).reshape(1, 1, SIZE, SIZE)


@dataclass(frozen=True)
class GradientXInput:
    """The map of a linear network is w * x."""

    refuses: float = -1.0

    def __call__(self, x):
        if bool((x.amax((1, 2, 3)) == self.refuses).any()):
            raise RuntimeError("this image is refused")
        found = attribute("gradient_x_input", Linear(weights()), x, 0, progress=False)
        return map_cases.BatchMaps(found.map, found.scores, torch.zeros(len(x)))


def run(out, dataset=None, function=None, **options):
    given = {"size": SIZE, "attributes": MADE, "batch": 3, "progress": False} | options
    return map_cases.map_cases(function or GradientXInput(), dataset or cases(), out, **given)


def assert_by_hand(store, rows):
    for i in rows:
        np.testing.assert_allclose(store.maps[i], weights()[0, 0] * i / 1000, atol=1e-6)
        np.testing.assert_allclose(store.scores[i], weights().sum() * i / 1000 + 0.5, rtol=1e-6)


def test_maps_of_a_linear_network(tmp_path):
    store = run(tmp_path / "s.zarr")
    assert store.maps.shape == (10, SIZE, SIZE) and store.maps.chunks == (3, SIZE, SIZE)
    assert store.maps.dtype == np.float32 and store.maps.metadata.zarr_format == 3
    assert store.done.all() and not store.failures and not store.gaps.any()
    assert_by_hand(store, range(10))
    said = store.attributes
    assert said["method"] == "gradient_x_input" and said["options"] == {"a": 1} and said["map_shape"] == [SIZE, SIZE]
    assert said["data"] == {"name": "tiny", "fingerprint": cases().fingerprint} and "torch" in said["versions"]


def test_images_are_resized_and_their_size_is_kept(tmp_path):
    store = run(tmp_path / "s.zarr", cases(4, side=20))
    assert_by_hand(store, range(4))
    assert (store.shapes == 20).all()


def test_cases_are_known_by_hashes_only(tmp_path):
    store = run(tmp_path / "s.zarr", cases(5, broken=(2,)))
    assert store.ids[3] == hashed_id("tiny/doe-3") and store.row("tiny/doe-3") == 3
    for file in (p for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()):
        assert b"doe" not in file.read_bytes(), file
    assert "doe" not in str(store.failures) + "".join(store.ids)
    with pytest.raises(ValueError, match="'tiny/doe-7' is none of the 5 cases"):
        store.row("tiny/doe-7")


@pytest.mark.parametrize(
    ("data", "function", "says"),
    [
        (cases(5, broken=(4,)), GradientXInput(), f"ValueError: {hashed_id('tiny/doe-4')}: no image in"),
        (cases(5), GradientXInput(refuses=np.float32(4 / 1000).item()), "RuntimeError: this image is refused"),
    ],
)
def test_a_case_that_fails_leaves_nan_and_the_others_go_on(tmp_path, data, function, says):
    store = run(tmp_path / "s.zarr", data, function)
    assert list(store.failures) == [4] and store.failures[4].startswith(says)
    assert np.isnan(store.maps[4]).all() and np.isnan(store.scores[4])
    assert store.done.tolist() == [True] * 4 + [False]
    assert_by_hand(store, range(4))


def test_failed_images_are_tried_again(tmp_path):
    assert run(tmp_path / "s.zarr", cases(5, broken=(1,))).failures
    store = run(tmp_path / "s.zarr", cases(5))
    assert store.done.all() and not store.failures
    assert_by_hand(store, range(5))


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (lambda x: x, {}, "maps have shape (1, 1, 8, 8), expected (1, 8, 8)"),
        (lambda x: x[:, 0] / 0, {}, "the map is not finite"),
        (lambda x: x[:, 0] * 1e-5, {"dtype": "float16"}, "float16 cannot hold a map whose peak is 5e-08"),
        (lambda x: x[:, 0] * 1e9, {"dtype": "float16"}, "float16 cannot hold a map whose peak is 5e+06"),
    ],
)
def test_maps_that_are_none(tmp_path, function, options, says):
    data = cases(6).subset([5])
    assert says in run(tmp_path / "s.zarr", data, function, **options).failures[0]


def test_float16(tmp_path):
    store = run(tmp_path / "s.zarr", cases(4).subset([2, 3]), lambda x: x[:, 0], dtype="float16")
    assert store.maps.dtype == np.float16
    np.testing.assert_allclose(store.maps[1], 0.003, rtol=1e-3)
    assert np.isnan(store.scores).all()  # a function that returns maps only


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attributes": {"method": "saliency", "options": {"a": 1}}}, "method 'gradient_x_input', not 'saliency'"),
        ({"attributes": MADE | {"options": {"a": 2}}}, "options.a 1, not 2"),
        ({"attributes": MADE | {"checkpoint": {"sha256": "0"}}}, "checkpoint.sha256 None, not '0'"),
        ({"dataset": cases(10, name="other")}, "data.name 'tiny', not 'other'"),
        ({"dataset": cases(9)}, "cases 10, not 9"),
        ({"dataset": cases().subset(list(range(10))[::-1])}, "order "),
        ({"size": (SIZE, 4)}, r"map_shape \[8, 8\], not \[8, 4\]"),
        ({"batch": 4}, "batch 3, not 4"),
    ],
)
def test_a_store_of_other_maps_is_refused(tmp_path, changes, says):
    before = run(tmp_path / "s.zarr").maps[:]
    with pytest.raises(map_store.MapStoreError, match=says):
        run(tmp_path / "s.zarr", **changes)
    np.testing.assert_array_equal(map_store.open_maps(tmp_path / "s.zarr").maps[:], before)


def test_a_folder_or_file_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years")
    for name in ("folder", "folder/thesis.txt"):
        with pytest.raises(map_store.MapStoreError, match="not a store of maps"):
            run(tmp_path / name)
    zarr.open_group(str(tmp_path / "g"), mode="w", zarr_format=3)
    with pytest.raises(map_store.MapStoreError, match="format is None"):
        run(tmp_path / "g")
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"workers": -1}, "workers"), ({"batch": 0}, "batch"), ({"dtype": "int8"}, "dtype"), ({"size": 0}, "size")],
)
def test_bad_arguments_write_nothing(tmp_path, changes, says):
    with pytest.raises(ValueError, match=f"^{says}: "):
        run(tmp_path / "s.zarr", **changes)
    assert not list(tmp_path.iterdir())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "chunk"),
    [
        (flip, "maps/c/1/0/0"),
        (halve, "maps/c/1/0/0"),
        (Path.unlink, "maps/c/1/0/0"),
        (flip, "scores/c/1"),
        (Path.unlink, "done/c/1"),
    ],
)
def test_a_damaged_chunk_is_made_anew(tmp_path, damage, chunk):
    before = run(tmp_path / "s.zarr")
    damage(tmp_path / "s.zarr" / chunk)
    store = run(tmp_path / "s.zarr", cases(log=str(tmp_path / "log")))
    assert len((tmp_path / "log").read_bytes()) == 3  # of this batch only
    np.testing.assert_array_equal(store.maps[:], before.maps[:])
    np.testing.assert_array_equal(store.scores, before.scores)
    assert store.done.all()


def test_a_damaged_store_is_named_when_it_is_read(tmp_path):
    run(tmp_path / "s.zarr")
    flip(tmp_path / "s.zarr/scores/c/1")
    with pytest.raises(map_store.MapStoreError, match=r"s\.zarr: a chunk is damaged"):
        map_store.open_maps(tmp_path / "s.zarr")


def test_maps_are_read_when_they_are_indexed(tmp_path):
    run(tmp_path / "s.zarr")
    flip(tmp_path / "s.zarr/maps/c/2/0/0")
    store = map_store.open_maps(tmp_path / "s.zarr")  # nothing of the maps is read here
    assert store.maps[0].shape == (SIZE, SIZE)
    with pytest.raises(Exception, match=r"."):
        store.maps[7]


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import test_map_cases as t
t.run({out!r}, t.cases(60, log={log!r}))
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    out, log = tmp_path / "s.zarr", tmp_path / "log"
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(out), log=str(log))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    while len(list(out.glob("done/c/*"))) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = 20 - len(map_store.batches_left(out))
    assert 4 <= whole < 20
    log.unlink()
    store = run(out, cases(60, log=str(log)))
    assert len(log.read_bytes()) == 60 - 3 * whole
    assert store.done.all() and list(tmp_path.glob(".*.tmp")) == []
    assert_by_hand(store, range(60))


class Counting:
    """A client that notes how many tasks are under way at once."""

    def __init__(self, client):
        self.client, self.loop, self.alive, self.most = client, client.loop, [], 0

    def submit(self, *given, **options):
        future = self.client.submit(*given, **options)
        self.alive = [f for f in self.alive if not f.done()] + [future]
        self.most = max(self.most, len(self.alive))
        return future

    def __getattr__(self, name):
        return getattr(self.client, name)


def test_two_processes_give_the_same_maps_and_a_bounded_queue(tmp_path):
    """One cluster for three things, since it takes seconds to start."""
    alone = run(tmp_path / "alone.zarr", cases(30, broken=(7,)), workers=0)
    with map_cases.local_cluster(2) as client:
        store = run(tmp_path / "two.zarr", cases(30, broken=(7,)), client=client.scheduler.address)
        for name in ("scores", "gaps", "shapes", "done"):
            np.testing.assert_array_equal(getattr(store, name), getattr(alone, name))
        np.testing.assert_array_equal(store.maps[:], alone.maps[:])
        assert store.failures == alone.failures and list(store.failures) == [7]
        for count in (30, 300):
            counting = Counting(client)
            assert run(tmp_path / f"{count}.zarr", cases(count), client=counting).done.all()
            assert counting.most <= 2 * map_cases.AHEAD
        with pytest.raises(FileNotFoundError):  # a store that cannot be written ends the run, by its own error
            run(tmp_path / "gone.zarr", cases(3), Vanish(str(tmp_path)), client=client)


@dataclass(frozen=True)
class Vanish:
    """Removes the store while its maps are made."""

    folder: str

    def __call__(self, x):
        import shutil

        shutil.rmtree(Path(self.folder) / "gone.zarr", ignore_errors=True)
        return x[:, 0]


def test_memory_is_flat_in_the_number_of_images(tmp_path):
    peaks = []
    tracemalloc.start()  # sees NumPy's arrays
    for count in (40, 40, 400):
        tracemalloc.reset_peak()
        run(tmp_path / str(len(peaks)), cases(count), lambda x: x[:, 0], size=160, batch=10)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
    tracemalloc.stop()
    assert peaks[2] - peaks[1] < 4  # MiB; the maps of 360 images more are 35 MiB


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    checkpoints.save(models.build("squeezenet1_1", generator=torch.Generator().manual_seed(0)), path, {"size": 48})
    return path


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients"])
def test_a_method_on_a_checkpoint(tmp_path, checkpoint, method):
    options = {"steps": 3, "chunk": map_cases.CHUNK} if method == "integrated_gradients" else {}
    given = {"steps": 3} if options else {}
    data = cases(4, side=48).subset([1, 2, 3])
    store = map_cases.explain_dataset(data, tmp_path / "s.zarr", checkpoint, method, given, progress=False)
    model, card = checkpoints.load(checkpoint)
    for i, case in enumerate(data):
        alone = attribute(method, model, case.image[None], 0, **options, progress=False)
        np.testing.assert_allclose(store.maps[i], alone.map[0], atol=1e-6)
        assert store.scores[i] == pytest.approx(float(alone.scores[0]), rel=1e-5)
        if alone.completeness_gap is None:
            assert np.isnan(store.gaps[i])
        else:
            assert store.gaps[i] == np.float32(alone.completeness_gap)  # its own, not that of its batch
    said = store.attributes
    assert said["checkpoint"] == {"architecture": "squeezenet1_1", "sha256": card["sha256"]}
    assert said["map_shape"] == [48, 48] and said["target"] == 0
    assert said["options"] == options


def test_which_methods_give_a_gap():
    network, x = Linear(weights() / 100), torch.rand(1, 1, SIZE, SIZE)
    few = {"integrated_gradients": {"steps": 2}, "kernel_shap": {"samples": 512}, "lime": {"samples": 20}}
    few["occlusion"] = {"window": 4, "stride": 4}
    found = set()
    for method in set(METHODS) - {"grad_cam", "guided_grad_cam", "layer_cam"}:  # of convolutions, without a gap
        gap = attribute(method, network, x, 0, progress=False, **few.get(method, {})).completeness_gap
        found |= set() if gap is None else {method}
    assert found == set(map_cases.COMPLETE)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"checkpoint": "none.safetensors"}, ValueError, "none.json: missing"),
        ({"method": "gradcam"}, ValueError, "method: 'gradcam' is unknown"),
        ({"options": {"steps": 3}}, TypeError, "steps: saliency has no such option"),
        ({"target": 5}, ValueError, "target: 5 is out of range"),
    ],
)
def test_bad_input_of_a_method_writes_nothing(tmp_path, checkpoint, changes, kind, says):
    given = {"checkpoint": checkpoint, "method": "saliency"} | changes
    with pytest.raises(kind, match=says):
        map_cases.explain_dataset(cases(2), tmp_path / "s.zarr", **given, progress=False)
    assert not (tmp_path / "s.zarr").exists()


def test_a_worker_refuses_another_checkpoint(checkpoint):
    with pytest.raises(checkpoints.CheckpointError, match="sha256 is"):
        map_cases.Explainer(str(checkpoint), "0" * 64, "saliency", {})(torch.rand(1, 1, 48, 48))


def test_the_command(tmp_path, checkpoint, monkeypatch, capsys):
    import typer

    broken = cases(12, side=48, broken=(3,))
    monkeypatch.setattr("xai_lib.data.load", lambda name, root, split: broken)
    given = {"checkpoint": checkpoint, "method": "saliency", "out": tmp_path / "s.zarr"}
    command.attribute(**given, dataset="tiny", limit=3)
    assert "3 maps of 3 images" in capsys.readouterr().out
    with pytest.raises(typer.Exit) as end:
        command.attribute(**given | {"out": tmp_path / "t.zarr"}, dataset="tiny", limit=5)
    shown = capsys.readouterr().out
    assert end.value.exit_code == 1 and "4 maps of 5 images" in shown and "image 3 (" in shown and "doe" not in shown
    for words, says in (
        ({}, "either an image or --dataset"),
        ({"image": Path("a.png"), "dataset": "tiny"}, "either an image or --dataset"),
        ({"image": Path("a.png"), "limit": 3}, "--limit belongs to --dataset"),
        ({"dataset": "tiny", "limit": 0}, "limit: 0 is below 1"),
    ):
        with pytest.raises(ValueError, match=says):
            command.attribute(**given, **words)
