"""From image files of a CDMAM phantom to a folder with detection matrices, a contrast-detail curve and a report.

Usage::

    done = read_folder(["phantom/"], "out", draw=contrast_detail)     # matrices.csv, curve.csv, curve.png, report.md
    done = read_scores(["scores.csv"], "out")                         # the same from another reader's matrices

Files are DICOM (raw pixel values: modality look-up table, no window), PNG or TIFF, 8 or 16 bit. An image that cannot be
read, or in which no whole phantom is found, is refused and listed with the reason; the others go on. Of a file's header
only what `data.dicom` reads is looked at, and nothing of it is written; images are listed by their file names.

Reference: European guidelines for quality assurance in breast cancer screening and diagnosis, 4th edition (2006), part
2b, section 2.4.1.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydicom.misc import is_dicom
from tqdm.auto import tqdm

from xai_lib.cdmam.geometry import CELLS
from xai_lib.cdmam.limits import (
    ACCEPTABLE_UM,
    ACHIEVABLE_UM,
    Intervals,
    Matrices,
    bootstrap,
    compare,
    pooled,
    read_matrices,
    used,
    write_matrices,
)
from xai_lib.cdmam.locate import NoPhantom, locate
from xai_lib.cdmam.observer import background, detect
from xai_lib.cdmam.readout import Readout, read_out
from xai_lib.data import images
from xai_lib.data.case import DataError, Skipped
from xai_lib.data.dicom import SUFFIXES, read_dicom

KINDS = (*SUFFIXES, ".png", ".tif", ".tiff")
SAME_EXPOSURE = 0.05  # share by which backgrounds may differ
LIMITS: Mapping[str, Mapping[float, float]] = {"acceptable": ACCEPTABLE_UM, "achievable": ACHIEVABLE_UM}
Draw = Callable[[Mapping[str, Mapping[str, Any]], Mapping[str, Mapping[float, float]]], Any]  # returns a figure


class ReadoutError(ValueError):
    """The images do not make one readout; the message names the file."""


@dataclass(frozen=True, eq=False)
class FolderReadout:
    """One readout and what a reader of it must know."""

    matrices: Matrices
    readout: Readout
    intervals: Intervals | None  # None for a single image
    limits: pd.DataFrame  # kind ("acceptable" | "achievable") and the columns of `limits.compare`
    refused: tuple[Skipped, ...]
    warnings: tuple[str, ...]


def read_folder(
    paths: Iterable[Path | str],
    out: Path | str,
    use: str = "corner",
    progress: bool = True,
    seed: int = 0,
    draw: Draw | None = None,
) -> FolderReadout:
    """Read images of one system at one setting and write the results into `out`.

    Args:
        paths: image files, or folders of which every DICOM, PNG and TIFF file is taken.
        out: folder of results; made if it is not there, files of an earlier readout in it are replaced.
        use: discs that count, "corner", "centre" or "both".
        progress: show a progress bar.
        seed: of the bootstrap.
        draw: `plotting.cdmam.contrast_detail`, for curve.png; without it there is no picture.

    Raises:
        FileNotFoundError: a path does not exist.
        ReadoutError: there is no file, none shows a phantom (the message holds the reasons), or two images differ in
            size.
        ValueError: `use` is unknown.
    """
    files = image_files(paths)
    require_known(use)
    folder = made(out)
    found: list[tuple[str, Any, float]] = []  # name, hits, background
    refused: list[Skipped] = []
    size: tuple[str, tuple[int, ...]] | None = None
    for name, path in tqdm(list(zip(named(files), files, strict=True)), desc="images", disable=not progress):
        try:
            image, pixel_mm = read_image(path)
            placement = locate(image, pixel_mm)
        except (DataError, NoPhantom) as error:
            refused.append(Skipped(name, str(error).replace(str(path), path.name).removeprefix(f"{path.name}: ")))
            continue
        size = size or (name, image.shape)
        if image.shape != size[1]:
            raise ReadoutError(
                f"{name}: image of {image.shape[0]} x {image.shape[1]} pixels, but {size[0]} has {size[1][0]} x "
                f"{size[1][1]}; expected images of one system"
            )
        found.append((name, detect(image, placement, flatten=True), float(np.median(background(image, placement)))))
    if not found:
        reasons = "; ".join(f"{s.source}: {s.why}" for s in refused)
        raise ReadoutError(f"no image of {len(refused)} shows a phantom that can be read: {reasons}")
    names, hits, levels = zip(*found, strict=True)
    matrices = Matrices(np.stack([h.centre for h in hits]), np.stack([h.corner for h in hits]), tuple(names))
    done = summary(matrices, use, seed, tuple(refused), exposure_warnings(names, levels))
    write(done, folder, use, draw)
    return done


def read_scores(
    paths: Iterable[Path | str], out: Path | str, use: str = "corner", seed: int = 0, draw: Draw | None = None
) -> FolderReadout:
    """As `read_folder`, from detection matrices that another reader wrote (see `limits.read_matrices`)."""
    matrices = read_matrices(paths)
    require_known(use)
    done = summary(matrices, use, seed)
    write(done, made(out), use, draw)
    return done


def image_files(paths: Iterable[Path | str]) -> list[Path]:
    """The files named, and those in the folders named, in order.

    FileNotFoundError: a path does not exist. ReadoutError: there is no file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += sorted(p for p in path.iterdir() if p.is_file() and (p.suffix.lower() in KINDS or _dicom(p)))
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if not files:
        raise ReadoutError("paths: no image file; expected DICOM, PNG or TIFF files, or folders that hold some")
    return files


