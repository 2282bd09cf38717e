import numpy as np
import pytest
from films import films

from xai_lib import data
from xai_lib.config import runtime
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.patches import real as patch_real
from xai_lib.training import FitConfig

FIT = FitConfig(epochs=1, batch_size=8, augment="none", patience=None)
SETUP = Setup(window=32, stride=32, steps=2, segments=8, samples=8)
KINDS = ("malignant", "normal", "benign") * 6
REAL = patch_real.RealStudy(
    "films", weights=None, folds=2, fit=FIT, setup=SETUP, size=64, malignant=2, others=2, replicates=10
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(data, "load", lambda name, root: films(KINDS, tuple(i % 2 == 0 for i in range(len(KINDS)))))
        patch.setattr(patch_real, "with_centres", _close(patch_real.with_centres))
        patch.setattr(patch_real, "NETWORK", "squeezenet1_1")  # a quarter of MobileNetV2's time
        yield patch_real.real_record(REAL, 0, runtime("cpu"), "the command", progress=False)


def _close(with_centres):
    """Squares of 10 mm: the films are small."""
    return lambda *args, **options: with_centres(*args, **options, side_mm=10.0)


@pytest.mark.filterwarnings("ignore:kernel_shap")
def test_the_record_says_what_was_done(made):
    record, result = made
    assert (
        record.command == "the command" and record.data["name"] == "films" and record.data["cases"] == 12
    )  # 6 lesions, 6 normal places
    assert record.parameters["backbone"] == "squeezenet1_1" and record.parameters["epochs"] == 1
    assert set(record.verdicts) == {"1.1", "1.2", "1.3", "1.4"}
    assert record.verdicts["1.1"].verdict == "not decidable here"  # one network alone
    assert result.counts["TP"] + result.counts["FN"] == 2 and result.counts["TN"] + result.counts["FP"] == 2


@pytest.mark.filterwarnings("ignore:kernel_shap")
def test_every_patch_is_scored_once_in_each_set(made):
    _, result = made
    table = result.networks.set_index("against")
    assert list(table.index) == ["normal", "benign"] and set(table["network"]) == {"squeezenet1_1"}
    assert np.isfinite(table.loc["normal", "auc"].value)
    assert np.isnan(result.intervention["called_twin"][0].value)  # real breasts have no twins
    assert np.isfinite(result.intervention["called_shifted"][0].value)
