import numpy as np
import pytest
import scipy.io

from xai_lib.data import oasbud
from xai_lib.data.case import DataError, hashed_id
from xai_lib.data.oasbud import LINE_MM, SAMPLE_MM, Display, b_mode, envelope, log_compress

SHAPES = {1: (800, 60), 2: (1000, 60)}


def pulses(shape, seed=0):
    """RF lines: 10 MHz, sampled at 40 MHz, with an amplitude that differs from place to place."""
    rng = np.random.default_rng(seed)
    carrier = np.cos(2 * np.pi * 10 / 40 * np.arange(shape[0]) + 0.3)[:, None]
    return np.round(500 * rng.uniform(0.1, 1, shape) * carrier).astype(np.int16)


def roi(shape, rows=slice(200, 400), cols=slice(10, 30)):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[rows, cols] = 1
    return mask


def lesion(identifier, malignant, birads, **changes):
    made = {"id": identifier, "birads": birads, "class": malignant}
    for plane, shape in SHAPES.items():
        made |= {f"rf{plane}": pulses(shape, plane), f"roi{plane}": roi(shape)}
    return made | changes


def write(folder, lesions):
    """A MATLAB file in the published format: a 1 x n struct array called data."""
    folder.mkdir(exist_ok=True)
    data = np.empty((1, len(lesions)), dtype=[(name, object) for name in lesions[0]])
    for i, made in enumerate(lesions):
        for name, value in made.items():
            data[0, i][name] = value
    scipy.io.savemat(folder / "OASBUD.mat", {"data": data}, do_compression=True)
    return folder


@pytest.fixture
def root(tmp_path):
    """Three lesions of two patients."""
    return write(tmp_path / "OASBUD", [lesion(7, 1, "5"), lesion(7, 0, "3"), lesion(9, 0, "4a")])


def test_two_cases_of_every_lesion(root):
    cases = oasbud.load_oasbud(root)
    assert len(cases) == 6 and cases.labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert cases.table["source"][1] == "oasbud/lesion-001-plane-2"
    assert set(cases.table["view"]) == {"plane 1", "plane 2"} and list(cases.table["birads"])[-1] == "4a"


def test_lesions_of_one_patient_share_a_hashed_id(root):
    ids = oasbud.load_oasbud(root).patient_ids
    assert ids.tolist() == [hashed_id("oasbud/7")] * 4 + [hashed_id("oasbud/9")] * 2


def test_pixels_are_square(root):
    case = oasbud.load_oasbud(root)[0]
    assert case.image.shape == (1, round(800 * SAMPLE_MM / LINE_MM), 60) == (1, 202, 60)
    assert case.pixel_mm == pytest.approx(0.0762) and case.mask.shape == (202, 60)
    depth, width = 200 * SAMPLE_MM, 20 * LINE_MM  # of the annotated rectangle
    (box,) = case.boxes.tolist()
    assert (box[2] - box[0]) * case.pixel_mm == pytest.approx(depth, abs=0.08)
    assert (box[3] - box[1]) * case.pixel_mm == pytest.approx(width, abs=0.08)
    assert int(case.mask.sum()) * case.pixel_mm**2 == pytest.approx(depth * width, rel=0.03)


def test_image_is_grey_in_0_1_and_the_same_each_time(root):
    cases = oasbud.load_oasbud(root, pixel_mm=0.1)
    image = cases[3].image
    assert image.min() >= 0 and image.max() == 1 and str(image.dtype) == "torch.float32"
    assert (
        image.shape == (1, round(1000 * SAMPLE_MM / 0.1), round(60 * LINE_MM / 0.1)) and (image == cases[3].image).all()
    )


def test_sampling_constants():
    assert SAMPLE_MM == pytest.approx(0.01925)  # 1540 m/s / (2 * 40 MHz)
    assert 510 * LINE_MM == pytest.approx(38.9, abs=0.05)  # width of the probe


def test_envelope_of_a_modulated_carrier():
    t = np.arange(4000)
    amplitude = 3 + np.cos(2 * np.pi * t / 1000)
    lines = np.outer(amplitude * np.cos(2 * np.pi * t / 4 + 0.7), [1, 2])
    np.testing.assert_allclose(envelope(lines), np.outer(amplitude, [1, 2]), rtol=1e-6)


