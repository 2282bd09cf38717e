"""What a notebook declares: its title, its typed parameters, and the hash of its code.

Usage::

    notebook = read_notebook(find_notebook("03"))
    seed = convert("7", notebook.parameters["seed"])          # 7

Parameters are strict: papermill itself only warns about an unknown name or a missing `parameters` cell.
"""

import ast
import io
import json
import tokenize
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml


class NotebookError(ValueError):
    """A notebook or parameter that cannot be used; the message names it and says what was expected."""


@dataclass(frozen=True)
class Parameter:
    """One line of the `parameters` cell, as text: ``name: type = default  # help``."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True)
class Notebook:
    """What the runner knows of a notebook; `sha256` is the hash of its code, prose and outputs do not count."""

    path: Path
    title: str
    parameters: dict[str, Parameter]
    sha256: str


def notebooks_dir() -> Path:
    """Folder of the numbered notebooks."""
    from xai_lib import config  # it imports torch, which takes seconds and which a run's child process does not need

    return config.repository_dir() / "notebooks"


def list_notebooks() -> list[Path]:
    """Paths of the numbered notebooks, in order."""
    return sorted(notebooks_dir().glob("[0-9]*.ipynb"))


def find_notebook(name: str | Path) -> Path:
    """Find a notebook by number (``03`` or ``3``), by the start of its name, or by path.

    Raises:
        NotebookError: none or several fit; the message lists what there is.
    """
    if Path(name).suffix == ".ipynb" and Path(name).is_file():
        return Path(name).resolve()
    text = Path(name).name.removesuffix(".ipynb")
    text = text.zfill(2) if text.isdigit() else text
    known = list_notebooks()
    hits = [p for p in known if p.stem == text] or [p for p in known if text and p.stem.startswith(text)]
    if len(hits) != 1:
        what = "fits several:" if hits else "not found; there are"
        names = ", ".join(p.stem for p in hits or known) or f"none in {notebooks_dir()}"
        raise NotebookError(f"notebook {str(name)!r} {what} {names}")
    return hits[0]


def read_notebook(path: str | Path) -> Notebook:
    """Read title, parameters and code hash of a notebook.

    Raises:
        NotebookError: the file is no notebook, or has no (readable, typed) cell tagged `parameters`.
    """
    path = Path(path)
    code = code_cells(path)
    tagged = [source(c) for c in code if "parameters" in _tags(c)]
    if len(tagged) != 1:
        raise NotebookError(f"{path}: {len(tagged)} code cells are tagged 'parameters', expected 1")
    prose = "\n".join(source(c) for c in _cells(path) if c["cell_type"] == "markdown")
    title = next((line.lstrip("# ") for line in prose.splitlines() if line.startswith("#")), path.stem)
    digest = sha256(json.dumps([source(c) for c in code]).encode()).hexdigest()
    return Notebook(path, title.strip(), _parameters(tagged[0], path), digest)


def code_cells(path: Path) -> list[dict[str, Any]]:
    """Code cells of a notebook file, as JSON has them, without the one that papermill adds.

    Raises:
        NotebookError: the file is no notebook.
    """
    return [c for c in _cells(path) if c["cell_type"] == "code" and "injected-parameters" not in _tags(c)]


def source(cell: dict[str, Any]) -> str:
    """Text of a cell."""
    return "".join(cell["source"])


def _cells(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [c for c in found if c["cell_type"] and source(c) is not None]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise NotebookError(f"{path}: cannot be read as a notebook ({type(error).__name__}: {error})") from error


def _tags(cell: dict[str, Any]) -> list[str]:
    return list(cell.get("metadata", {}).get("tags", []))


def _parameters(text: str, path: Path) -> dict[str, Parameter]:
    """Read ``name: type = default  # help`` lines (papermill's own reader does not know ``float | None``)."""
    try:
        tree = ast.parse(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise NotebookError(f"{path}: the parameters cell is not Python ({error})") from error
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            raise NotebookError(f"{path}: the parameter {ast.unparse(node)!r} has no type; write `name: type = value`")
        if isinstance(node, ast.AnnAssign):
            name, default = ast.unparse(node.target), ast.unparse(node.value) if node.value else ""
            comment = comments.get(node.end_lineno or node.lineno, "")
            found[name] = Parameter(name, ast.unparse(node.annotation), default, comment)
    return found


def convert(value: object, parameter: Parameter, where: str = "parameter") -> Any:
    """Convert `value` (text from the command line, or a Python value) to the declared type of `parameter`.

    Types: str, int, float, bool, None, list[...], dict, Literal[...], and ``|`` of them. Lists and dicts are YAML.

    Raises:
        NotebookError: the value is not of that type.
    """
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    try:
        return _convert(text, ast.parse(parameter.type, mode="eval").body)
    except (ValueError, yaml.YAMLError) as error:
        raise NotebookError(f"{where} {parameter.name}: {value!r} is not of type {parameter.type}") from error


def _convert(text: str, kind: ast.expr) -> Any:
    """`text` as the type that the annotation `kind` names; ValueError where it is not."""
    match kind:
        case ast.Name("str"):
            return text
        case ast.Name("int"):
            return int(text)
        case ast.Name("float"):
            return float(text)
        case ast.Name("bool"):
            return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
        case ast.Constant(None):
            return None if text.lower() in ("none", "null") else _refuse(text)
        case ast.Name("list" | "dict" as name):
            found = yaml.safe_load(text)
            return found if type(found).__name__ == name else _refuse(text)
        case ast.Subscript(ast.Name("dict")):
            return _convert(text, kind.value)
        case ast.Subscript(ast.Name("list"), item):
            items = _convert(text, kind.value)
            return [_convert(i if isinstance(i, str) else json.dumps(i), item) for i in items]
        case ast.Subscript(ast.Name("Literal"), choices):
            allowed = {str(v): v for v in (ast.literal_eval(c) for c in getattr(choices, "elts", [choices]))}
            return allowed[text] if text in allowed else _refuse(text)
        case ast.BinOp(left, ast.BitOr(), right):
            return _first(text, left, right)
    return _refuse(text)


def _first(text: str, left: ast.expr, right: ast.expr) -> Any:
    """The first type of a union that fits; None before the others and str last, because every text is a str."""
    for kind in sorted((left, right), key=lambda k: {"None": 0, "str": 2}.get(ast.unparse(k), 1)):
        try:
            return _convert(text, kind)
        except ValueError:
            continue
    return _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)
