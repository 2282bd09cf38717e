"""Speed and memory of the attribution methods against Captum: ratios in one run.

Run ``python bench/attribution_speed.py`` (about 20 minutes; ``--jobs NAME ...`` for some of them, ``--write`` renews
``data/bench/attribution_speed.csv``). One thread, float32, torchvision networks with random weights. Every variant of
a job runs in a fresh process, the variants take turns, and the best of the rounds counts: processor seconds of the
call alone, and peak memory above the loaded process. "default" is Captum as its tutorials call it, "tuned" the fastest
of its batch settings tried. The maps of the variants are compared; integrated gradients of a ReLU network are
compared with float64, since float32 itself is not closer.

`away_l1` says little where the random network hardly answers: its lasso leaves no coefficient (LIME), and a window
changes MobileNetV2's output at 1024x512 by 1e-12, below what float32 can see. The tests compare those maps in float64.

`efficiency` is the time of the bare passes (no attribution, at the best of batch 1, 2, 4, 8) over the own time.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
from form import line
from torch import Tensor, nn

TABLE = Path(__file__).resolve().parent.parent / "data" / "bench" / "attribution_speed.csv"
TARGET = 3
LAYERS = {"resnet50": "layer4", "resnet18": "layer4"}  # "features" for the others
Variants = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Job:
    """What is timed: a function that makes the variants, the network, the image's size and how often."""

    make: Callable[[nn.Module, Tensor, str], Variants]
    network: str
    size: tuple[int, int]
    passes: tuple[int, int] = (0, 0)  # forward and backward passes of the own variant, for the efficiency
    rounds: int = 3
    exact: bool = False  # compare with float64 instead of Captum's map


def _captum(name: str) -> Any:
    import captum.attr

    return getattr(captum.attr, name)


def _own(method: str, model: nn.Module, x: Tensor, **settings: Any) -> Callable[[], Tensor]:
    from xai_lib.attribution import attribute

    return lambda: attribute(method, model, x, TARGET, progress=False, **settings).map


def gradient_set(model: nn.Module, x: Tensor, name: str) -> Variants:
    """Six maps that one forward and two backward passes can give."""
    from xai_lib.attribution import attribute_all

    layer_name = LAYERS.get(name, "features")
    layer = model.get_submodule(layer_name)
    methods = ["saliency", "gradient_x_input", "grad_cam", "layer_cam", "guided_backprop", "guided_grad_cam"]
    settings = {m: {"layer": layer_name} for m in methods if "cam" in m}

    def captum() -> Tensor:
        _captum("InputXGradient")(model).attribute(x, TARGET)
        _captum("LayerGradCam")(model, layer).attribute(x, TARGET)
        _captum("GuidedBackprop")(model).attribute(x, TARGET)
        _captum("GuidedGradCam")(model, layer).attribute(x, TARGET)
        return _captum("Saliency")(model).attribute(x, TARGET).amax(1)

    return {
        "own": lambda: attribute_all(methods, model, x, TARGET, settings=settings)["saliency"].map,
        "default": captum,
    }


def occlusion(model: nn.Module, x: Tensor, name: str) -> Variants:
    """Windows of 60 pixels; a stride of 30, or 60 on large images to keep the benchmark short."""
    stride = 30 if x.shape[-1] <= 256 else 60
    window, step = (3, 60, 60), (3, stride, stride)
    captum = lambda per: (  # noqa: E731
        lambda: (
            _captum("Occlusion")(model).attribute(x, window, step, target=TARGET, perturbations_per_eval=per).mean(1)
        )
    )
    return {
        "own": _own("occlusion", model, x, window=60, stride=stride),
        "default": captum(1),
        "tuned 4": captum(4),
    }


def integrated_gradients(model: nn.Module, x: Tensor, name: str) -> Variants:
    """200 steps, the thesis's number."""
    captum = lambda per: (  # noqa: E731
        lambda: (
            _captum("IntegratedGradients")(model)
            .attribute(x, target=TARGET, n_steps=200, internal_batch_size=per)
            .sum(1)
        )
    )
    return {
        "own": _own("integrated_gradients", model, x, steps=200),
        "default": captum(None),
        "tuned 1": captum(1),
        "tuned 8": captum(8),
    }


def lime(model: nn.Module, x: Tensor, name: str) -> Variants:
    """200 samples, SLIC asked for 150 segments."""
    from xai_lib.attribution.segments import slic_segments

    segments = slic_segments((x[0] - x.min()) / (x.max() - x.min()), 150)
    captum = lambda per: (  # noqa: E731
        lambda: (
            _captum("Lime")(model)
            .attribute(x, target=TARGET, feature_mask=segments[None, None], n_samples=200, perturbations_per_eval=per)
            .mean(1)
        )
    )
    return {
        "own": _own("lime", model, x, segments=segments, samples=200),
        "default": captum(1),
        "tuned 4": captum(4),
    }


