"""A notebook as the body of an HTML page that needs neither network nor script.

Usage::

    body = notebook_html("notebooks/03_ultrasound_cam_pointing_game.ipynb", {"05_inpainting_sdr.ipynb": "05.html"})
    pictures = notebook_pictures("notebooks/03_ultrasound_cam_pointing_game.ipynb")

nbconvert makes the body (its template `basic`); scripts, style sheets and widgets of the outputs are dropped. Formulas
are drawn by matplotlib's mathtext, as SVG in the colour of the text, with their TeX source as the text for screen
readers: MathJax is loaded from a network, or weighs several megabytes. TeX that mathtext cannot draw stays as source.
"""

import base64
import html
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from xai_lib.notebooks import NotebookError, notebooks_dir

_WIDGET = "application/vnd.jupyter.widget-view+json"
_IMAGES = {"image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif"}
_MATH = re.compile(
    r"(?P<code>```.*?```|~~~.*?~~~|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?=\S)(?P<line>[^$\n]+?)(?<=\S)\$(?!\w)",
    re.DOTALL,
)
_ACTIVE = re.compile(r"<(style|script)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)
_IMAGE = re.compile(r"!\[(?P<alt>[^\]\n]*)\]\((?P<file>(?!https?:|attachment:|data:)[^)\s]+)\)")
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Picture:
    """An image of a notebook's outputs: a file name, a description, and the bytes of the file."""

    name: str
    alt: str
    content: bytes


def notebook_html(path: str | Path, pages: Mapping[str, str]) -> str:
    """Body of the page of a notebook; `pages` maps names of linked files to their pages, other local links are dropped.

    Images that its text shows are looked up beside the numbered notebooks, wherever the executed copy lies.

    Raises:
        NotebookError: the file is no notebook.
    """
    from nbconvert import HTMLExporter  # takes a second, and only a report needs it

    notebook = _read(path)
    heading = "the start"
    formulas: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = _heading(cell.source) or heading
            cell.source = _links(_images(_formulas(cell.source, formulas)), pages)
        elif cell.cell_type == "code":
            cell.outputs = [_described(o, heading) for o in cell.outputs if _is_static(o)]
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook)
    return _finished(body, formulas)


def text_html(markdown: str, pages: Mapping[str, str]) -> str:
    """A Markdown text as HTML, with its links as in `notebook_html`."""
    from nbconvert.filters import markdown2html

    formulas: list[str] = []
    text = _links(_formulas(markdown, formulas), pages)
    return _finished(str(markdown2html(text)), formulas)


def notebook_pictures(path: str | Path) -> list[Picture]:
    """Images in a notebook's outputs, in order, described by the heading above them.

    Raises:
        NotebookError: the file is no notebook.
    """
    found: list[Picture] = []
    heading = ""
    for cell in _read(path).cells:
        if cell.cell_type == "markdown":
            heading = _heading(cell.source) or heading
        for output in cell.get("outputs", []):
            for kind, suffix in _IMAGES.items():
                if kind in output.get("data", {}):
                    content = base64.b64decode(output["data"][kind])
                    found.append(Picture(f"output-{len(found) + 1:02d}{suffix}", heading, content))
    return found


def lead_picture(path: str | Path) -> Picture | None:
    """The first image that a notebook's text shows, with its own description; None without one.

    Raises:
        NotebookError: the file is no notebook.
    """
    text = "\n".join(cell.source for cell in _read(path).cells if cell.cell_type == "markdown")
    for match in _IMAGE.finditer(text):
        file = notebooks_dir() / match["file"]
        if file.is_file():
            return Picture(file.name, match["alt"], file.read_bytes())
    return None


def code_style(name: str) -> str:
    """CSS of pygments' style `name` for the code cells."""
    from pygments.formatters import HtmlFormatter

    rules = HtmlFormatter(style=name, nobackground=True).get_style_defs(".highlight").splitlines()
    return "\n".join(rule for rule in rules if rule.startswith(".highlight ."))


