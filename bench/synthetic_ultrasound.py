"""Images per second of the synthetic ultrasound generator on one core: ``python bench/synthetic_ultrasound.py``."""

import time
from typing import Any

from form import line

from xai_lib.data.synthetic.ultrasound import load_synthetic_ultrasound


def rows(quick: bool = False, size: int = 224) -> list[dict[str, Any]]:
    """Generate images and print one row: what, size, images/s, processor time per image."""
    images = 12 if quick else 60
    dataset = load_synthetic_ultrasound(masses=(images + 1) // 2 + 1, size=size)
    _ = dataset[len(dataset) - 1]  # imports and first-call work are not counted
    wall, processor = time.perf_counter(), time.process_time()
    for i in range(images):
        _ = dataset[i]
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    speed, cost = images / wall, 1000 * processor / images
    print(f"synthetic_ultrasound  {size}x{size}  {speed:6.1f} images/s  {cost:6.1f} ms of processor per image  (>= 12)")
    each = (f"{size} x {size}", 1000 / cost, None, "images/s", "none")
    return [line("03", "synthetic ultrasound, processor time", *each, more=True, note="aim 12")]


if __name__ == "__main__":
    rows()
