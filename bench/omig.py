"""OMIG: virtual images in batches on folded networks, against one image and one network after the other.

Run ``python bench/omig.py`` (``--quick``: fewer virtual images and steps, one round). Networks of table 2 (250 x 250)
with random weights; *steps* with the shipped ensemble. The ways take turns; the best of `rounds` counts. The last
gradient of the printed algorithm, which is not used, is not held against the plain loop. *Arithmetic*: multiplications
and additions counted by torch, weights read once forward and once back, and the rate of this machine as a large matrix
product reaches it in the same run. On a GPU `--threads` is ignored.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from form import line
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from xai_lib import omig
from xai_lib.cdmam.phantom import crop
from xai_lib.cdmam.simulate import simulate
from xai_lib.iqa_network import IqaNetwork
from xai_lib.omig_upsampling import Upsampled, upsample
from xai_lib.studies.omig import study as cdmam_study


@dataclass(frozen=True)
class Size:
    """How much is timed."""

    members: int
    images: int
    steps: int
    rounds: int
    maps: int  # virtual images of the maps with fewer steps


FULL = Size(members=3, images=32, steps=10, rounds=3, maps=32)
QUICK = Size(members=2, images=16, steps=5, rounds=2, maps=16)


def timed(work: Callable[[], object]) -> float:
    """Wall-clock seconds."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def plain(members: Sequence[nn.Module], x: torch.Tensor, steps: int) -> torch.Tensor:
    """Algorithm 1 as the paper's loop: one virtual image and one network at a time, L + 1 gradients."""

    def gradient(at: torch.Tensor) -> torch.Tensor:
        at = at.detach().requires_grad_(True)
        return sum(torch.autograd.grad(m(at).mean(), at)[0] for m in members) / len(members)

    changes = []
    for image in x:
        at = image[None]
        r = gradient(at)
        for _ in range(steps):
            at = at - r / steps
            r = gradient(at)
            z = (r - r.mean()) / r.std(correction=0)
            r = torch.where(z.abs() > 3, torch.zeros_like(r), r)
        changes.append(at - image)
    return torch.cat(changes)


def networks(count: int, device: torch.device) -> list[nn.Module]:
    """Networks of table 2 with random weights and batch statistics of noise."""
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = IqaNetwork(size=250, hidden=512).to(device)
        with torch.no_grad():
            network(torch.randn(8, 1, 250, 250, device=device))
        found.append(network.eval())
    return found


def speed(members: Sequence[nn.Module], size: Size, device: torch.device) -> dict[str, Any]:
    """Plain loop against batches, and L = 10 against 50."""
    x = torch.randn(size.images, 1, 250, 250, generator=torch.Generator().manual_seed(1)).to(device)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "plain loop": lambda: plain(members, x[:1], size.steps),
        "batch 1": lambda: omig.explain(members, x[:1], steps=size.steps).change,
        "folded, batch 8": lambda: omig.explain(members, x[:8], steps=size.steps, fast=True).change,
        f"folded, batch {len(x)}": lambda: omig.explain(members, x, steps=size.steps, fast=True).change,
    }
    images = {"plain loop": 1, "batch 1": 1, "folded, batch 8": 8}
    found = {name: way() for name, way in ways.items()}
    best = dict.fromkeys(ways, np.inf)
    for _ in range(size.rounds):
        best = {name: min(best[name], timed(way)) for name, way in ways.items()}
    each = {name: best[name] / images.get(name, len(x)) / len(members) / size.steps for name in ways}
    each["plain loop"] *= size.steps / (size.steps + 1)  # it computes one more, which is no part of the comparison
    reference = found["plain loop"].flatten()
    for name, seconds in each.items():
        same = np.corrcoef(reference.cpu(), found[name][0].flatten().cpu())[0, 1]
        gap = float((found[name][0].sum() - reference.sum()).abs() / reference.abs().sum())
        ratio = each["plain loop"] / seconds
        print(
            f"  {name:18s} {seconds * 1000:8.2f} ms per gradient  x {ratio:5.2f}   r {same:.7f}, sum off by {gap:.1e}"
        )
    rate = arithmetic(members, x, min(each.values()), device)
    name, threads = f"folded, batch {len(x)}", torch.get_num_threads()
    problem = f"{len(x)} virtual images, {len(members)} networks, 250 x 250, {device.type}, {threads} threads"
    figures = (each[name] * 1000, each["plain loop"] * 1000, "ms per gradient", "one image and network at a time")
    note = f"best way at {rate:.0%} of the machine's matrix product"
    return line("06", "OMIG", problem, *figures, note=note)


