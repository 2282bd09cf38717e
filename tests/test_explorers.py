import sys
from dataclasses import replace
from functools import partial
from io import BytesIO
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from linear_network import Linear
from matplotlib import pyplot as plt
from PIL import Image as Pillow

from xai_lib import explorers, models, omig
from xai_lib.data import Case, CaseDataset
from xai_lib.explorers import common
from xai_lib.explorers.deletion import threshold_figure
from xai_lib.explorers.mammograms import Window, covered, mammogram_figure
from xai_lib.explorers.omig import path_figure
from xai_lib.explorers.patches import patch_figure
from xai_lib.explorers.transfer import activation_figure
from xai_lib.explorers.ultrasound import pointing_figure
from xai_lib.studies.deletion.searches import Scene
from xai_lib.studies.mammograms.thesis_methods import THESIS, Setup


@pytest.fixture(autouse=True)
def no_figure_is_left(monkeypatch):
    for mark in (common.SWITCH, "JPY_SESSION_NAME"):
        monkeypatch.delenv(mark, raising=False)
    yield
    plt.close("all")


def case(size=8, lesion=(slice(0, 2), slice(0, 2)), boxes=()):
    mask = torch.zeros(size, size, dtype=torch.bool)
    if lesion:
        mask[lesion] = True
    image = torch.full((1, size, size), 0.25) + 0.5 * mask
    return Case(image, 1, mask, torch.tensor(boxes).reshape(-1, 4), 1.0, "p", "CC", "toy")


def dataset(cases):
    table = pd.DataFrame({"source": [str(k) for k in range(len(cases))], "label": 1, "patient_id": "p", "view": "CC"})
    return CaseDataset("toy", table.assign(kind="malignant"), partial(read, cases=cases))


def read(row, cases):
    return cases[int(row["source"])]


def words(figure):
    """All that is written in a figure."""
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    inside = [text.get_text() for axes in figure.axes for text in (axes.title, *axes.texts)]
    return " | ".join([figure.get_suptitle(), figure.get_supxlabel(), *legends, *inside])


# ---------------------------------------------------------------------------------------- live or still


def kernel(monkeypatch, **names):
    monkeypatch.setattr(common, "get_ipython", lambda: SimpleNamespace(kernel=object(), user_ns=names))


def test_a_program_is_not_a_person(monkeypatch):
    assert not explorers.interactive()  # no IPython at all
    kernel(monkeypatch)
    assert not explorers.interactive()  # papermill, nbval, nbconvert
    monkeypatch.setattr(common, "get_ipython", lambda: SimpleNamespace(user_ns={}))  # a terminal
    monkeypatch.setenv("JPY_SESSION_NAME", "somewhere.ipynb")
    assert not explorers.interactive()


def test_marks_of_a_person(monkeypatch):
    kernel(monkeypatch)
    monkeypatch.setenv("JPY_SESSION_NAME", "somewhere.ipynb")
    assert explorers.interactive()
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert explorers.interactive()
    monkeypatch.delitem(sys.modules, "google.colab")
    kernel(monkeypatch, __vsc_ipynb_file__="somewhere.ipynb")
    assert explorers.interactive()


def test_the_switch_decides(monkeypatch):
    monkeypatch.setenv(common.SWITCH, "1")
    assert explorers.interactive()
    kernel(monkeypatch, __vsc_ipynb_file__="somewhere.ipynb")
    monkeypatch.setenv(common.SWITCH, "0")
    assert not explorers.interactive()
    monkeypatch.setenv(common.SWITCH, "yes")
    with pytest.raises(ValueError, match="XAI_INTERACTIVE: 'yes' is not 0 or 1"):
        explorers.interactive()


def toy(calls):
    def draw(level, kind):
        calls.append((level, kind))
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.set_title(f"{kind} {level}")
        return figure

    controls = {
        "level": common.slider("level", 0, 10, 1, 3),
        "kind": common.dropdown("kind", {"the first": "a", "the second": "b"}, "a"),
    }
    return common.Explorer(draw, controls, "a toy")


