"""Kernel SHAP: error against the number of samples, own and Captum's.

Run ``make bench``, or with ``--write`` to renew ``data/bench/attribution_shap.csv``. A trained network (the shipped
ultrasound ResNet) and one synthetic image, about 50 SLIC segments. The error is the distance to a fit of 12 000 samples
whose draws no row shares, relative to that fit's length; mean over draws. The correlation is Pearson's, over segments.
"""

import argparse
import platform
import warnings
from typing import Any

import captum.attr
import numpy as np
import pandas as pd
import torch
from form import line
from rich.progress import track
from torch import Tensor

from xai_lib import checkpoints, config, data, training
from xai_lib.attribution import attribute
from xai_lib.attribution.segments import slic_segments

TABLE = config.repository_dir() / "data" / "bench" / "attribution_shap.csv"
SIZE, SEGMENTS, SAMPLES, REFERENCE, DRAWS = 96, 60, (50, 100, 200, 400, 800), 12000, 4


def values(map_: Tensor, segments: Tensor) -> np.ndarray:
    """One value per segment of a painted map (1, H, W)."""
    return np.array([float(map_[0][segments == s][0]) for s in range(int(segments.max()) + 1)])


def measure(sizes: tuple[int, ...] = SAMPLES, reference: int = REFERENCE, draws: int = DRAWS) -> pd.DataFrame:
    """Errors and correlations, one row for each number of samples and method."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    model, _ = checkpoints.load(config.repository_dir() / "data/checkpoints/ultrasound_resnet10.safetensors")
    model.requires_grad_(False)
    images = data.load("synthetic_ultrasound", masses=2, seed=100)
    x = training.stack(images, SIZE, False).images[:1].float() / 255
    segments = slic_segments(x[0], SEGMENTS)

    def own(samples: int, seed: int, ridge: float | str = "auto") -> np.ndarray:
        settings = {"segments": segments, "samples": samples, "seed": seed, "ridge": ridge, "chunk": 8}
        return values(attribute("kernel_shap", model, x, 0, progress=False, **settings).map, segments)

    def captums(samples: int, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        np.random.seed(seed)
        found = captum.attr.KernelShap(model).attribute(
            x, torch.zeros_like(x), 0, feature_mask=segments[None, None], n_samples=samples, perturbations_per_eval=8
        )
        return values(found[:, 0], segments)

    truth = own(reference, 10**6, 0.0)
    methods = {"own": own, "own, no ridge": lambda n, s: own(n, s, 0.0), "Captum": captums}
    lines = []
    for samples in track(sizes, "samples"):
        for name, method in methods.items():
            found = [method(samples, seed) for seed in range(draws)]
            error = np.mean([np.linalg.norm(f - truth) / np.linalg.norm(truth) for f in found])
            alike = np.mean([np.corrcoef(f, truth)[0, 1] for f in found])
            lines.append({"samples": samples, "method": name, "error": error, "correlation": alike})
    table = pd.DataFrame(lines).assign(segments=int(segments.max()) + 1)
    print(f"{table['segments'][0]} segments")
    print(table.pivot(index="samples", columns="method", values="error").round(2).to_string())
    return table


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """The error with 200 samples; `quick`: two draws against a fit of 3000."""
    table = measure((200,), 3000, 2) if quick else measure()
    error = table[table["samples"] == 200].set_index("method")["error"]
    each = (f"200 samples, {table['segments'][0]} segments, {SIZE} x {SIZE}", error["own"], error["Captum"])
    return [line("00", "Kernel SHAP, error of its values", *each, "share of their length", "Captum")]


def main() -> None:
    """Measure, print, and store on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.name}")
    chosen = parser.parse_args()
    table = measure()
    if chosen.write:
        table["machine"] = f"{platform.machine()}, torch {torch.__version__.split('+')[0]}"
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(TABLE, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