def arithmetic(members: Sequence[nn.Module], x: torch.Tensor, seconds: float, device: torch.device) -> float:
    """What one gradient of one network costs, and the share of this machine's rate that it reaches."""
    one, network = x[:1].clone().requires_grad_(), omig.fold(members[0])
    with FlopCounterMode(display=False) as counter:
        network(one).mean().backward()
    flop = counter.get_total_flops()
    weights = sum(p.numel() * p.element_size() for n, p in members[0].named_parameters() if "variance" not in n)
    a = torch.randn(2048, 2048, device=device)
    peak = 2 * 2048**3 / min(timed(lambda: a @ a) for _ in range(3))
    print(f"  one gradient: {flop / 1e6:.0f} MFLOP, {2 * weights / 1e6:.0f} MB of weights read once for each batch")
    print(
        f"  best way {flop / seconds / 1e9:.1f} GFLOP/s, matrix product {peak / 1e9:.1f}: {flop / seconds / peak:.0%}"
    )
    print(f"  the paper's map, N = 5000, L = 50, M = 10: 2 500 000 gradients, {2.5e6 * flop / 1e15:.2f} PFLOP")
    return flop / seconds / peak


def fewer_steps(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """The shipped ensemble's map of scenario 1 with fewer steps, against L = 50 and the plain loop with L = 50."""
    ready = cdmam_study.prepare(cdmam_study.settings("lab"), 0, "outputs", progress=False, device=device)
    ensemble, image = ready.ensembles[cdmam_study.PAPER], simulate("#1", 0, crop(ready.phantom, 0.0))
    x = ensemble.normalise(image[None, ::29, ::18][:, :125, :125])
    loop = min(timed(lambda: plain(ensemble.members, x, 50)) for _ in range(size.rounds))
    print(f"  plain loop, L = 50: {loop:6.2f} s per virtual image")

    def run(steps: int) -> Upsampled:
        normalise = (ensemble.mean, ensemble.sd)
        return upsample(ensemble.members, image, 125, size.maps, steps=steps, normalise=normalise, progress=False)

    maps: dict[int, np.ndarray] = {}
    found = []
    for steps in (50, 10, 5):
        each = timed(lambda n=steps: maps.update({n: run(n).total("OMIG").ravel()})) / size.maps
        same = np.corrcoef(maps[50], maps[steps])[0, 1]
        print(f"  L = {steps:2d}: {each:6.2f} s, x {loop / each:5.1f}, correlation with L = 50 {same:.4f}")
        figures = (each, loop, "s per virtual image", "plain loop, L = 50")
        note = f"correlation with L = 50 {same:.4f}"
        found.append(line("06", f"OMIG of the shipped ensemble, L = {steps}", "virtual image", *figures, note=note))
    return found


def rows(quick: bool = False, threads: Sequence[int] = (1, 2)) -> list[dict[str, Any]]:
    """Print the tables and return their main figures; `quick`: smaller, on one thread."""
    size, device = QUICK if quick else FULL, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    members, found = networks(size.members, device), []
    for number in (threads[:1] if quick else threads) if device.type == "cpu" else [torch.get_num_threads()]:
        torch.set_num_threads(number)
        print(f"{device.type}, {number} threads, {size}")
        found.append(speed(members, size, device))
    print("steps")
    return found + fewer_steps(size, device)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute instead of half an hour")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    rows(options.quick, options.threads)


if __name__ == "__main__":
    main()