def test_still_is_one_small_picture_and_no_widget(monkeypatch):
    calls, shown = [], []
    explorer = toy(calls)
    monkeypatch.setattr(common, "display", shown.append)
    monkeypatch.setattr(ipywidgets.Widget, "__init__", lambda *a, **k: pytest.fail("a widget was made"))
    explorer._ipython_display_()
    (picture,) = shown
    assert calls == [(3, "a")] and not plt.get_fignums()
    assert picture.alt == "a toy, level 3, kind a"
    assert Pillow.open(BytesIO(picture.data)).size == (2 * common.STILL_DPI, common.STILL_DPI)
    assert len(picture.data) < 3000


def test_live_follows_the_controls(monkeypatch):
    calls, shown = [], []
    monkeypatch.setenv(common.SWITCH, "1")
    monkeypatch.setattr(common, "display", shown.append)
    monkeypatch.setattr(common, "clear_output", lambda wait: shown.clear())
    toy(calls)._ipython_display_()
    before, box = shown
    level, kind = box.children[0].children
    assert isinstance(level, ipywidgets.IntSlider) and level.continuous_update
    level.value = 7
    (after,) = shown
    assert after.data != before.data and after.alt == "a toy, level 7, kind a"
    kind.value = "b"
    assert calls == [(3, "a"), (7, "a"), (7, "b")] and not plt.get_fignums()
    assert box.children[1].value == ""  # nothing is being computed


def test_it_says_that_it_computes(monkeypatch):
    said = []
    monkeypatch.setattr(common, "display", lambda _: None)
    monkeypatch.setattr(common, "clear_output", lambda wait: None)

    class Label(ipywidgets.Label):
        def __setattr__(self, name, value):
            said.extend([value] if name == "value" else [])
            super().__setattr__(name, value)

    monkeypatch.setattr(common.widgets, "Label", Label)
    toy([]).live()
    assert said[-2:] == ["computing …", ""]


def test_numbers_stay_whole_where_all_are():
    assert isinstance(common.slider("a", 0, 5, 1, 2)(), ipywidgets.IntSlider)
    assert isinstance(common.slider("a", 0, 5, 0.5, 2)(), ipywidgets.FloatSlider)
    assert common.steps("c", {"1": 1.0, "10": 10.0}, 10.0)().value == 10.0
    assert not common.steps("c", {"1": 1.0}, 1.0)().continuous_update
    assert common.checkbox("on", True)().value is True


# ---------------------------------------------------------------------------------------- study 1


def test_top_of_a_patch_by_hand():
    values = torch.full((8, 8), -1.0)
    values[:2, :2], values[3, 3:5] = 3.0, 2.0  # the top decile of 64 pixels: 4 in the lesion, 2 elsewhere
    one = case()
    figure = patch_figure(one, one.mask.numpy(), "lime", values, 0.1, 1.25)
    assert "inside the lesion: 67% of the top (by chance 6%" in words(figure)
    assert "log odds of malignant +1.2" in words(figure)
    drawn = figure.axes[2].images[1].get_array()
    assert np.nansum(np.ma.filled(drawn, np.nan)) == 6
    healthy = patch_figure(one, np.zeros((8, 8), bool), "lime", values, 0.1, 0.0)
    assert "without a lesion" in words(healthy)


def test_patch_maps_are_computed_once_and_known_ones_never():
    rng = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(2, 1, 8, 8, generator=rng))
    sets = {name: dataset([case(), case()]) for name in ("centred", "shifted")}
    sets["twin"] = dataset([case(lesion=None), case(lesion=None)])
    live = {name: torch.ones(1, 8, 8) for name in THESIS}
    explorer = explorers.patch_maps(model, sets, [0, 1], Setup(window=4, stride=4), known=live)
    explorer.draw(**explorer.first)
    assert len(model.seen) == 1  # the score alone
    choice = explorer.first | {"which": "twin", "method": "occlusion"}
    figure = explorer.draw(**choice)
    asked = len(model.seen)
    assert asked > 2 and "inside the place of the lesion" in words(figure)
    explorer.draw(**choice | {"share": 0.3})
    assert len(model.seen) == asked
    explorer.draw(**choice | {"image": 1})
    assert len(model.seen) > asked


# ---------------------------------------------------------------------------------------- study 2


def test_a_window_is_cut_at_the_border():
    assert Window(8, 4, 4).box((16, 8)) == (6, 2, 10, 6)
    assert Window(0, 7, 4).box((16, 8)) == (0, 5, 2, 8)
    assert Window(99, 99, 4).box((16, 8)) == (13, 5, 16, 8)
    image = torch.zeros(1, 16, 8)
    assert covered(image, Window(8, 4, 4), 0.5).sum() == 8.0 and image.sum() == 0


