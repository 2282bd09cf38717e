import numpy as np
import pandas as pd

from xai_lib.studies.mammograms import examples as me
from xai_lib.studies.mammograms.maps import find_boxes
from xai_lib.studies.mammograms.variants import COSTLY


def test_example_images_by_their_score():
    scores = [2.0, -1.0, 3.0, 0.5, -0.2, 1.0]
    maps = pd.DataFrame({"image": range(6), "stage": "test", "variant": COSTLY[0], "score": scores})
    assert me.example_images(maps, 2) == dict(zip(me.GROUPS, ([2, 0], [5, 3], [4, 1]), strict=True))
    assert me.example_images(maps, 1) == dict(zip(me.GROUPS, ([2], [3], [4]), strict=True))
    few = maps[maps["score"] > 2.5]
    assert me.example_images(few, 2) == dict(zip(me.GROUPS, ([2], [], []), strict=True))


def test_shrunk_keeps_the_furthest_value():
    values = np.zeros((8, 12), np.float32)
    values[1, 2], values[6, 9] = -2.0, 1.0
    values[5, 10] = 0.5
    small = me.shrunk(values)
    assert small.shape == (2, 3) and small.dtype == np.int8
    assert small[0, 0] == -127 and 60 <= small[1, 2] <= 66 and np.count_nonzero(small) == 2
    assert not me.shrunk(np.zeros((8, 8), np.float32)).any()


def test_kept_maps_come_back(tmp_path, monkeypatch):
    """Small copies with the box of the full map; maps that no figure shows are not kept."""
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    values = np.zeros((128, 64), np.float32)
    values[40:60, 20:30] = 1
    me.keep({"a": 1}, {"saliency": values, "untrained saliency": values})
    with np.load(me._file({"a": 1})) as stored:
        assert set(stored.files) == {"saliency", "saliency/box"}
        assert stored["saliency"].shape == (32, 16) and stored["saliency"][12, 6] == 127
        assert stored["saliency/box"].tolist() == find_boxes(values, "saliency")["union", me.DEFAULT].tolist()
    assert not me._file({"a": 2}).is_file()
