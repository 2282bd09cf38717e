"""Images per second of the synthetic mammogram generator on one core: ``python bench/synthetic_mammogram.py``."""

import time
from typing import Any

from form import line

from xai_lib.data.synthetic.mammogram import load_synthetic_mammogram

SIZES = ((256, 128), (512, 256), (1024, 512))


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Generate images of each size and print a row each; the aim is 8 images/s at 512 x 256."""
    images, found = 4 if quick else 16, []
    for size in SIZES[:2] if quick else SIZES:
        dataset = load_synthetic_mammogram(patients=images // 4 + 1, size=size)
        _ = dataset[len(dataset) - 1]  # imports and first-call work are not counted
        wall, processor = time.perf_counter(), time.process_time()
        for i in range(images):
            _ = dataset[i]
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        speed = f"{images / processor:6.1f} images/s of processor time ({images / wall:.1f} by the clock)"
        print(f"synthetic_mammogram  {size[0]}x{size[1]}  {speed}" + ("  (>= 8)" if size == (512, 256) else ""))
        each = (f"{size[0]} x {size[1]}", images / processor, None, "images/s", "none")
        found.append(line("02", "synthetic mammograms, processor time", *each, more=True, note="aim 8 at 512 x 256"))
    return found


if __name__ == "__main__":
    rows()