def kernel_shap(model: nn.Module, x: Tensor, name: str) -> Variants:
    """200 samples each; the error at equal samples is in attribution_shap.py."""
    from xai_lib.attribution.segments import slic_segments

    segments = slic_segments((x[0] - x.min()) / (x.max() - x.min()), 150)
    captum = lambda per: (  # noqa: E731
        lambda: (
            _captum("KernelShap")(model)
            .attribute(x, target=TARGET, feature_mask=segments[None, None], n_samples=200, perturbations_per_eval=per)
            .mean(1)
        )
    )
    return {
        "own": _own("kernel_shap", model, x, segments=segments, samples=200),
        "default": captum(1),
        "tuned 4": captum(4),
    }


def single(method: str, captum: str) -> Callable[[nn.Module, Tensor, str], Variants]:
    """One method alone, ten times."""

    def make(model: nn.Module, x: Tensor, name: str) -> Variants:
        layer_name = LAYERS.get(name, "features")
        two = torch.cat([torch.zeros_like(x), x.flip(-1)])
        settings: dict[str, Any] = {"layer": layer_name} if "cam" in method else {}
        if method == "deep_shap":
            settings = {"baselines": two}
        elif method == "gradient_shap":
            settings = {"baselines": two, "samples": 5, "chunk": 5}

        def other() -> Tensor:
            kind = _captum(captum)
            if "cam" in method:
                found = kind(model, model.get_submodule(layer_name)).attribute(x, TARGET)
            elif method == "deep_shap":
                found = kind(model).attribute(x, two, TARGET)
            elif method == "gradient_shap":
                found = kind(model).attribute(x, two, n_samples=5, target=TARGET)
            else:
                found = kind(model).attribute(x, target=TARGET)
            return found.sum(1)

        own = _own(method, model, x, **settings)
        repeated = lambda f: lambda: [f() for _ in range(5)][-1]  # noqa: E731
        return {"own": repeated(own), "default": repeated(other)}

    return make


JOBS = {
    "gradient set, ResNet-50": Job(gradient_set, "resnet50", (224, 224), (1, 2)),
    "gradient set, DenseNet121": Job(gradient_set, "densenet121", (224, 224), (1, 2)),
    "occlusion, ResNet-50": Job(occlusion, "resnet50", (224, 224), (50, 0)),
    "occlusion, ResNet-50 1024x512": Job(occlusion, "resnet50", (1024, 512), rounds=1),
    "occlusion, MobileNetV2 1024x512": Job(occlusion, "mobilenet_v2", (1024, 512), rounds=2),
    "occlusion, ResNet-18 1024x512": Job(occlusion, "resnet18", (1024, 512), rounds=1),
    "occlusion, EfficientNet-B0 512x256": Job(occlusion, "efficientnet_b0", (512, 256), rounds=2),
    "LIME, ResNet-50": Job(lime, "resnet50", (224, 224), (201, 0), rounds=1),
    "Kernel SHAP, ResNet-50": Job(kernel_shap, "resnet50", (224, 224), (202, 0), rounds=1),
    "integrated gradients, ResNet-50": Job(integrated_gradients, "resnet50", (224, 224), (200, 200), 1, True),
    **{
        f"{method} alone, {network}": Job(single(method, captum), network, (224, 224))
        for method, captum, network in (
            ("saliency", "Saliency", "resnet50"),
            ("gradient_x_input", "InputXGradient", "resnet50"),
            ("guided_backprop", "GuidedBackprop", "resnet50"),
            ("grad_cam", "LayerGradCam", "resnet50"),
            ("guided_grad_cam", "GuidedGradCam", "resnet50"),
            ("deeplift", "DeepLift", "densenet121"),
            ("deeplift", "DeepLift", "mobilenet_v2"),
            ("deep_shap", "DeepLiftShap", "densenet121"),
            ("gradient_shap", "GradientShap", "resnet50"),
        )
    },
}


def inputs(job: Job) -> tuple[nn.Module, Tensor]:
    """The network and one smooth random image."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, job.network)(weights=None).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 96, 96))
    coarse = torch.randn(1, 3, job.size[0] // 8, job.size[1] // 8)
    return model.eval().requires_grad_(False), nn.functional.interpolate(coarse, size=job.size, mode="bilinear")


def bare(job: Job, model: nn.Module, x: Tensor) -> float:
    """Processor seconds of the job's passes without any attribution, at the best batch size."""
    forward, backward = job.passes
    best = float("inf")
    for batch in (1, 1, 2, 4, 8):
        many = x.expand(min(batch, max(job.passes)), -1, -1, -1).clone().requires_grad_(backward > 0)
        began = time.process_time()
        out = model(many)[:, TARGET].sum()
        middle = time.process_time()
        if backward:
            torch.autograd.grad(out, many)
        ended = time.process_time()
        best = min(best, ((middle - began) * forward + (ended - middle) * backward) / len(many))
    return best


