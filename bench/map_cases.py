"""Maps of a data set: a plain loop, `map_cases` in this process, on one worker process and on two.

Run ``python bench/map_cases.py``. Gradient x input of the shipped ResNet-10 on generated masses, 224 x 224, one thread
in each process. Starting the workers and loading the network are not counted. The ratio of two workers to one is the
scaling. Memory: how much the largest process grew when four times the images were worked through, parent and workers;
the maps themselves take 0.2 MiB each.
"""

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from distributed import Client, LocalCluster
from form import line

from xai_lib import attribution, checkpoints, config, data
from xai_lib.data import CaseDataset, images
from xai_lib.map_cases import explain_dataset

CHECKPOINT = config.repository_dir() / "data" / "checkpoints" / "ultrasound_resnet10.safetensors"
METHOD, SIDE, BATCH = "gradient_x_input", 224, 8


def peak_mib(forget: bool = False) -> float:
    """Largest memory of this process since it was last forgotten, on Linux; NaN elsewhere."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found[1]) / 1024 if found else float("nan")


def warm_up() -> None:
    """What a worker does once: imports, the network's file, the first pass."""
    model, _ = checkpoints.load(CHECKPOINT)
    attribution.attribute(METHOD, model, torch.zeros(1, 1, SIDE, SIDE), 0, progress=False)


def plain(cases: CaseDataset) -> None:
    """What people write: a loop that keeps all maps."""
    model, _ = checkpoints.load(CHECKPOINT)
    for start in range(0, len(cases), BATCH):
        part = range(start, min(start + BATCH, len(cases)))
        x = torch.stack([images.resize(cases[i].image, SIDE) for i in part])
        attribution.attribute(METHOD, model, x, 0, progress=False)


def timed(work: Callable[[], Any], client: Client | None = None) -> tuple[float, float]:
    """Seconds by the clock and of the processors, this one and the workers'."""

    def processor() -> float:
        return time.process_time() + (sum(client.run(time.process_time).values()) if client else 0.0)

    clock, before = time.perf_counter(), processor()
    work()
    return time.perf_counter() - clock, processor() - before


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Print and return one row per way."""
    torch.set_num_threads(1)
    count = 16 if quick else 64
    many = data.load("synthetic_masses", patients=2 * count)  # 4 x count images
    cases, found, seconds = many.subset(range(count)), [], {}
    print(f"way            images/s  processor s  ({count} images)")

    def say(way: str, clock: float, processor: float) -> None:
        seconds[way] = clock
        print(f"{way:14s} {count / clock:8.2f}  {processor:11.1f}", flush=True)

    with tempfile.TemporaryDirectory() as folder:

        def maps(of: CaseDataset, name: str, **running: Any) -> Callable[[], Any]:
            return lambda: explain_dataset(
                of, Path(folder) / name, CHECKPOINT, METHOD, size=SIDE, batch=BATCH, progress=False, **running
            )

        maps(cases.subset(range(BATCH)), "first")()
        say("loop", *timed(lambda: plain(cases)))
        say("in-process", *timed(maps(cases, "here")))
        for workers in (1, 2):
            options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
            with LocalCluster(**options, local_directory=folder) as cluster, Client(cluster) as client:
                maps(many.subset(range(2 * BATCH * workers)), f"first{workers}", client=client)()
                _ = [peak_mib(forget=True), *client.run(peak_mib, forget=True).values()]
                say(f"{workers} worker{'s'[: workers - 1]}", *timed(maps(cases, f"n{workers}", client=client), client))
                if workers == 2:
                    before = [peak_mib(), *client.run(peak_mib).values()]
                    _ = [peak_mib(forget=True), *client.run(peak_mib, forget=True).values()]
                    maps(many, "many", client=client)()
                    after = [peak_mib(), *client.run(peak_mib).values()]
    growth = max(b - a for a, b in zip(before, after, strict=True))
    text = ", ".join(f"{a:.0f} -> {b:.0f}" for a, b in zip(before, after, strict=True))
    print(f"peak memory, parent and workers, {count} -> {len(many)} images: {text} MiB")
    pairs = (("in-process", "loop", None), ("1 worker", "in-process", None), ("2 workers", "1 worker", growth))
    for way, usual, memory in pairs:
        speeds = (count / seconds[way], count / seconds[usual], "images/s", usual)
        note = "memory: growth at 4 times the images" if memory is not None else ""
        size = f"{count} x {SIDE} x {SIDE}"
        found.append(line("00", f"maps of a data set, {way}", size, *speeds, more=True, memory_mib=memory, note=note))
    return found


if __name__ == "__main__":
    rows()
