"""Small mammograms with a known lesion, as a data set of real ones would give them."""

import numpy as np
import pandas as pd
import torch

from xai_lib.data.case import Case, CaseDataset

LESION = (50, 30, 62, 42)  # in the frame of the left breast below


def film(right=False, lesion=True):
    """160 x 100, a half disc of grey 0.5 with its chest wall at column 10 (left breast), a lesion, a film label."""
    rows, cols = np.ogrid[:160, :100]
    image = np.where(((rows - 80) ** 2 + (cols - 10) ** 2 <= 60**2) & (cols >= 10), 0.5, 0.0).astype(np.float32)
    if lesion:
        image[LESION[0] : LESION[2], LESION[1] : LESION[3]] = 0.9
    image[4:12, 85:95] = 1.0
    return image[:, ::-1].copy() if right else image


def read(row):
    """Case of one film; the boxes follow a mirrored breast."""
    image = torch.from_numpy(film(row["right"], bool(row["boxes"])))[None]
    mask = torch.zeros(image.shape[1:], dtype=torch.bool)
    for row0, col0, row1, col1 in row["boxes"]:
        mask[row0:row1, col0:col1] = True
    boxes = torch.tensor(row["boxes"], dtype=torch.int64).reshape(-1, 4)
    return Case(image, row["label"], mask if len(boxes) else None, boxes, 0.5, row["patient_id"], "MLO", row["source"])


def films(kinds=("malignant", "normal", "benign", "normal"), rights=(False, True, True, False)):
    """A data set of such films."""
    mirrored = (LESION[0], 100 - LESION[3], LESION[2], 100 - LESION[1])
    rows = [
        {
            "source": f"film{i}",
            "label": int(kind == "malignant"),
            "class": kind,
            "patient_id": f"p{i}",
            "view": "MLO",
            "right": right,
            "boxes": () if kind == "normal" else (mirrored if right else LESION,),
            "lesions": () if kind == "normal" else (kind,),
            "pixel_mm": 0.5,
        }
        for i, (kind, right) in enumerate(zip(kinds, rights, strict=True))
    ]
    return CaseDataset("films", pd.DataFrame(rows), read)
