"""Attribution maps of thousands of images: in this process, on several, or on a Dask cluster; resumable.

Usage::

    store = explain_dataset(data.load("busi"), "busi.zarr", "net.safetensors", "grad_cam", workers=2)
    store.maps[3]                                                   # (H, W); see `map_store`
    map_cases(function, dataset, "own.zarr", size=224, attributes={"method": "mine", "version": 1})

The images are worked through in batches. A batch is read, resized, explained and written by one process, into chunks
of its own, and only a bounded number of batches is under way, so memory does not grow with the number of images. The
same call goes on where a killed one stopped, makes damaged chunks anew, and tries the failed images again. Every
process computes on one thread: the maps are the same to the last bit with any number of workers.

**Another machine.** `client` is the address of a Dask scheduler. Its workers must have this library and see the store,
the checkpoint and the images under the same paths. Start them with ``dask worker ADDRESS --nthreads 1 --no-nanny``, or
without ``MALLOC_TRIM_THRESHOLD_`` in their environment (see `local_cluster`).
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from xai_lib import checkpoints, map_store, records
from xai_lib.attribution import attribute
from xai_lib.attribution import options as options_of
from xai_lib.config import runtime
from xai_lib.data import CaseDataset
from xai_lib.data.case import hashed_id
from xai_lib.map_batches import Batch, BatchMaps, Function, explain_batch
from xai_lib.map_store import MapStore

COMPLETE = ("integrated_gradients", "gradient_shap", "deeplift", "deep_shap", "kernel_shap")  # these give a gap
CHUNK = 8  # passes at a time: a fixed number, since a timed one changes the last digits from run to run
AHEAD = 2  # batches under way for each thread of the cluster
BATCH = 16


@dataclass(frozen=True)
class Explainer:
    """One method on one checkpoint, as a function of images (N, 1, H, W) that worker processes can have.

    Each process loads the network once. `sha256` is the checkpoint's: a worker that finds another file refuses it.
    """

    checkpoint: str
    sha256: str
    method: str
    options: Mapping[str, Any]
    target: int = 0
    device: str = "auto"

    def __call__(self, x: Tensor) -> BatchMaps:
        """Explain images (N, 1, H, W).

        Raises:
            ValueError, TypeError: as `attribution.attribute` and `checkpoints.load`.
        """
        model, device = _network(self.checkpoint, self.sha256, self.device)
        alone = self.method in COMPLETE  # a gap belongs to a batch; these send many passes for each image anyway
        found = [
            attribute(self.method, model, part.to(device), self.target, progress=False, **self.options)
            for part in (x.split(1) if alone else [x])
        ]
        gaps = [torch.full((len(a.map),), np.nan if a.completeness_gap is None else a.completeness_gap) for a in found]
        return BatchMaps(torch.cat([a.map for a in found]), torch.cat([a.scores for a in found]), torch.cat(gaps))


@lru_cache(maxsize=1)
def _network(checkpoint: str, sha256: str, device: str) -> tuple[nn.Module, torch.device]:
    """The checkpoint's network, loaded once in a process."""
    where = runtime(device)
    model, _ = checkpoints.load(checkpoint, expect={"sha256": sha256})
    return model.to(where.device), where.device


def explain_dataset(
    dataset: CaseDataset,
    out: str | Path,
    checkpoint: str | Path,
    method: str,
    options: Mapping[str, Any] | None = None,
    target: int = 0,
    size: int | None = None,
    device: str = "auto",
    **running: Any,
) -> MapStore:
    """Maps of all cases by one of `attribution.METHODS`.

    Args:
        dataset: the cases.
        out: the store; workers on other machines must see it under the same path, as the checkpoint and the images.
        checkpoint: a ``.safetensors`` file with its card beside it.
        method: a key of `attribution.METHODS`.
        options: of the method, plain JSON. `chunk` is 8 where the method has it and it is not given.
        target: the output to explain.
        size: side of the network's input in pixels; None takes the card's, else 224.
        device: as for `config.runtime`, in each process.
        running: workers, client, batch, dtype, progress of `map_cases`.

    Raises:
        ValueError, TypeError, OSError: as `map_cases`; a checkpoint, a method, an option or the target cannot be used
            (tried on one made-up image before anything is written).
    """
    from xai_lib.explain_file import SIZE  # matplotlib comes with it, and workers need none

    card = checkpoints.read_card(checkpoint)
    chosen = {"chunk": CHUNK, **(options or {})} if "chunk" in options_of(method) else dict(options or {})
    side = size or int(card.get("size", SIZE))
    explainer = Explainer(str(Path(checkpoint).absolute()), card["sha256"], method, chosen, target, device)
    explainer(torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)))
    attributes = {
        "method": method,
        "options": chosen,
        "target": target,
        "checkpoint": {"architecture": card["architecture"], "sha256": card["sha256"]},
    }
    return map_cases(explainer, dataset, out, size=side, attributes=attributes, **running)


