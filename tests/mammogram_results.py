"""Tables of study 2 with known figures, for the tests of what is made of them."""

import numpy as np
import pandas as pd

from xai_lib.studies.mammograms.maps import FEW_QUANTILES, LEVELS, PLAIN_BOXES, QUANTILES
from xai_lib.studies.mammograms.tables import Tables
from xai_lib.studies.mammograms.variants import ABLATIONS, CHEAP, MAIN, THE_SEVEN

SETTINGS = {"union": QUANTILES, "component": QUANTILES, "separate": FEW_QUANTILES, "peak": LEVELS}
LEVEL = {"integrated_gradients": 0.6, "occlusion": 0.55, "lime": 0.1, "kernel_shap": 0.05}  # mean IOU; the rest: 0.3
BEST = {"lime": 0.99, "occlusion": 0.98}  # best quantile; the rest: 0.995


def made(
    level=LEVEL,
    main=12,
    cheap=40,
    val=4,
    ablations=3,
    missed=12,
    seconds=None,
    ratio=2.0,
    gains=None,
    weak=True,
    pairs=12,
) -> Tables:
    """Tables as `studies.mammograms.tables.tables` makes them, each patient with one image.

    Args:
        level: mean IOU by variant at its best quantile; 0.1 less elsewhere.
        main, cheap, val, ablations: numbers of images.
        missed: how many of `cheap` are false negatives.
        seconds: by variant.
        ratio: area of the boxes over the annotated area.
        gains: by variant, rise of the share in the inserted lesion's box.
        weak: whether weak images have more boxes and a lower IOU.
        pairs: number of insertions.
    """
    rng = np.random.default_rng(0)
    scores = np.concatenate([np.linspace(4, 0.5, cheap - missed), np.linspace(-0.5, -3, missed)])
    maps, boxes = [], []
    for stage, images in (("test", range(cheap)), ("val", range(100, 100 + val))):
        for place, image in enumerate(images):
            score = scores[place] if stage == "test" else 1.0
            names = list(MAIN if place < main or stage == "val" else CHEAP) + list(PLAIN_BOXES)
            names += list(ABLATIONS) if place < ablations and stage == "test" else []
            for name in names:
                facts = {"image": image, "source": f"s{image}", "patient_id": f"p{image}", "stage": stage}
                wobble = 0.03 * rng.normal()
                off = (10 + rng.normal(), -5.0) if name == "grad_cam" else (0.5, -0.5)
                plain = name in PLAIN_BOXES
                fact = {
                    "score": score,
                    "variant": name,
                    "energy": 0.3,
                    "hit": 0.05 if plain else float(rng.random() < 0.9),
                    "like": 0.5,
                }
                cost = {"forward": 2, "backward": 1, "seconds": (seconds or {}).get(name, 1.0) * (1 + wobble)}
                maps.append(facts | fact | dict(zip(("off_row", "off_col"), off, strict=True)) | cost)
                head = {"image": image, "stage": stage, "variant": name, "chance": 0.02}
                if plain:
                    boxes.append(head | {"rule": "box", "setting": 0.0, "iou": 0.03, "ratio": 1.0, "components": 1})
                    continue
                drop = 0.15 if weak and score < 1.5 and stage == "test" else 0
                for rule, settings in SETTINGS.items():
                    for setting in settings:
                        best = setting == (BEST.get(name, 0.995) if rule != "peak" else 0.3)
                        iou = np.clip(level.get(name, 0.3) - 0.1 * (not best) - drop + wobble, 0, 1)
                        more = {"ratio": ratio + wobble, "components": 3 + 10 * drop + rng.integers(0, 2)}
                        boxes.append(head | {"rule": rule, "setting": setting, "iou": iou} | more)
    after = []
    for pair in range(pairs):
        for contrast in (0.0, 0.2, 0.4):
            for name in [n for n in (*THE_SEVEN, "grad_cam") if contrast < 0.4 or n in CHEAP]:
                gain = (gains or {}).get(name, 0.2) * contrast / 0.2
                facts = {"source": f"t{pair}", "patient_id": f"p{pair}", "contrast": contrast, "score": contrast * 10}
                share = {"energy": 0.05 + gain + 0.01 * rng.normal(), "rank": 0.4 - contrast, "hit": 1.0}
                after.append(facts | {"variant": name} | share)
    return Tables(pd.DataFrame(maps), pd.DataFrame(boxes), pd.DataFrame(after), {})


def scored(n=40) -> pd.DataFrame:
    """Scores of a network with an AUC near 0.8."""
    rng = np.random.default_rng(1)
    label = np.arange(n) % 2
    return pd.DataFrame(
        {"label": label, "score": rng.normal(size=n) + 1.2 * label, "patient_id": [f"p{i // 2}" for i in range(n)]}
    )