def child(job_name: str, variant: str, out: Path) -> None:
    """Run one variant in this process and write what was seen."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    job = JOBS[job_name]
    model, x = inputs(job)
    if variant == "bare":
        return np.savez(out, seconds=bare(job, model, x), memory=0.0, map=np.zeros(1))
    if variant == "float64":
        from xai_lib.attribution import attribute

        m = attribute("integrated_gradients", model.double(), x.double(), TARGET, steps=200, chunk=4).map
        return np.savez(out, seconds=0.0, memory=0.0, map=m.numpy())
    call = job.make(model, x, job.network)[variant]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    found = call()
    seconds = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return np.savez(out, seconds=seconds, memory=memory / 1024, map=found.detach().float().numpy())


def measure(name: str, rounds: int | None = None) -> list[dict[str, Any]]:
    """All variants of a job in turns; one row each."""
    job = JOBS[name]
    model, x = inputs(job)
    variants = list(job.make(model, x, job.network))
    del model
    extra = (["bare"] if any(job.passes) else []) + (["float64"] if job.exact else [])
    seen: dict[str, list[Any]] = {v: [] for v in (*variants, *extra)}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds or job.rounds):
            for variant in (*variants, *(extra if turn == 0 else [])):
                out = Path(folder) / "seen.npz"
                command = [sys.executable, __file__, "--child", json.dumps([name, variant, str(out)])]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    seen[variant].append(done.stderr.strip().splitlines()[-1][:100] if done.stderr else "killed")
                    continue
                with np.load(out) as stored:
                    seen[variant].append({k: stored[k] for k in stored.files})
    return compared(name, job, seen, variants)


def compared(name: str, job: Job, seen: dict[str, list[Any]], variants: list[str]) -> list[dict[str, Any]]:
    """Best time of each variant, its ratio to the own one, its memory and how far its map is away."""
    good = {v: [s for s in values if isinstance(s, dict)] for v, values in seen.items()}
    if not good["own"] or (job.exact and not good["float64"]):
        return [{"job": name, "variant": v, "failed": str(values[0])} for v, values in seen.items()]
    best = {v: min(float(s["seconds"]) for s in values) for v, values in good.items() if values}
    reference = good["float64"][0]["map"] if job.exact else good["own"][0]["map"]
    table = []
    for variant in variants:
        if variant not in best:
            table.append({"job": name, "variant": variant, "failed": seen[variant][0]})
            continue
        m = good[variant][0]["map"]
        row = {"job": name, "variant": variant, "cpu_s": best[variant], "times_own": best[variant] / best["own"]}
        row["memory_mib"] = min(float(s["memory"]) for s in good[variant])
        row["away_l1"] = (
            float(np.abs(m - reference).sum() / np.abs(reference).sum())
            if m.shape == reference.shape and reference.any()
            else None
        )
        if variant == "own" and "bare" in best:
            row["efficiency"] = best["bare"] / best["own"]
        table.append(row)
    return table


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Every job, own variant against Captum's default; `quick`: three short ones, once each."""
    short = [n for n in JOBS if n.startswith(("gradient set, ResNet", "occlusion, ResNet-50", "deeplift alone, mob"))]
    found = []
    for name in [n for n in short if "1024" not in n] if quick else JOBS:
        variants = {v["variant"]: v for v in measure(name, 1 if quick else None)}
        own, default = variants["own"], variants["default"]
        if "cpu_s" not in own:
            raise ValueError(f"{name}: {own['failed']}")
        tuned = [v["cpu_s"] for k, v in variants.items() if k.startswith("tuned") and "cpu_s" in v]
        note = f"Captum at its best batch size: {min(tuned):.3g} s" if tuned else ""
        note = note if "cpu_s" in default else f"Captum: {default['failed']}"
        size = f"{JOBS[name].size[0]} x {JOBS[name].size[1]}"
        each = (own["cpu_s"], default.get("cpu_s"), "s of processor time", "Captum as documented")
        passes, memory = own.get("efficiency"), own["memory_mib"]
        found.append(line("00", name, size, *each, efficiency=passes, memory_mib=memory, note=note))
    return found


def main() -> None:
    """Measure, print, and store on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), help="names or beginnings of names")
    parser.add_argument("--write", action="store_true", help=f"renew {TABLE.name}")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        name, variant, out = json.loads(chosen.child)
        return child(name, variant, Path(out))
    table = pd.DataFrame()
    for name in [n for n in JOBS if any(n.startswith(j) for j in chosen.jobs)]:
        table = pd.concat([table, pd.DataFrame(measure(name))])
        print(
            table[table["job"] == name].drop(columns="job").round(3).to_string(index=False, header=True), f"  <- {name}"
        )
    if chosen.write:
        table["machine"] = f"{platform.machine()}, torch {torch.__version__.split('+')[0]}, one thread"
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        if TABLE.is_file():  # rows of jobs that were not run stay
            old = pd.read_csv(TABLE)
            table = pd.concat([old[~old["job"].isin(table["job"])], table])
        table.to_csv(TABLE, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
