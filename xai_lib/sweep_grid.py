"""Read a grid: notebooks x parameters x seeds as a list of checked runs.

Usage::

    runs = read_grid("grid.yml", "outputs/sweeps/grid")
    runs[0].cell, runs[0].seed, runs[0].folder        # '03-folds=2-1f0c9a3e', 0, .../03-folds=2-1f0c9a3e/seed-0/03_...

A grid is a YAML file with one block, or a list of blocks::

    - notebooks: [03, 05]                  # numbers, names or paths
      profile: smoke                       # optional: smoke, lab or paper
      parameters:                          # optional: for each parameter a list of values
        retrain: [true]
      seeds: [0, 1, 2]

Each block is the full product of what it lists. A cell of the grid is a notebook with its parameters, without the seed;
the runs of a cell differ in the seed alone. The name of a cell ends in a hash of the notebook's name, its parameters
(with the profile) and the data folder, so that changed parameters have a folder of their own.
"""

import json
import re
from collections.abc import Hashable
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from xai_lib import batch, config

_KEYS = ("notebooks", "profile", "parameters", "seeds")


class GridError(ValueError):
    """A grid that cannot be run; the message names the file, the block and the key."""


@dataclass(frozen=True)
class Run:
    """One run of a grid: `job` has the typed parameters with profile and seed, and the folder of its result.

    `parameters` are those of the cell: with the profile, where the grid names one, and without the seed.
    """

    cell: str
    parameters: dict[str, Any]
    seed: int
    job: batch.Job

    @property
    def notebook(self) -> str:
        """Name of the notebook, without its ending."""
        return self.job.notebook.path.stem

    @property
    def label(self) -> str:
        """The cell for people: number of the notebook and its parameters."""
        return " ".join([_number(self.notebook), *(f"{k}={_text(v)}" for k, v in self.parameters.items())])

    @property
    def folder(self) -> Path:
        """Where the result lies: OUT/<cell>/seed-<seed>/<notebook>."""
        return self.job.folder


class _Loader(yaml.SafeLoader):
    """YAML in which a key may stand once only; PyYAML itself takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise GridError(f"{key!r} stands twice, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def read_grid(path: str | Path, out: str | Path, data_dir: str | Path | None = None) -> list[Run]:
    """Read the runs of a grid, block by block, the seeds of a cell one after another.

    Args:
        path: the YAML file.
        out: folder of the sweep; it is made where it is missing, and nothing is written to it.
        data_dir: folder of the real data sets for every run (default: XAI_DATA_DIR as it is now).

    Raises:
        GridError: not YAML; an unknown, missing or double key; a value of a wrong type; a run that is there twice.
        NotebookError, ValueError, OSError: as `batch.prepare`.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GridError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except GridError as error:
        raise GridError(f"{path}: {error}") from None
    blocks = content if isinstance(content, list) else [content]
    runs, seen = [], set()
    for number, block in enumerate(blocks, 1):
        where = f"{path}: block {number}" if len(blocks) > 1 else str(path)
        for run in _block(block, where, Path(out), data_dir or config.data_dir()):
            if run.folder in seen:
                raise GridError(f"{where}: {run.label} with seed {run.seed} is twice in the grid")
            seen.add(run.folder)
            runs.append(run)
    if not runs:
        raise GridError(f"{path}: holds no block")
    return runs


def _block(block: object, where: str, out: Path, data_dir: str | Path | None) -> list[Run]:
    """Runs of one block."""
    if not isinstance(block, dict):
        raise GridError(f"{where}: is {block!r:.60}, expected the keys {', '.join(_KEYS)}")
    for key in block:
        if key not in _KEYS:
            raise GridError(f"{where}: unknown key {key!r}; there are {', '.join(_KEYS)}")
    chosen = _values(block.get("notebooks"), f"{where}: notebooks", (int, str))
    seeds = _values(block.get("seeds"), f"{where}: seeds", (int,))
    profile = block.get("profile")
    if not isinstance(profile, str | None):
        raise GridError(f"{where}: profile: is {profile!r}, expected a name")
    given = block.get("parameters", {})
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise GridError(f"{where}: parameters: is {given!r:.60}, expected `name: [value, ...]`")
    for name, own in (("seed", "seeds"), ("profile", "profile")):
        if name in given:
            raise GridError(f"{where}: parameters.{name}: is set by {own}")
    axes = [_values(values, f"{where}: parameters.{name}") for name, values in given.items()]
    runs = []
    for notebook, values in product(chosen, product(*axes)):
        parameters = dict(zip(given, values, strict=True))
        for seed in seeds:
            try:
                job = batch.prepare(str(notebook), parameters | {"seed": seed}, profile, out, data_dir)
            except ValueError as error:
                raise GridError(f"{where}: {error}") from error
            for name, value in parameters.items():
                if job.notebook.parameters[name].type == "str" and not isinstance(value, str):
                    raise GridError(f"{where}: parameters.{name}: {value!r} is not text; put it in quotes")
            runs.append(_run(job, out))
    return runs


def _values(values: object, where: str, kinds: tuple[type, ...] = (object,)) -> list[Any]:
    """A list of at least one value of the right kind, none of them twice."""
    if not isinstance(values, list) or not values:
        raise GridError(f"{where}: is {values!r:.60}, expected a list of values")
    for value in values:
        if not isinstance(value, kinds) or (kinds != (object,) and isinstance(value, bool)):
            raise GridError(f"{where}: {value!r} is not {' or '.join(kind.__name__ for kind in kinds)}")
    return values


def _run(job: batch.Job, out: Path) -> Run:
    """The run of a checked job, with its own folder below `out`."""
    parameters = {name: value for name, value in job.parameters.items() if name != "seed"}
    seed, stem = int(job.parameters["seed"]), job.notebook.path.stem
    data = None if job.data_dir is None else str(job.data_dir)
    digest = sha256(json.dumps([stem, parameters, data], sort_keys=True).encode()).hexdigest()[:8]
    words = "-".join([_number(stem), *(f"{name}={_text(value)}" for name, value in parameters.items())])
    cell = f"{re.sub('[^A-Za-z0-9.=_+-]+', '_', words)[:80]}-{digest}"
    folder = out.resolve() / cell / f"seed-{seed}" / stem
    return Run(cell, parameters, seed, batch.Job(job.notebook, job.parameters, folder, job.data_dir))


def _number(stem: str) -> str:
    """Number of a numbered notebook, else its whole name."""
    return stem.partition("_")[0] if stem[:1].isdigit() else stem


def _text(value: object) -> str:
    """A value as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)
