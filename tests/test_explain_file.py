import matplotlib

matplotlib.use("Agg")

import json

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from xai_lib import checkpoints, models
from xai_lib.explain_file import explain_file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    checkpoints.save(models.build("squeezenet1_1", generator=torch.Generator().manual_seed(0)), path, {"size": 64})
    return path


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "mass.png"
    Image.fromarray((np.arange(70 * 90).reshape(70, 90) % 251).astype(np.uint8)).save(path)
    return path


def dicom(path):
    image = pydicom.Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.PatientName, image.PatientID = "Doe^Jane", "12345"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 70, 60, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelData = (np.arange(70 * 60) % 4096).astype("<u2").tobytes()
    image.save_as(path, enforce_file_format=True)
    return path


def test_three_files(png, checkpoint, tmp_path):
    picture, array, facts = explain_file(png, checkpoint, "integrated_gradients", tmp_path / "out", {"steps": 4})
    assert [p.name for p in (picture, array, facts)] == [
        f"mass.integrated_gradients.{e}" for e in ("png", "npy", "json")
    ]
    assert Image.open(picture).size[0] > 500
    m = np.load(array)
    assert m.shape == (64, 64) and m.dtype == np.float32 and np.isfinite(m).all() and m.any()
    said = json.loads(facts.read_text())
    assert said["options"] == {"steps": 4} and said["input_size"] == 64 and said["image_shape"] == [70, 90]
    assert said["checkpoint"]["architecture"] == "squeezenet1_1" and len(said["checkpoint"]["sha256"]) == 64
    assert said["completeness_gap"] >= 0 and said["backward_passes"] == 4 and "torch" in said["versions"]


def test_a_dicom_file_and_nothing_of_its_header(checkpoint, tmp_path):
    paths = explain_file(dicom(tmp_path / "a.dcm"), checkpoint, "saliency", tmp_path / "out")
    for path in paths:
        assert b"Doe" not in path.read_bytes() and b"12345" not in path.read_bytes()


def test_the_size_can_be_chosen(png, checkpoint, tmp_path):
    assert np.load(explain_file(png, checkpoint, "saliency", tmp_path, size=48)[1]).shape == (48, 48)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"image": "none.png"}, ValueError, "none.png"),
        ({"checkpoint": "none.safetensors"}, (ValueError, OSError), "none.safetensors"),
        ({"method": "gradcam"}, ValueError, "method: 'gradcam' is unknown"),
        ({"options": {"steps": 3}}, TypeError, "steps: saliency has no such option"),
        ({"target": 5}, ValueError, "target: 5 is out of range"),
    ],
)
def test_bad_input_writes_nothing(changes, kind, says, png, checkpoint, tmp_path):
    given = {"image": png, "checkpoint": checkpoint, "method": "saliency", "out": tmp_path / "out"} | changes
    with pytest.raises(kind, match=says):
        explain_file(**given)
    assert not (tmp_path / "out").exists()
