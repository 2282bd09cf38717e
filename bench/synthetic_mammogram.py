"""Images per second of the synthetic mammogram generator on one core: ``python -m bench.synthetic_mammogram``."""

import time

from xai_lib.data.synthetic.mammogram import load_synthetic_mammogram

SIZES = ((256, 128), (512, 256), (1024, 512))


def main(images: int = 16) -> None:
    """Generate `images` images of each size and print a row each; the aim is 8 images/s at 512 x 256."""
    for size in SIZES:
        dataset = load_synthetic_mammogram(patients=images // 4 + 1, size=size)
        _ = dataset[len(dataset) - 1]  # imports and first-call work are not counted
        wall, processor = time.perf_counter(), time.process_time()
        for i in range(images):
            _ = dataset[i]
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        speed = f"{images / processor:6.1f} images/s of processor time ({images / wall:.1f} by the clock)"
        print(f"synthetic_mammogram  {size[0]}x{size[1]}  {speed}" + ("  (>= 8)" if size == (512, 256) else ""))


if __name__ == "__main__":
    main()
