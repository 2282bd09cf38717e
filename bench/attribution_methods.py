"""Which method is right on which network: own result and Captum's, measured.

Run ``make bench``, or ``python bench/attribution_methods.py --write`` to renew the table in ``data/bench`` that the
README shows. torchvision networks and MobileNetV1 with random weights, batch-norm statistics warmed on random images,
one synthetic ultrasound image, baseline 0, float32.

For methods that promise completeness the figure is the gap ``|sum - (f(x) - f(0))|`` relative to the difference of the
outputs; for the others the largest difference from Captum's map relative to the largest value of the own one. Where
Captum has no such method, or errs by definition, the cell says so.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr as ca
import pandas as pd
import torch
import torchvision
from form import line
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from xai_lib import config, data
from xai_lib.attribution import METHODS, Refused, attribute
from xai_lib.attribution.core import Network, completeness_gap
from xai_lib.attribution.rules import Rules
from xai_lib.attribution.segments import slic_segments
from xai_lib.mobilenet_v1 import MobileNetV1

TABLE = config.repository_dir() / "data" / "bench" / "attribution_methods.csv"
SIZE, TARGET, STEPS, SAMPLES, SEGMENTS = 128, 3, 50, 60, 12
LOGIT_SD = 5.0
EQUAL = 1e-4  # float32 rounding, relative to the largest value of a map
LAYERS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "mobilenet_v1": "features",
    "mobilenet_v2": "features",
    "efficientnet_b0": "features",
    "densenet121": "features",
    "squeezenet1_1": "features",
    "convnext_tiny": "features",
}
COMPLETE = ("gradient_x_input", "integrated_gradients", "deeplift", "kernel_shap", "gradient_shap", "deep_shap")
PROMISED = tuple(m for m in COMPLETE if m != "gradient_x_input")


def network(name: str) -> nn.Module:
    """A network with random weights whose batch-norm statistics have seen a few random images."""
    torch.manual_seed(0)
    model = MobileNetV1() if name == "mobilenet_v1" else getattr(torchvision.models, name)(weights=None)
    model.train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # the plain average, or the statistics stay near (0, 1) and the network says nothing
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, SIZE, SIZE))
        last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]  # the classifier
        outputs = model.eval()(torch.randn(4, 3, SIZE, SIZE))
        last.weight *= LOGIT_SD / outputs.std()  # as large as a trained network's, or lasso keeps nothing
        if outputs[:, TARGET].mean() < 0:
            last.weight[TARGET] *= -1  # or Grad-CAM's ReLU leaves nothing to compare
    return model.requires_grad_(False)


def swapped_calls(model: nn.Module, x: Tensor) -> str:
    """The calls of the network that get a rule instead of their gradient."""
    module, image = Network(model).module, x.clone().requires_grad_()
    with Rules(record=True) as rules:
        module(image)
        return ", ".join(sorted({call.name for call in rules.calls}))


def own_options(name: str, segments: Tensor, x: Tensor) -> dict[str, dict[str, Any]]:
    """Settings of the own methods, small enough for a table."""
    two = torch.cat([torch.zeros_like(x), x.flip(-1)])
    return {
        "integrated_gradients": {"steps": STEPS},
        "occlusion": {"window": 32, "stride": 16},
        "grad_cam": {"layer": LAYERS[name]},
        "guided_grad_cam": {"layer": LAYERS[name]},
        "layer_cam": {"layer": LAYERS[name]},
        "lime": {"segments": segments, "samples": SAMPLES},
        "kernel_shap": {"segments": segments, "samples": SAMPLES},
        "gradient_shap": {"baselines": two, "samples": STEPS},
        "deep_shap": {"baselines": two},
    }


def captum_map(method: str, model: nn.Module, name: str, segments: Tensor, x: Tensor) -> Tensor | None:
    """Captum's map (1, H, W) for the same settings, as its documentation calls it; None where it has no such method."""
    layer = model.get_submodule(LAYERS[name])
    zero, two = torch.zeros_like(x), torch.cat([torch.zeros_like(x), x.flip(-1)])
    calls: dict[str, Callable[[], Tensor]] = {
        "saliency": lambda: ca.Saliency(model).attribute(x, TARGET).amax(1),
        "gradient_x_input": lambda: ca.InputXGradient(model).attribute(x, TARGET),
        "integrated_gradients": lambda: ca.IntegratedGradients(model).attribute(
            x, target=TARGET, n_steps=STEPS, internal_batch_size=4
        ),
        "occlusion": lambda: ca.Occlusion(model).attribute(x, (3, 32, 32), (3, 16, 16), target=TARGET) / 3,
        "guided_backprop": lambda: ca.GuidedBackprop(model).attribute(x, TARGET),
        "grad_cam": lambda: ca.LayerAttribution.interpolate(
            ca.LayerGradCam(model, layer).attribute(x, TARGET), x.shape[-2:], "bilinear"
        ),
        "guided_grad_cam": lambda: ca.GuidedGradCam(model, layer).attribute(x, TARGET, interpolate_mode="bilinear"),
        "deeplift": lambda: ca.DeepLift(model).attribute(x, zero, TARGET),
        "lime": lambda: (
            ca.Lime(model).attribute(x, target=TARGET, feature_mask=segments[None, None], n_samples=SAMPLES) / 3
        ),
        "kernel_shap": lambda: (
            ca.KernelShap(model).attribute(x, zero, TARGET, feature_mask=segments[None, None], n_samples=SAMPLES) / 3
        ),
        "gradient_shap": lambda: ca.GradientShap(model).attribute(x, two, n_samples=STEPS, target=TARGET),
        "deep_shap": lambda: ca.DeepLiftShap(model).attribute(x, two, TARGET),
    }
    if method not in calls:
        return None
    found = calls[method]().detach()
    return found if found.ndim == 3 else found.sum(1)


