"""What every study shares: profiles, folders, device, threads, precision and random numbers.

Usage::

    settings = runtime(device="auto", threads=2)      # where and how to compute
    rng = numpy_generator(seed, "split", 3)           # one independent stream per purpose
    root = data_dir()                                 # XAI_DATA_DIR, or None

Nothing here is global: a generator, a device or a folder is asked for and passed on. torch takes seconds to import, so
what needs it here imports it when it is called.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Profile:
    """How much work a run may do. `purpose` is for people; `budget_s` is the aim for one notebook on 2 CPU cores."""

    name: str
    purpose: str
    budget_s: int | None


PROFILES = {
    "smoke": Profile("smoke", "wiring and sweeps in tests; trains tiny models", 30),
    "lab": Profile("lab", "the default: course, exploration and CI; loads the shipped checkpoint", 180),
    "paper": Profile("paper", "the paper's exact protocol; wants a GPU and ImageNet weights", None),
}


def profile(name: str) -> Profile:
    """Return the profile called `name`.

    Raises:
        ValueError: `name` is not one of smoke, lab, paper.
    """
    if name not in PROFILES:
        raise ValueError(f"profile: {name!r} is unknown, expected one of {', '.join(PROFILES)}")
    return PROFILES[name]


@dataclass(frozen=True)
class Runtime:
    """Where and how to compute: device, CPU threads, bfloat16 autocast and memory layout of the training loop."""

    device: "torch.device"
    threads: int
    bf16: bool
    channels_last: bool

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to bfloat16 where `bf16` is on; float32 otherwise."""
        import torch

        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            yield


def runtime(device: str = "auto", threads: int | None = None, bf16: bool | str = False) -> Runtime:
    """Choose device, threads and precision, and set torch's number of CPU threads.

    Args:
        device: "auto" (CUDA where there is one, else CPU), or a torch device name.
        threads: CPU threads for torch; None leaves torch's own choice.
        bf16: True, False, or "auto" (on for CUDA and for CPUs with AVX512-BF16). Figures that are compared
            between machines are computed with False.

    Raises:
        ValueError: the device does not exist here, `threads` is below 1, or `bf16` is none of the three values.
    """
    import torch

    if bf16 not in (True, False, "auto"):
        raise ValueError(f"bf16: {bf16!r} is not True, False or 'auto'")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: {threads} is below 1")
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} is not a torch device name such as 'cpu' or 'cuda:0'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} was asked for, but torch sees no CUDA device; use 'auto' or 'cpu'")
    fast = chosen.type == "cuda" or _cpu_has_bf16()
    return Runtime(chosen, torch.get_num_threads(), fast if bf16 == "auto" else bool(bf16), channels_last=fast)


def _cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without it autocast is slower than float32."""
    import torch

    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


def _stream(seed: int, *purpose: object) -> int:
    """64 bits that depend on the seed and on what the numbers are for."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed: {seed!r} is not an integer >= 0")
    text = "/".join(map(str, (int(seed), *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def numpy_generator(seed: int, *purpose: object) -> np.random.Generator:
    """Independent NumPy stream for one `purpose`, e.g. ``numpy_generator(0, "bootstrap")``."""
    return np.random.default_rng(_stream(seed, *purpose))


def torch_generator(seed: int, *purpose: object) -> "torch.Generator":
    """Independent torch stream (on the CPU) for one `purpose`."""
    import torch

    return torch.Generator().manual_seed(_stream(seed, *purpose) % 2**63)


def repository_dir() -> Path:
    """Folder of the checkout: it holds `notebooks/` and `data/`."""
    return Path(__file__).resolve().parent.parent


def data_dir() -> Path | None:
    """Folder of the real data sets (`XAI_DATA_DIR`), or None where it is not set."""
    value = os.environ.get("XAI_DATA_DIR")
    return Path(value).expanduser() if value else None


def cache_dir() -> Path:
    """Folder for things that can be computed again (`XAI_CACHE_DIR`, else ``.cache`` in the checkout)."""
    return Path(os.environ.get("XAI_CACHE_DIR") or repository_dir() / ".cache").expanduser()


def output_dir(path: str | Path | None = None) -> Path:
    """Create and return the folder for results: `path`, else `XAI_OUTPUT_DIR`, else ``outputs`` in the checkout.

    Raises:
        PermissionError: the folder cannot be made or written; the message names it.
    """
    folder = Path(path or os.environ.get("XAI_OUTPUT_DIR") or repository_dir() / "outputs").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"output folder {folder} cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"output folder {folder} cannot be written; choose another with output_dir or XAI_OUTPUT_DIR"
        )
    return folder
