"""Rows of study 5's table of masks with known figures, for the tests of what is made of them."""

import math

import numpy as np
import pandas as pd

from xai_lib.results import Estimate
from xai_lib.studies.deletion import comparisons as deletion_comparisons

NAN = math.nan
DIAGONAL = 100.0


def rows(variant, D, **known):
    """A variant's rows, one case of its own patient for each D; an empty mask where D is NaN."""
    D = np.asarray(D, float)
    empty = np.isnan(D)
    nan = np.where(empty, NAN, 1.0)
    frame = {"case": [f"c{i}" for i in range(len(D))], "patient_id": range(len(D)), "variant": variant}
    frame |= {"pixel_mm": 0.5, "score": 1.0, "after": -1.0, "twin": -1.0, "D": D, "H": 2 * D, "A": 0.1 * ~empty}
    frame |= {"over": 0.05 * ~empty, "components": 1 * ~empty, "empty": empty, "area": 10 * ~empty, "hit": 0.5 * nan}
    frame |= {"circumference": 0.4 * nan, "shifted": 0.1 * nan, "O": 0.5 * nan, "skipped": False}
    return pd.DataFrame(frame | known)


def prepared(*parts):
    return deletion_comparisons.prepared(pd.concat(parts, ignore_index=True), DIAGONAL)


def value(cell):
    return cell.value if isinstance(cell, Estimate) else cell
