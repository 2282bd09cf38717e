"""What a committed notebook must be: small, one typed cell tagged `parameters`, run in order, its outputs kept.

Usage::

    .venv/bin/python .ci/check_notebooks.py [NOTEBOOK ...]      # without a name: all numbered notebooks
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xai_lib.notebooks import NotebookError, code_cells, list_notebooks, read_notebook

LIMIT_KIB = 400


def faults(path: Path) -> list[str]:
    """What is wrong with the notebook at `path`, in words; empty for a good one."""
    try:
        read_notebook(path)
    except NotebookError as error:
        return [str(error)]
    found = []
    kib = path.stat().st_size / 1024
    if kib > LIMIT_KIB:
        found.append(f"{path}: {kib:.1f} KiB, expected at most {LIMIT_KIB}; smaller figures, or fewer")
    cells = code_cells(path)
    if not any(cell["outputs"] for cell in cells):
        found.append(f"{path}: has no outputs; they are committed, so that it can be read without being run")
    elif [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append(f"{path}: its cells were not run once, in order, from a clean kernel, or papermill has added one")
    if any(output["output_type"] == "error" for cell in cells for output in cell["outputs"]):
        found.append(f"{path}: a cell ended in an error")
    return found


def main(arguments: list[str]) -> int:
    """Exit code: 1 if a notebook has a fault, which is named on stderr."""
    lines = [line for path in ([*map(Path, arguments)] or list_notebooks()) for line in faults(path)]
    sys.stderr.writelines(f"{line}\n" for line in lines)
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