def differences(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """f(x) - f(baseline) for every method that promises to sum to it."""
    with torch.no_grad():
        top, zero, flipped = (model(v)[:, TARGET] for v in (x, torch.zeros_like(x), x.flip(-1)))
    single, double = top - zero, top - (zero + flipped) / 2
    return {m: double if m in ("gradient_shap", "deep_shap") else single for m in PROMISED}


def cell(method: str, name: str, model: nn.Module, x: Tensor, segments: Tensor) -> dict[str, Any]:
    """One cell of the table."""
    row: dict[str, Any] = {"method": method, "network": name}
    try:
        own = attribute(method, model, x, TARGET, progress=False, **own_options(name, segments, x).get(method, {}))
    except Refused as error:
        return row | {"refused": str(error)}
    row |= {"gap": own.completeness_gap, "forward": own.forward_passes, "backward": own.backward_passes}
    row["notes"] = "; ".join(own.notes)
    if method in ("deeplift", "deep_shap", "guided_backprop", "guided_grad_cam"):
        row["rule"] = f"own rule at {swapped_calls(model, x)}"
    try:
        other = captum_map(method, model, name, segments, x)
    except Exception as error:  # Captum's own failure is the finding
        return row | {"captum": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    if other is None:
        return row | {"captum": "has no such method"}
    largest = max(float(own.map.abs().max()), 1e-30)
    row["difference"] = float((own.map - other).abs().max()) / largest
    promised = differences(model, x).get(method)
    if promised is not None:
        outputs = model(x)[:, TARGET]
        if method == "kernel_shap":  # a segment's value stands at each of its pixels
            other = other / segment_sizes(segments)
        row["captum_gap"] = completeness_gap(other.sum((1, 2)), promised, outputs)
    if method in ("guided_backprop", "guided_grad_cam"):
        plain = ca.InputXGradient(model).attribute(x, TARGET) / x.where(x != 0, torch.ones_like(x))
        guided = ca.GuidedBackprop(model).attribute(x, TARGET)
        row["captum_is_plain_gradient"] = bool(torch.allclose(guided[x != 0], plain[x != 0], atol=1e-6, rtol=1e-3))
    return row


def segment_sizes(segments: Tensor) -> Tensor:
    """Pixels of the segment that each pixel belongs to (H, W)."""
    return torch.bincount(segments.flatten())[segments]


def measure(networks: list[str]) -> pd.DataFrame:
    """The whole table, one row per method and network."""
    image = data.load("synthetic_ultrasound", masses=1, seed=1, size=SIZE)[0].image
    segments = slic_segments(image, SEGMENTS)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((image.expand(3, -1, -1) - mean[:, None, None]) / std[:, None, None])[None]
    rows = []
    for name in track(networks, "networks", console=Console(stderr=True)):
        model = network(name)
        rows += [cell(method, name, model, x, segments) for method in METHODS]
    return pd.DataFrame(rows)


def show(table: pd.DataFrame) -> Table:
    """Methods down, networks across; own figure above Captum's."""
    out = Table("method", *map(str, table["network"].unique()), title="own / Captum")
    for method, rows in table.groupby("method", sort=False):
        out.add_row(str(method), *(text(row) for _, row in rows.iterrows()))
    return out


def text(row: pd.Series) -> str:
    """A cell in words."""
    number = lambda v: "" if pd.isna(v) else f"{v:.0e}"  # noqa: E731
    if isinstance(row.get("refused"), str):
        return f"refused ({row['refused'].split('rule for ')[-1].strip(chr(39))})"
    own = f"gap {number(row['gap'])}" if pd.notna(row["gap"]) else "yes"
    if isinstance(row.get("captum"), str):
        return f"{own} / {row['captum'].split(':')[0]}"
    if row["method"] == "lime":
        return f"{own} / other draws"  # its random masks differ; with the same masks the maps are equal (a test)
    if row.get("captum_is_plain_gradient") is True:
        return f"{own} / plain gradient"
    if pd.notna(row["captum_gap"]):
        return f"{own} / gap {number(row['captum_gap'])}"
    return f"{own} / equal" if row["difference"] < EQUAL else f"{own} / {number(row['difference'])} away"


def markdown(table: pd.DataFrame) -> str:
    """The README's table: the methods in which Captum errs somewhere, own figure / Captum's."""
    networks = list(table["network"].unique())
    lines = ["| own / Captum | " + " | ".join(networks) + " |", "| --- " * (len(networks) + 1) + "|"]
    for method in ("deeplift", "deep_shap", "guided_backprop", "guided_grad_cam"):
        rows = table[table["method"] == method].set_index("network")
        cells = [
            text(rows.loc[name])
            .replace("yes / equal", "equal")
            .replace("yes / ", "right / ")
            .replace("RuntimeError", "raises")
            for name in networks
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """The methods in which Captum errs somewhere; `quick`: two networks.

    Of DeepLIFT and DeepSHAP the largest gap of completeness, of the guided methods the networks on which they are what
    they are called.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    table = measure(["mobilenet_v2", "squeezenet1_1"] if quick else list(LAYERS))
    Console(width=200).print(show(table))
    size, found = f"{table['network'].nunique()} networks, {SIZE} x {SIZE}", []
    for method, cells in table.groupby("method", sort=False):
        refused = cells["refused"].notna().sum() if "refused" in cells else 0
        note = f"refused by name on {refused}" if refused else ""
        if method in ("deeplift", "deep_shap"):
            raises = cells["captum"].notna().sum() if "captum" in cells else 0
            each = (size, cells["gap"].max(), cells["captum_gap"].max(), "share of the difference", "Captum")
            note = "; ".join(filter(None, [note, f"Captum raises on {raises}" if raises else ""]))
            found.append(line("00", f"{method}, largest gap of completeness", *each, note=note))
        elif method in ("guided_backprop", "guided_grad_cam"):
            right = (cells["difference"] < EQUAL).sum()
            each = (size, len(cells) - refused, right, "networks", "Captum")
            found.append(line("00", f"{method}, networks on which it is right", *each, more=True, note=note))
    return found


def main() -> None:
    """Measure and print; with --write also store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.name}")
    parser.add_argument("--networks", nargs="*", default=list(LAYERS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    table = measure(chosen.networks)
    Console(width=200).print(show(table))
    if chosen.write:
        Path(TABLE).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(TABLE, index=False, float_format="%.3g")
        print(markdown(table))


if __name__ == "__main__":
    main()
