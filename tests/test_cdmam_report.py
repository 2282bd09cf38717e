import numpy as np
import pandas as pd
import pytest
from cdmam_images import draw
from mammogram_files import truncate, write_dicom
from PIL import Image

from xai_lib.cdmam import report as reports
from xai_lib.cdmam.geometry import CELLS
from xai_lib.cdmam.limits import Matrices, read_matrices
from xai_lib.cdmam.locate import nominal
from xai_lib.cdmam.report import ReadoutError, image_files, read_folder, read_image, read_scores

PIXEL_MM = 0.4


@pytest.fixture(scope="module")
def pictures():
    return [draw(PIXEL_MM, noise=6.0, seed=s) for s in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """Two PNG, one MONOCHROME1 DICOM with a name in its header and none in its own, and files that cannot be read."""
    place = tmp_path_factory.mktemp("phantom")
    for name, image in zip(("a.png", "b.png"), pictures, strict=False):
        Image.fromarray(image.astype(np.uint16) * 16).save(place / name)
    grey = (1000 - pictures[2]).astype(np.uint16)
    write_dicom(
        place / "c", grey, bits=10, PhotometricInterpretation="MONOCHROME1", ImagerPixelSpacing=[PIXEL_MM, PIXEL_MM]
    )
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 4000, (700, 450)).astype(np.uint16)).save(place / "noise.png")
    Image.fromarray(rng.integers(0, 4000, (700, 450)).astype(np.uint16)).save(place / "broken.png")
    truncate(place / "broken.png")
    (place / "notes.txt").write_text("not an image")
    return place


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new" / "results"
    return read_folder([folder], out, progress=False), out


@pytest.fixture
def known(monkeypatch):
    """The placement is known, so that a test need not find it."""
    monkeypatch.setattr(reports, "locate", lambda image, pixel_mm: nominal(image.shape, PIXEL_MM, 1.0))


def save(path, image):
    Image.fromarray(np.round(image * 16).astype(np.uint16)).save(path)
    return path


def test_the_good_images_are_read_and_the_bad_ones_listed(done):
    found, _ = done
    assert found.matrices.images == ("a.png", "b.png", "c")
    assert [(s.source, s.why[:24]) for s in found.refused] == [
        ("broken.png", "not a readable image: im"),
        ("noise.png", "image: no grid was found"),
    ]
    seen = np.zeros((16, 16), dtype=bool)
    seen[:4, 8:] = True
    for hits in (*found.matrices.corner, *found.matrices.centre):
        assert hits[CELLS & seen].all()
    assert not found.matrices.corner[:, ~CELLS].any()


def test_what_lies_in_the_folder_of_results(done):
    found, out = done
    assert sorted(p.name for p in out.iterdir()) == ["curve.csv", "matrices.csv", "report.md"]
    stored = read_matrices([out / "matrices.csv"])
    assert stored.images == found.matrices.images
    assert (stored.corner == found.matrices.corner).all() and (stored.centre == found.matrices.centre).all()
    curve = pd.read_csv(out / "curve.csv")
    assert curve["fitted_um"].to_numpy() == pytest.approx(found.readout.fitted_um)
    assert (curve["low_um"] <= curve["high_um"]).all()
    text = (out / "report.md").read_text()
    for line in (
        "- a.png",
        "- noise.png: image: no grid was found",
        "read from 3 images; the European",
        "| acceptable |",
    ):
        assert line in text
    assert "Secret" not in text and str(out.parent) not in text


def test_scores_of_another_reader_give_the_same_report(done, tmp_path):
    found, out = done
    again = read_scores([out / "matrices.csv"], tmp_path / "again")
    assert again.readout.fitted_um == pytest.approx(found.readout.fitted_um)
    assert (tmp_path / "again" / "curve.csv").read_text() == (out / "curve.csv").read_text()


