"""One image with everything known about it (`Case`), a lazy data set of them, and a report on a data folder.

Usage::

    cases = CaseDataset("mine", table, read)     # read(row) -> Case, called only when a case is asked for
    cases[0].image                               # (1, H, W), float32, in [0, 1]
    cases.subset([0, 2]).fingerprint             # sha256 over rows and file bytes

Boxes are half-open ``row0, col0, row1, col1``; points and boxes are (row, col) everywhere. Label 0 is benign, 1 is
malignant.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

COLUMNS = ("source", "label", "patient_id", "view")


class DataError(ValueError):
    """Something is wrong with a data set; the message names the file, what is wrong and what was expected."""


@dataclass(frozen=True, eq=False)
class Case:
    """One image: its label (0 benign, 1 malignant), lesion mask and boxes, pixel size in mm, patient, view and name."""

    image: Tensor  # (1, H, W), float32, in [0, 1]
    label: int | None
    mask: Tensor | None  # (H, W), bool
    boxes: Tensor  # (k, 4), int64, half-open row0, col0, row1, col1
    pixel_mm: float | None
    patient_id: str
    view: str
    source: str


@dataclass(frozen=True)
class Skipped:
    """A case or file that was left out, and why."""

    source: str
    why: str


@dataclass(frozen=True)
class Report:
    """What `check` saw in a data folder: counts, missing files, faulty ones with the reason, and remarks."""

    name: str
    found: dict[str, int]
    missing: list[str] = field(default_factory=list)
    faulty: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.missing)} missing, {len(self.faulty)} faulty"]
        lines += [f"  found    {count:6d} {what}" for what, count in self.found.items()]
        lines += [f"  missing  {_shorten(self.missing)}"] if self.missing else []
        lines += [f"  faulty   {item.source}: {item.why}" for item in self.faulty]
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)


class CaseDataset(Dataset[Case]):
    """A lazy torch data set of cases: `table` says what there is, `read` makes a case when it is asked for.

    Args:
        name: name of the data set, as in ``data.load(name)``.
        table: one row per case, with at least the columns source (unique), label, patient_id and view. A column `files`
            (tuples of paths) names the files that a case is read from; their bytes are part of the fingerprint.
        read: makes the case of one row. A module-level function or a `functools.partial` of one, so that worker
            processes can have it.
        skipped: what was left out, and why.
        parameters: for a generator, all that its images depend on; part of the fingerprint.

    Raises:
        DataError: a column is missing, two rows have the same source, or the table is empty.
    """

    def __init__(
        self,
        name: str,
        table: pd.DataFrame,
        read: Callable[[pd.Series], Case],
        skipped: Iterable[Skipped] = (),
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        lacking = [column for column in COLUMNS if column not in table]
        if lacking:
            raise DataError(f"{name}: the table lacks the columns {', '.join(lacking)}")
        if len(table) == 0:
            raise DataError(f"{name}: no case is left; skipped: {summary(skipped) or 'none'}")
        doubled = table["source"][table["source"].duplicated()]
        if len(doubled):
            raise DataError(f"{name}: two rows have the source {doubled.iloc[0]!r}; sources must be unique")
        self.name = name
        self.table = table.reset_index(drop=True)
        self.skipped = tuple(skipped)
        self.parameters = dict(parameters or {})
        self._read = read
        self._digests: dict[Path, str] = {}  # of files, shared with subsets
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Case:
        return self._read(self.table.iloc[index])

    @property
    def labels(self) -> np.ndarray:
        """Labels, (N,) int64; -1 where a case has none."""
        return np.array([-1 if pd.isna(label) else int(label) for label in self.table["label"]], dtype=np.int64)

    @property
    def patient_ids(self) -> np.ndarray:
        """Patient of each case, (N,) str."""
        return self.table["patient_id"].to_numpy(dtype=str)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "CaseDataset":
        """The cases at `indices`, in that order."""
        part = CaseDataset(
            self.name, self.table.iloc[np.asarray(indices, dtype=int)], self._read, self.skipped, self.parameters
        )
        part._digests = self._digests
        return part

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) over all rows, the bytes of all files and the parameters; the order of the cases is no part."""
        if self._fingerprint is None:
            files = self.table["files"] if "files" in self.table else [()] * len(self)
            # a generated set is fixed by its parameters; drawn floats may differ in the last digit between machines
            table = self.table.drop(columns="files") if "files" in self.table else self.table[list(COLUMNS)]
            facts = table.astype(object).to_dict("records")
            rows = {
                fact["source"]: [fact, [self._digest(Path(path)) for path in paths]]
                for fact, paths in zip(facts, files, strict=True)
            }
            text = json.dumps([self.name, self.parameters, rows], sort_keys=True, default=str)
            self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return self._fingerprint

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = file_digest(path)
        return self._digests[path]


def file_digest(path: Path) -> str:
    """Sha256 (hex) of a file's bytes.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def boxes_from_mask(mask: Tensor | np.ndarray, speck: float = 0.01) -> Tensor:
    """Boxes of the connected parts (8-neighbourhood) of a mask: (k, 4) int64, half-open row0, col0, row1, col1.

    Args:
        mask: (H, W), bool.
        speck: parts smaller than this fraction of the largest one get no box. Hand-drawn masks carry stray pixels: 23
            of BUSI's 665 lesion masks have parts of 1 to 8 pixels beside the lesion.
    """
    parts, _ = ndimage.label(np.asarray(mask, dtype=bool), structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel())[1:]
    boxes = [
        (rows.start, cols.start, rows.stop, cols.stop)
        for area, (rows, cols) in zip(areas, ndimage.find_objects(parts), strict=True)
        if area >= speck * areas.max()
    ]
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)


def hashed_id(identifier: object) -> str:
    """First 12 hex digits of the sha256 of a patient identifier: what the library keeps instead of the identifier."""
    return hashlib.sha256(str(identifier).encode()).hexdigest()[:12]


def summary(skipped: Iterable[Skipped]) -> str:
    """Reasons and how often each occurred, e.g. ``174 x image file is missing, 4 x normal``."""
    parts = [item.why.split(": ") for item in skipped]
    reasons = Counter(part[1] if part[0].endswith(".png") else part[0] for part in parts)  # without a file's name
    return ", ".join(f"{count} x {why}" for why, count in reasons.most_common())


def refuse(name: str, faults: Sequence[Skipped]) -> None:
    """What ``strict=True`` does with what was found faulty or missing.

    Raises:
        DataError: there is a fault; the message names the first one and how many there are.
    """
    if faults:
        more = f" (and {len(faults) - 1} more; see data.check)" if len(faults) > 1 else ""
        raise DataError(f"{name}: {faults[0].source}: {faults[0].why}{more}")


def existing(root: Path | str, name: str) -> Path:
    """`root` as a path.

    Raises:
        DataError: it is not a folder; the message says what to do.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{name}: {folder} is not a folder; give root=, or set XAI_DATA_DIR (see data/README.md)")
    return folder


def _shorten(names: Sequence[str], most: int = 8) -> str:
    """The first names and how many more there are."""
    return ", ".join(names[:most]) + (f" ... and {len(names) - most} more" if len(names) > most else "")