def test_log_compression_by_hand():
    amplitude = np.array([[1.0, 10 ** (-10 / 20)], [10 ** (-50 / 20), 0.0]])
    np.testing.assert_allclose(log_compress(amplitude, 50), [[1, 0.8], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(log_compress(7 * amplitude, 100), [[1, 0.9], [0.5, 0]], atol=1e-6)


def test_b_mode_of_a_constant_echo_is_flat():
    rf = np.outer(np.cos(2 * np.pi * np.arange(800) / 4), np.ones(40))
    np.testing.assert_allclose(b_mode(rf, Display()), 1, atol=1e-6)


@pytest.mark.parametrize("option", ["dynamic_range_db", "pixel_mm", "line_mm"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_wrong_number(root, option, value):
    with pytest.raises(ValueError, match=option):
        oasbud.load_oasbud(root, **{option: value})


def test_fingerprint_depends_on_the_display(root):
    first = oasbud.load_oasbud(root).fingerprint
    assert first == oasbud.load_oasbud(root / "OASBUD.mat").fingerprint
    assert first != oasbud.load_oasbud(root, dynamic_range_db=60).fingerprint


def test_classes_the_other_way_round(tmp_path):
    root = write(tmp_path, [lesion(1, 0, "5"), lesion(2, 1, "3")])
    with pytest.raises(DataError, match=r"mean BI-RADS category 3\.0 of the malignant lesions, 5\.0 of the benign"):
        oasbud.load_oasbud(root)
    assert oasbud.load_oasbud(root, malignant=0).labels.tolist() == [1, 1, 0, 0]
    assert "give malignant=0" in str(oasbud.check_oasbud(root))


NAN = np.full(SHAPES[1], np.nan)
FAULTS = [
    ({"roi1": roi((60, 800))}, "mask has another size than its image"),
    ({"roi1": roi(SHAPES[1]) * 0}, "mask has no pixel"),
    ({"rf1": NAN}, "rf1 has no signal or is not finite"),
    ({"rf1": np.zeros(SHAPES[1])}, "rf1 has no signal or is not finite"),
    ({"rf1": np.zeros((0, 0))}, "rf1 is no matrix of real numbers"),
    ({"rf1": "text"}, "rf1 is no matrix of real numbers"),
]


@pytest.mark.parametrize(("changes", "why"), FAULTS)
def test_bad_plane_is_skipped_and_counted_or_refused(tmp_path, monkeypatch, changes, why):
    monkeypatch.setattr(oasbud, "LESIONS", 2)
    root = write(tmp_path, [lesion(1, 1, "5", **changes), lesion(2, 0, "3")])
    cases = oasbud.load_oasbud(root)
    assert len(cases) == 3
    assert cases.skipped[0].source == "oasbud/lesion-001-plane-1" and cases.skipped[0].why.startswith(why)
    with pytest.raises(DataError, match=f"^oasbud: oasbud/lesion-001-plane-1: {why}"):
        oasbud.load_oasbud(root, strict=True)


@pytest.mark.parametrize("value", [2, "malignant", np.array([0, 1])])
def test_bad_class(tmp_path, value):
    root = write(tmp_path, [lesion(1, 1, "5"), lesion(2, value, "3")])
    cases = oasbud.load_oasbud(root)
    assert len(cases) == 2 and [item.why.split(":")[0] for item in cases.skipped] == ["class is neither 0 nor 1"] * 2


def test_mask_at_the_border_works(tmp_path):
    whole = {f"roi{plane}": np.ones(shape, np.uint8) for plane, shape in SHAPES.items()}
    case = oasbud.load_oasbud(write(tmp_path, [lesion(1, 1, "5", **whole)]))[0]
    assert case.mask.all() and case.boxes.tolist() == [[0, 0, 202, 60]]


def test_strict_wants_every_lesion(root, monkeypatch):
    with pytest.raises(DataError, match="lesions are missing: 3 of 100"):
        oasbud.load_oasbud(root, strict=True)
    monkeypatch.setattr(oasbud, "LESIONS", 3)
    assert len(oasbud.load_oasbud(root, strict=True)) == 6


def test_check_counts(root):
    report = oasbud.check_oasbud(root)
    assert report.found == {"lesions": 3, "benign planes": 4, "malignant planes": 2}
    assert report.missing == ["97 lesions"] and report.notes == ["2 patients"]


def test_no_usable_plane(tmp_path):
    empty = {f"roi{plane}": roi(shape) * 0 for plane, shape in SHAPES.items()}
    root = write(tmp_path, [lesion(1, 1, "5", **empty)])
    with pytest.raises(DataError, match="no plane can be used"):
        oasbud.load_oasbud(root)
    assert len(oasbud.check_oasbud(root).faulty) == 2


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        oasbud.load_oasbud(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"OASBUD\.mat is missing; see data/README\.md"):
        oasbud.load_oasbud(tmp_path)
    path = tmp_path / "OASBUD.mat"
    path.write_bytes(b"no MATLAB file" * 20)
    with pytest.raises(DataError, match="not a readable MATLAB file"):
        oasbud.load_oasbud(path)
    scipy.io.savemat(path, {"other": 1})
    with pytest.raises(DataError, match="holds no lesion; expected a struct array 'data'"):
        oasbud.load_oasbud(path)
    write(tmp_path, [{"id": 1, "rf1": 1}])
    with pytest.raises(DataError, match="'data' lacks the fields rf2, roi1, roi2, birads, class"):
        oasbud.load_oasbud(path)


def test_truncated_file(root):
    path = root / "OASBUD.mat"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"OASBUD\.mat: not a readable MATLAB file"):
        oasbud.load_oasbud(root)
