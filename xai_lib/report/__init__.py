"""One static HTML site from the records and the executed notebooks: it needs no network and no server.

Usage::

    site = build("outputs/report")           # open outputs/report/index.html
    site.problems                            # records and notebooks that could not be read

Pages: the claims ledger with the counts of verdicts (index), one page per study (figures with intervals and baselines,
pictures, what each run was made of), one per notebook, and the deviations from the papers. The same input gives
the same files. All text from records is escaped.
"""

import io
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xai_lib import claims as claim_rules
from xai_lib import config, notebooks, verify
from xai_lib.report import notebook_page, pages
from xai_lib.report.strips import estimate, number

_MARK = '<meta name="generator" content="xai-lib report">'
_THUMB = (480, 480)  # at most, in pixels
_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif")


@dataclass(frozen=True)
class Site:
    """What `build` made: the folder, how many pages, records and bytes, and what could not be read."""

    folder: Path
    pages: int
    records: int
    size: int
    problems: list[str]


@dataclass(frozen=True)
class _Shown:
    """A picture on a study's page: paths of the file and of its thumbnail in the site, and the thumbnail's size."""

    file: str
    thumb: str
    caption: str
    width: int
    height: int


def build(out: str | Path, results: str | Path | None = None, committed: str | Path | None = None) -> Site:
    """Write the report to the folder `out`; an earlier report there stays until the new one is complete.

    Args:
        out: folder of the site; it must be new, empty, or hold an earlier report.
        results: folder of fresh records, executed notebooks and figures (default ``outputs``).
        committed: folder of committed records (default ``data/records``).

    Raises:
        ValueError: `out` holds something else.
        OSError: a file cannot be written.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and not _may_replace(out):
        raise ValueError(f"out: {out} holds other files than a report; name a new or an empty folder")
    results = Path(results or config.repository_dir() / "outputs")
    committed = Path(committed or config.repository_dir() / "data" / "records")
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    work.mkdir(parents=True)
    try:
        count, problems = _write_site(work, results, verify.find_records(committed), verify.find_records(results))
        _move(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Site(out, sum(path.suffix == ".html" for path in files), count, size, problems)


def _may_replace(out: Path) -> bool:
    """Whether `out` is an empty folder or an earlier report."""
    index = out / "index.html"
    if index.is_file():
        return _MARK in index.read_text(encoding="utf-8", errors="replace")
    return out.is_dir() and not any(out.iterdir())


def _move(work: Path, out: Path) -> None:
    """Put the finished folder in the place of the earlier one."""
    old = work.with_suffix(".old")
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_site(folder: Path, results: Path, committed: Sequence[Path], fresh: Sequence[Path]) -> tuple[int, list[str]]:
    """Every file of the site; the number of records shown, and what could not be read."""
    runs, problems = pages.read_runs(committed, fresh)
    claims = claim_rules.load()
    judged = pages.ledger_by_claim(claims, runs)
    studies = pages.study_views(claims, runs, judged)
    names = {path.name: f"notebook-{path.stem}.html" for path in notebooks.list_notebooks()}
    deviations = config.repository_dir() / "DEVIATIONS.md"
    if deviations.is_file():
        names[deviations.name] = "deviations.html"
    pictures: dict[str, list[_Shown]] = {}
    covers: dict[str, _Shown] = {}
    write = _writer(folder, {"studies": studies, "notebooks": names, "claims": claims, "judged": judged})
    for path in notebooks.list_notebooks():
        executed = results / path.stem / path.name
        try:
            shown_file = executed if executed.is_file() else path
            body = notebook_page.notebook_html(shown_file, names)
            pictures[path.stem] = _pictures(shown_file, results / path.stem / "figures", folder)
            if lead := notebook_page.lead_picture(shown_file):
                covers[path.stem] = _picture(lead, folder / "figures" / "lead", folder)
            elif pictures[path.stem]:
                covers[path.stem] = pictures[path.stem][0]
        except notebooks.NotebookError as error:
            problems.append(str(error))
            body = "<p>This notebook could not be read.</p>"
        study = next((s for s in studies if s.stem == path.stem), None)
        write(
            "text",
            names[path.name],
            title=pages.notebook_title(path),
            body=body,
            study=study,
            executed=executed.is_file(),
        )
    if deviations.is_file():
        body = notebook_page.text_html(deviations.read_text(encoding="utf-8"), names)
        write("text", names[deviations.name], title="Deviations from the papers", body=body)
    for study in studies:
        write("study", study.page, title=study.title, study=study, pictures=pictures.get(study.stem, []))
    totals = pages.verdict_totals(judged)
    write("index", "index.html", title="Report", runs=runs, problems=problems, totals=totals, covers=covers)
    _assets(folder)
    return len(runs), problems


def _writer(folder: Path, common: Mapping[str, Any]) -> Any:
    """A function that fills a template with what all pages share and its own values, and writes the page."""
    import jinja2

    source = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "estimate": estimate, "shown": pages.shown, "duration": pages.duration}
    environment.globals |= dict(common) | {"mark": _MARK, "VERDICTS": claim_rules.VERDICTS}

    def write(template: str, name: str, **values: Any) -> None:
        text = environment.get_template(f"{template}.html.j2").render(page=name, **values)
        (folder / name).write_text(text, encoding="utf-8")

    return write


def _assets(folder: Path) -> None:
    """Style sheet and script of the site; the code cells' colours are pygments', for light and for dark."""
    source = Path(__file__).parent / "assets"
    target = folder / "assets"
    target.mkdir(exist_ok=True)
    dark = f"@media (prefers-color-scheme: dark) {{\n{notebook_page.code_style('github-dark')}\n}}"
    style = (source / "style.css").read_text(encoding="utf-8")
    style = "\n".join([style, notebook_page.code_style("default"), dark, ""])
    (target / "style.css").write_text(style, encoding="utf-8")
    shutil.copyfile(source / "filter.js", target / "filter.js")


def _pictures(notebook: Path, figures: Path, folder: Path) -> list[_Shown]:
    """Copy a run's figures, those of the paper first, else the images in its notebook; each gets a thumbnail."""
    files = [p for p in figures.glob("*") if p.suffix.lower() in _SUFFIXES]
    files.sort(key=lambda p: (not p.name.startswith(("fig", "table")), p.name))
    found = [notebook_page.Picture(p.name, _caption(p.stem), p.read_bytes()) for p in files]
    target = folder / "figures" / notebook.stem
    return [_picture(p, target, folder) for p in found or notebook_page.notebook_pictures(notebook)]


def _picture(picture: notebook_page.Picture, target: Path, folder: Path) -> _Shown:
    """Write a picture and its thumbnail to the folder `target` of the site at `folder`."""
    small = target / "small" / f"{Path(picture.name).stem}.webp"
    small.parent.mkdir(parents=True, exist_ok=True)
    (target / picture.name).write_bytes(picture.content)
    thumb, width, height = _thumbnail(picture.content)
    small.write_bytes(thumb)
    paths = [path.relative_to(folder).as_posix() for path in (target / picture.name, small)]
    return _Shown(paths[0], paths[1], picture.alt, width, height)


def _caption(stem: str) -> str:
    """A figure's file name as words: ``fig6_tpr`` is "Fig 6 tpr"."""
    text = re.sub(r"^(fig|table)([0-9][0-9a-z]*)", lambda m: f"{m[1].title()} {m[2]}", stem).replace("_", " ")
    return text[:1].upper() + text[1:]


def _thumbnail(content: bytes) -> tuple[bytes, int, int]:
    """A small WebP of an image (of an animation its first frame), with its width and height."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        small = image.convert("RGB")
    small.thumbnail(_THUMB, Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=80, method=4)
    return stream.getvalue(), small.width, small.height