def test_box_and_score_by_hand():
    one = case(16, None, [[4, 4, 8, 12]])
    values = np.zeros((16, 16), np.float32)
    values[4:8, 4:8] = 1  # half of the annotation
    visited = {Window(2, 2, 4): 0.5, Window(8, 8, 4): 1.5}
    figure = mammogram_figure(one, 1.0, visited, 0.4, "saliency", values, 0.9)
    assert "Saliency, 0.900: IOU 0.50" in words(figure) and "log odds +1.00, here +1.50" in words(figure)
    assert figure.axes[0].images[0].get_array()[8, 8] == pytest.approx(0.4)
    trail = figure.axes[0].collections[0].get_array()
    assert trail.tolist() == [0.5, -0.5]  # the first window lowers the score: red, as in the map of Occlusion
    assert "no box" in words(mammogram_figure(one, 1.0, visited, 0.4, "saliency", 0 * values, 0.9))


def test_a_moved_window_asks_once_and_leaves_a_trail():
    weight = torch.zeros(2, 1, 16, 16)
    weight[1, 0, :8] = 1.0  # the score is the sum of the upper half
    model = Linear(weight)
    study = SimpleNamespace(
        dataset=dataset([case(16, None, [[4, 4, 8, 12]])]), twins=None, networks={"trained": model}, precision="float32"
    )
    study.setup = Setup(window=4, stride=2, baseline=0.0)
    known = {0: {"saliency": np.zeros((16, 16), np.float32)}}
    explorer = explorers.boxes_and_window(study, [0], known=known)
    assert len(model.seen) == 1
    grey = 64 / 255  # 0.25 in 8 bit
    choice = explorer.first | {"row": 4, "col": 8, "size": 4}
    assert f"log odds {128 * grey:+.2f}, here {112 * grey:+.2f}" in words(explorer.draw(**choice))
    explorer.draw(**choice | {"row": 12})
    asked = len(model.seen)
    figure = explorer.draw(**choice)
    assert len(model.seen) == asked and len(figure.axes[0].collections[0].get_offsets()) == 2
    figure = explorer.draw(**choice | {"method": "occlusion"})
    assert len(model.seen) > asked and "Occlusion" in words(figure)


# ---------------------------------------------------------------------------------------- study 3


def test_hits_and_misses_by_hand():
    areas = np.zeros((8, 8), np.uint8)
    areas[:4, :4], areas[:4, 4:] = 1, 2
    cam = np.array([[2.0, 1.0], [0.0, -1.0]], np.float32)  # maximum in the mass, minimum below right, in nothing
    said = partial(words_of_pointing, areas, cam)
    assert "mass: HIT (area 25%) | ring: miss" in said("maximum", 0, (0.0, 0.0))
    assert "HIT" not in said("minimum", 0, (0.0, 0.0))
    assert "mass: HIT" in said("both", 0, (0.0, 0.0)) and "ring: miss" in said("both", 0, (0.0, 0.0))
    assert "ring: HIT (area 25%)" in said("minimum", 3, (0.0, 0.0))  # (5.5, 5.5) rounds to (6, 6), the ring ends at 3
    assert "mass: miss (area 25%) | ring: HIT" in said("maximum", 0, (0.0, 4.0))


def words_of_pointing(areas, cam, which, tolerance, offset):
    return words(pointing_figure(case(), areas, cam, which, tolerance, offset, 0.5))


def test_pointing_reads_what_the_run_holds():
    areas = np.zeros((8, 8), np.uint8)
    areas[:4, :4] = 1
    maps = np.array([[[[2.0, 1.0], [0.0, -1.0]]]], np.float32)  # (epochs, images, h, w)
    run = SimpleNamespace(
        test=np.array([1]), maps=maps, logits=np.array([[0.5]]), offset=np.array([0.5, 0.5]), epoch=lambda: 0
    )
    done = SimpleNamespace(runs=[run], dataset=dataset([case(), case()]), areas=[areas, areas])
    explorer = explorers.pointing(done, [0, 1])
    assert explorer.first["image"] == 1  # the other was not tested
    assert "mass: HIT" in words(explorer.draw(1, "maximum", 0, False))
    assert "mass: miss" in words(explorer.draw(1, "maximum", 0, True))
    with pytest.raises(ValueError, match=r"indices: \[0\] hold no image that the first network was tested on"):
        explorers.pointing(done, [0])