def _read(path: str | Path) -> Any:
    """The notebook at `path`, as nbformat has it."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has no common class for what can be wrong with a file
        raise NotebookError(f"{path}: cannot be read as a notebook ({type(error).__name__}: {error})") from error


def _heading(markdown: str) -> str:
    """Text of the last heading in a cell; empty without one."""
    lines = [line.lstrip("# ").strip() for line in markdown.splitlines() if re.match(r"#{1,6} ", line)]
    return re.sub(r"[*`_]", "", lines[-1]) if lines else ""


def _is_static(output: Any) -> bool:
    """Whether something is left of an output without a running kernel: a widget is only kept with an image of it."""
    data = output.get("data", {})
    return _WIDGET not in data or any(kind in data for kind in _IMAGES)


def _described(output: Any, heading: str) -> Any:
    """`output` without its widget, and its images with a text that says where they belong."""
    if "data" in output:
        output.data.pop(_WIDGET, None)
        for kind in _IMAGES:
            if kind in output.data:
                output.metadata.setdefault(kind, {}).setdefault("alt", f"Figure of the section: {heading}")
    return output


def _images(markdown: str) -> str:
    """Images in files, looked up beside the numbered notebooks, become part of the text; a missing one its description.

    nbconvert can do this as well, but refuses files outside the notebooks' folder.
    """

    def embedded(match: re.Match[str]) -> str:
        file = notebooks_dir() / match["file"]
        kind = mimetypes.guess_type(file.name)[0]
        if not file.is_file() or kind not in _IMAGES:
            return match["alt"]
        return f"![{match['alt']}](data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()})"

    return _IMAGE.sub(embedded, markdown)


def _links(markdown: str, pages: Mapping[str, str]) -> str:
    """Local links lead to the page of the file they name; where there is none, only their text stays."""

    def page(match: re.Match[str]) -> str:
        name, _, anchor = Path(match["target"]).name.partition("#")
        if match["target"].startswith(("http://", "https://", "#")):
            return match[0]
        return f"[{match['text']}]({pages[name]}{'#' * bool(anchor)}{anchor})" if name in pages else match["text"]

    return _LINK.sub(page, markdown)


def _formulas(markdown: str, found: list[str]) -> str:
    """`markdown` with a mark in the place of each formula outside code; their HTML is appended to `found`."""

    def mark(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        found.append(formula_html((match["block"] or match["line"]).strip(), block=match["block"] is not None))
        return f"FORMULA{len(found) - 1}HERE"

    return _MATH.sub(mark, markdown)


def _finished(body: str, formulas: list[str]) -> str:
    """`body` without scripts, with its formulas, and wide parts in boxes that scroll and are reached by keyboard."""
    body = _ACTIVE.sub("", body).replace("<pre>", '<pre tabindex="0">')
    body = _TABLE.sub(r'<div class="box" tabindex="0">\g<0></div>', body)
    for i, formula in enumerate(formulas):
        body = body.replace(f"FORMULA{i}HERE", formula)
    return body


@cache
def formula_html(tex: str, block: bool = False) -> str:
    """A formula as SVG, sized in the units of the text around it; TeX source where mathtext cannot draw it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    kind = "formula block" if block else "formula"
    font = FontProperties(family="DejaVu Serif", math_fontfamily="stix", size=100)
    try:
        width, height, depth, *_ = MathTextParser("path").parse(f"${tex}$", 72, font)
        outline = TextPath((0, 0), f"${tex}$", prop=font)
    except ValueError:
        return f'<code class="{kind}">{html.escape(tex)}</code>'
    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    parts = []
    for points, code in outline.iter_segments(simplify=False):
        flipped = [height - depth - p if i % 2 else p for i, p in enumerate(points)]  # SVG's rows go down from the top
        parts.append(letters[code] + " ".join(f"{p:.0f}" for p in flipped) if code in letters else "Z")
    size = f"width:{width / 100:.2f}em;height:{height / 100:.2f}em;vertical-align:{-depth / 100:.2f}em"
    return (
        f'<svg class="{kind}" role="img" aria-label="{html.escape(tex)}" style="{size}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"><path d="{"".join(parts)}"/></svg>'
    )