def read_image(path: Path) -> tuple[NDArray[np.float32], float | None]:
    """Grey levels (H, W) in [0, 1] as stored, without window, and the side of a pixel in mm if a DICOM header has it.

    DataError: the file is no readable grey image.
    """
    if path.suffix.lower() in SUFFIXES or _dicom(path):
        image = read_dicom(path, voi=False)
        return image.pixels, image.pixel_mm
    return images.read_image(path), None


def _dicom(path: Path) -> bool:
    """Whether a file is DICOM, whatever its name."""
    try:
        return is_dicom(path)
    except OSError:
        return False


def named(files: list[Path]) -> list[str]:
    """File names without folders; a name that occurred before gets a number."""
    return [
        path.name if (k := [p.name for p in files[:i]].count(path.name)) == 0 else f"{path.name} ({k + 1})"
        for i, path in enumerate(files)
    ]


def made(out: Path | str) -> Path:
    """The folder of results, made if needed."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is a file; expected a folder for the results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_known(use: str) -> None:
    """ValueError where `use` is unknown; asked before anything is read."""
    if use not in ("corner", "centre", "both"):
        raise ValueError(f"use: {use!r}, expected 'corner', 'centre' or 'both'")


def exposure_warnings(names: Iterable[str], levels: Iterable[float]) -> tuple[str, ...]:
    """A warning per image whose background differs from the middle one by more than 5 %."""
    values = np.array(list(levels))
    share = values / np.median(values) - 1
    return tuple(
        f"{name}: its background is {s:+.0%} off the middle of the images: another exposure?"
        for name, s in zip(names, share, strict=True)
        if abs(s) > SAME_EXPOSURE
    )


def summary(
    matrices: Matrices, use: str, seed: int, refused: tuple[Skipped, ...] = (), warnings: tuple[str, ...] = ()
) -> FolderReadout:
    """Curve, intervals and limits of hit matrices."""
    readout = read_out(pooled(matrices, use), images=len(matrices.images))
    intervals = bootstrap(used(matrices, use), seed=seed) if len(matrices.images) > 1 else None
    table = pd.concat([compare(readout, limit, intervals).assign(kind=kind) for kind, limit in LIMITS.items()])
    return FolderReadout(
        matrices=matrices,
        readout=readout,
        intervals=intervals,
        limits=table[["kind", *(c for c in table if c != "kind")]].reset_index(drop=True),
        refused=refused,
        warnings=(*readout.notes, *warnings),
    )


def curve_table(done: FolderReadout) -> pd.DataFrame:
    """One row per diameter: thresholds of the observer and of a person, the curve and its interval."""
    r, nothing = done.readout, np.full(len(done.readout.diameters_mm), np.nan)
    return pd.DataFrame(
        {
            "diameter_mm": r.diameters_mm,
            "automatic_um": r.automatic_um,
            "human_um": r.human_um,
            "fitted_um": r.fitted_um,
            "low_um": nothing if done.intervals is None else done.intervals.low_um,
            "high_um": nothing if done.intervals is None else done.intervals.high_um,
            "slope": r.slope,
            "extrapolated": r.extrapolated,
        }
    )


def write(done: FolderReadout, folder: Path, use: str, draw: Draw | None) -> None:
    """Write matrices.csv, curve.csv, report.md and, with `draw`, curve.png."""
    write_matrices(folder / "matrices.csv", done.matrices)
    table = curve_table(done)
    table.to_csv(folder / "curve.csv", index=False)
    (folder / "report.md").write_text(report(done, use), encoding="utf-8")
    if draw is not None:
        curve = {"predicted": table["fitted_um"], "extrapolated": table["extrapolated"]}
        if done.intervals is not None:
            curve |= {"low": table["low_um"], "high": table["high_um"]}
        draw({f"{len(done.matrices.images)} images": curve}, LIMITS).savefig(folder / "curve.png", dpi=150)


def report(done: FolderReadout, use: str) -> str:
    """The report as Markdown."""
    count = len(done.matrices.images)
    lines = [
        "# CDMAM readout",
        "",
        f"{count} images, {use} discs, four-alternative detection. Thicknesses are micrometres of gold as a person"
        " would see them, with 95 % intervals over images.",
        "",
        "## Against the limits of the European guidelines",
        "",
        *markdown(done.limits),
        "",
        "The result is undecided where the limit lies within the interval."
        if done.intervals is not None
        else "One image gives no interval: the results compare the curve alone.",
        "",
        "## Curve",
        "",
        *markdown(curve_table(done)),
        "",
        "fitted_um is the curve of third order through the thresholds. Extrapolated: the observer's threshold lies"
        " outside the thicknesses of its row.",
        "",
        f"Share of right answers over all cells: {pooled(done.matrices, use).sum() / count / CELLS.sum():.3f}",
        "",
    ]
    for title, entries in (
        ("Warnings", done.warnings),
        ("Images used", done.matrices.images),
        ("Images refused", [f"{s.source}: {s.why}" for s in done.refused]),
    ):
        lines += [f"## {title}", "", *([f"- {e}" for e in entries] or ["None."]), ""]
    return "\n".join(lines)


def markdown(table: pd.DataFrame) -> list[str]:
    """Lines of a Markdown table; numbers with three digits, nothing for NaN."""

    def text(value: Any) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else ""
        return value if isinstance(value, str) else "" if pd.isna(value) else f"{value:.3g}"

    rows: list[Iterable[Any]] = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    return ["| " + " | ".join(map(text, row)) + " |" for row in rows]
