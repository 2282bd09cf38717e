"""How likely discs are found."""

import numpy as np
import pytest

from xai_lib.cdmam.detectability import DEPTHS, probabilities, smoothing_px, table
from xai_lib.cdmam.geometry import CELLS
from xai_lib.cdmam.phantom import Detector


def test_invisible_discs_are_guessed_and_deep_ones_found():
    found = table(Detector())
    assert found.shape == (16, len(DEPTHS))
    assert np.abs(found[:, 0] - 0.25).max() < 0.06  # 800 fields: sd 0.015
    assert (found[:13, -1] > 0.99).all()


def test_larger_discs_are_found_at_less_depth():
    reached = (table(Detector()) > 0.625).argmax(1)
    assert (np.diff(reached) >= 0).all() and reached[0] < reached[-1]


def test_probabilities_depend_on_depth_over_noise_alone():
    np.testing.assert_allclose(probabilities("#1", contrast=2.0, noise=2.0), probabilities("#1"), atol=1e-5)
    assert (probabilities("#1", contrast=2.0) >= probabilities("#1") - 0.02).all()
    assert (probabilities("#1")[~CELLS] == 0).all()
    assert probabilities("#4")[CELLS].mean() < probabilities("#1")[CELLS].mean()


def test_smoothing():
    assert smoothing_px(1) == 1.5 and smoothing_px(10) == 5
    assert pytest.approx(0.25, abs=0.02) == table(Detector())[-1, 0]