def test_the_seed_and_the_discs_that_count(done, tmp_path):
    found, out = done
    other = read_scores([out / "matrices.csv"], tmp_path, use="centre", seed=0)
    assert not np.allclose(other.readout.fitted_um, found.readout.fitted_um)
    one, two = (read_scores([out / "matrices.csv"], tmp_path, seed=s).intervals for s in (0, 1))
    assert (one.low_um == found.intervals.low_um).all() and (one.low_um != two.low_um).any()


def test_the_figure_is_drawn_by_the_function_given(done, tmp_path):
    _, out = done
    seen = {}

    class Figure:
        def savefig(self, path, dpi):
            seen["path"] = path

    def draw_curve(curves, limits):
        seen.update(curves=curves, limits=limits)
        return Figure()

    read_scores([out / "matrices.csv"], tmp_path, draw=draw_curve)
    assert seen["path"] == tmp_path / "curve.png"
    assert list(seen["curves"]["3 images"]) == ["predicted", "extrapolated", "low", "high"]
    assert list(seen["limits"]) == ["acceptable", "achievable"]


def test_one_image_gives_a_curve_without_interval(known, tmp_path, pictures):
    found = read_folder([save(tmp_path / "a.png", pictures[0])], tmp_path / "out", progress=False)
    assert found.intervals is None
    assert "One image gives no interval" in (tmp_path / "out" / "report.md").read_text()


def test_another_exposure_is_a_warning(known, tmp_path, pictures):
    files = [
        save(tmp_path / f"{k}.png", image) for k, image in enumerate([pictures[0], pictures[1], pictures[2] * 1.1])
    ]
    warnings = read_folder(files, tmp_path / "out", progress=False).warnings
    assert [w for w in warnings if "exposure" in w] == [
        "2.png: its background is +10% off the middle of the images: another exposure?"
    ]


def test_another_size_is_an_error(known, tmp_path, pictures):
    files = [save(tmp_path / "a.png", pictures[0]), save(tmp_path / "b.png", np.pad(pictures[1], 3, mode="edge"))]
    with pytest.raises(ReadoutError, match=r"b\.png: image of 556 x 362 pixels, but a\.png has 550 x 356"):
        read_folder(files, tmp_path / "out", progress=False)


def test_equal_names_are_told_apart(known, tmp_path, pictures):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "a.png", pictures[0])
    found = read_folder([tmp_path / "one", tmp_path / "two"], tmp_path / "out", progress=False)
    assert found.matrices.images == ("a.png", "a.png (2)")


def test_values_of_a_dicom_are_raw(folder, pictures):
    pixels, pixel_mm = read_image(folder / "c")
    assert pixel_mm == PIXEL_MM
    assert np.allclose(pixels, (1023 - (1000 - pictures[2]).astype(np.uint16)) / 1023, atol=1e-6)


def test_16_bits_of_a_png_stay(folder, pictures):
    assert np.allclose(read_image(folder / "a.png")[0] * 65535, pictures[0].astype(np.uint16) * 16.0, atol=0.1)


def test_bad_input_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        image_files([tmp_path / "nowhere"])
    with pytest.raises(ReadoutError, match="paths: no image file"):
        image_files([tmp_path])
    with pytest.raises(ReadoutError, match=r"no image of 2 shows a phantom.*broken\.png.*noise\.png: image: no grid"):
        read_folder([folder / "broken.png", folder / "noise.png"], tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="use: 'left', expected"):
        read_folder([folder], tmp_path / "out", use="left", progress=False)
    with pytest.raises(NotADirectoryError, match=r"notes\.txt: is a file; expected a folder"):
        read_folder([folder], folder / "notes.txt", progress=False)


def test_no_image_leaves_the_matrices_of_the_limits_untouched():
    empty = Matrices(np.zeros((0, 16, 16), bool), np.zeros((0, 16, 16), bool), ())
    with pytest.raises(ValueError, match="no image"):
        reports.summary(empty, "corner", 0)