# ---------------------------------------------------------------------------------------- study 4


def test_share_inside_by_hand():
    m = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    quarter = case(lesion=(slice(0, 4), slice(0, 4)))
    figure = activation_figure({"centred": quarter, "twin": replace(quarter, mask=None)}, {"centred": m, "twin": m})
    assert "inside 75%\n(area 25%)" in words(figure)
    assert words(figure).count("inside") == 1


def test_activations_are_read_once_per_network():
    torch.manual_seed(0)
    model = models.build("resnet10").eval().requires_grad_(False)
    moved = {name: dataset([case(64, (slice(16, 32), slice(16, 32)))]) for name in ("centred", "shifted", "twin")}
    explorer = explorers.activations({"start": model}, moved, [0])
    passes = []
    model.features[0].register_forward_hook(lambda *_: passes.append(1))
    assert words(explorer.draw(0, "start", "group4")).count("(area 6%)") == 3
    asked = len(passes)
    assert asked and "start, group1" in words(explorer.draw(0, "start", "group1"))
    assert len(passes) == asked


# ---------------------------------------------------------------------------------------- study 5


class Brightness(torch.nn.Module):
    """One logit: the sum of the image minus 17."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.weight * x.sum((1, 2, 3), keepdim=False)[:, None] - 17


def test_theta_by_hand():
    one = case()  # 64 x 0.25 + 4 x 0.5 = 18
    scene = Scene(3, one, torch.full((1, 8, 8), 0.25), np.ones((8, 8), bool), one.mask.numpy())
    keep = torch.ones(1, 8, 8)
    keep[0, :2, :2], keep[0, 4:, 4:] = 0.2, 0.6
    found = SimpleNamespace(keep=keep, score=torch.tensor([1.0]))
    quarter = lambda x, keep: torch.full_like(x, 0.25)  # noqa: E731
    explorer = explorers.threshold(Brightness().eval(), quarter, [scene], found)
    figure = explorer.draw(0, 0.5)
    assert "orange: 6.2% of the breast" in words(figure)
    assert "image +1.0 | healthy twin -1.0 | inpainted -1.0" in words(figure)
    assert "inpainted +1.0" in words(explorer.draw(0, 0.1)) and "orange: 0.0%" in words(explorer.draw(0, 0.1))
    assert "orange: 31.2%" in words(explorer.draw(0, 0.6))
    curve = dict(zip(*figure.axes[2].lines[0].get_data(), strict=True))
    assert curve[0.15] == 1.0 and curve[0.2] == -1.0 == curve[0.95]


def test_all_of_an_image_as_region_is_drawn():
    figure = threshold_figure(case(), np.ones((8, 8), bool), torch.zeros(1, 8, 8), 0.9, {0.5: 1.0}, (1.0, 0.0, -1.0))
    assert "orange: 100.0%" in words(figure)


# ---------------------------------------------------------------------------------------- study 6


def test_a_linear_network_has_the_same_map_for_every_path():
    weight = torch.randn(1, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    member = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(100, 1, bias=False)).requires_grad_(False).eval()
    member[1].weight.copy_(weight.flatten()[None])
    ensemble = SimpleNamespace(members=[member], normalise=lambda images: torch.from_numpy(images)[:, None])
    image = np.zeros((10, 10), np.float32)
    explorer = explorers.omig_path({"toy": (ensemble, image)}, c=1.0, length=1)
    assert explorer.first == {"image": "toy", "c": 1.0, "length": 1}
    fall = float(weight.square().sum())
    said = words(explorer.draw("toy", 1.0, 1))
    assert "toy, c = 1, L = 1 | correlation with sensitivity 1.00, clipped 0." in said
    assert f"predicted midpoint 0.0000 → {-fall:.4f} µm" in said
    assert "± " in explorer.draw("toy", 10.0, 5).axes[2].get_xlabel()
    found = omig.explain([member], torch.zeros(1, 1, 10, 10), 0.5, 1)
    assert f"→ {-fall / 2:.4f} µm" in words(path_figure("toy", image, found))


def test_a_choice_that_is_no_usual_one_is_among_the_controls():
    explorer = explorers.omig_path({"toy": (None, None)}, c=0.7, length=7)
    assert explorer.controls["c"]().value == 0.7 and explorer.controls["length"]().value == 7