def map_cases(
    function: Function,
    dataset: CaseDataset,
    out: str | Path,
    *,
    size: int | tuple[int, int],
    attributes: Mapping[str, Any],
    workers: int = 1,
    client: Any = None,
    batch: int = BATCH,
    dtype: str = "float32",
    progress: bool = True,
) -> MapStore:
    """Apply `function` to every case and write the maps into the store `out`.

    An image that cannot be read or explained keeps NaN and is named in the store's `failures`; the rest go on.

    Args:
        function: images (N, 1, H, W) -> maps (N, H, W), or `BatchMaps`. For worker processes it must be picklable: a
            module-level function, or a frozen dataclass with ``__call__`` such as `Explainer`.
        dataset: the cases.
        out: the store; made where it is missing, gone on with where it is not.
        size: side, or rows and columns, that each image is resized to (the aspect ratio is not kept).
        attributes: plain JSON that says all that the maps depend on, beside the data and the size. A store with
            others is refused.
        workers: processes on this machine; 0 and 1 mean this process.
        client: a `distributed.Client`, or a scheduler's address, instead of `workers`.
        batch: images that are explained at once, and lie in one chunk.
        dtype: "float32", or "float16" for half the disk; a map whose peak float16 cannot hold is a failure.
        progress: show a bar.

    Raises:
        MapStoreError: `out` holds something else; the message names the first difference.
        ValueError, TypeError: an argument cannot be used.
        OSError: the store cannot be written, or the scheduler is not reached or lost.
    """
    if workers < 0:
        raise ValueError(f"workers: {workers} is below 0")
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(shape) < 1:
        raise ValueError(f"size: {shape[0]} x {shape[1]} pixels, expected at least 1 x 1")
    path = Path(out).expanduser().absolute()
    ids = [hashed_id(source) for source in dataset.table["source"]]
    facts = {
        **records.public_parameters(attributes),
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "versions": records.versions(),
    }
    map_store.prepare(path, ids, shape, batch, dtype, facts)
    left = map_store.batches_left(path)
    batches = (Batch(function, _part(dataset, *rows), path, rows[0], shape, dtype) for rows in left)
    failures: dict[int, str] = {}
    todo = sum(stop - start for start, stop in left)
    with tqdm(total=len(dataset), initial=len(dataset) - todo, unit="maps", disable=not progress) as bar:
        alone = not left or (client is None and workers < 2)
        for count, failed in _here(batches) if alone else _on_cluster(batches, workers, client):
            failures |= failed
            bar.update(count)
    if left:
        map_store.write_failures(path, failures)
    return map_store.open_maps(path)


def _part(dataset: CaseDataset, start: int, stop: int) -> CaseDataset:
    """The cases of one batch, without what the data set remembers of all its files: it travels with each one."""
    part = dataset.subset(range(start, stop))
    part._digests, part.skipped = {}, ()
    return part


def _here(batches: Iterable[Batch]) -> Iterator[tuple[int, dict[int, str]]]:
    """Number of images and failures of each batch, done in this process."""
    for one in batches:
        yield len(one.part), explain_batch(one)


def _on_cluster(batches: Iterator[Batch], workers: int, client: Any) -> Iterator[tuple[int, dict[int, str]]]:
    """The same on a cluster, in the order in which batches end; a few for each thread are under way at a time.

    A batch that kills its worker again and again is a failure of all its images.
    """
    from distributed import KilledWorker, as_completed

    with _connected(workers, client) as found:
        running, rows = as_completed(loop=found.loop), dict[Any, range]()
        try:
            while True:
                most = AHEAD * max(1, sum(found.nthreads().values()))  # workers come and go
                for one in islice(batches, max(0, most - len(rows))):
                    future = found.submit(explain_batch, one, pure=False)
                    rows[future] = range(one.start, one.start + len(one.part))
                    running.add(future)
                if not rows:
                    return
                done = next(running)
                of = rows.pop(done)
                if done.cancelled():
                    raise ConnectionError("the scheduler was lost; the same call goes on with what is left")
                error = done.exception()
                if error is not None and not isinstance(error, KilledWorker):
                    raise error
                yield len(of), done.result() if error is None else dict.fromkeys(of, "its worker died, several times")
        finally:
            found.cancel(list(rows))


@contextmanager
def _connected(workers: int, client: Any) -> Iterator[Any]:
    """The client given, one of the scheduler at an address, or one of a new local cluster."""
    from distributed import Client

    if client is not None and not isinstance(client, str):
        yield client
        return
    with local_cluster(workers) if client is None else Client(client, set_as_default=False) as found:
        yield found


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """A `distributed.Client` of so many processes on this machine, one thread each; they end with the block.

    Dask starts its workers with an environment variable that makes the allocator give memory back at once. For a
    network's large tensors this doubles the processor time (measured), so these workers go without it.
    """
    import dask
    from distributed import Client, LocalCluster

    nanny, quiet = logging.getLogger("distributed.nanny"), lambda record: record.levelno >= logging.ERROR
    environment = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}  # and no MALLOC_TRIM_THRESHOLD_
    try:
        nanny.addFilter(quiet)  # it warns of workers that take seconds to end, as torch does
        with (
            dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",  # a free port; not seen from other machines
                local_directory=tempfile.gettempdir(),
                silence_logs=logging.ERROR,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
    finally:
        nanny.removeFilter(quiet)
