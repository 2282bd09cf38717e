import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch: tests run on one thread, on every machine alike
os.environ["MPLBACKEND"] = "Agg"  # figures are drawn without a screen

PARAMETERS = """\
profile: str = "lab"  # smoke, lab or paper
seed: int = 0  # seed of every random number
output_dir: str = ""  # folder for record and figures
threads: int | None = None  # CPU threads
"""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("realdata") and not os.environ.get("XAI_DATA_DIR"):
        pytest.skip("XAI_DATA_DIR is not set")


@pytest.fixture
def data_root() -> Path:
    """Folder of the real data sets; the test is skipped where there is none."""
    folder = os.environ.get("XAI_DATA_DIR")
    if not folder:
        pytest.skip("XAI_DATA_DIR is not set")
    return Path(folder)


@pytest.fixture
def closed() -> Iterator[None]:
    """All figures of a test are closed after it."""
    from matplotlib import pyplot as plt  # takes a second, and most tests do not need it

    yield
    plt.close("all")


@pytest.fixture
def drawn(closed: None) -> Iterator[None]:
    """Each figure of a test is drawn after it, without a warning and with no text too small to read."""
    from matplotlib import pyplot as plt
    from matplotlib.text import Text

    yield
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in plt.get_fignums():
            figure = plt.figure(number)
            figure.set_dpi(40)
            figure.canvas.draw()
            texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
            assert min(text.get_fontsize() for text in texts) >= 7


@pytest.fixture(scope="session")
def write_notebook() -> Callable[..., Path]:
    """Write a notebook: a heading, the parameters cell, and code cells."""
    import nbformat  # takes more than a second, and most tests do not need it

    def write(path: Path, *code: str, parameters: str | None = PARAMETERS, title: str = "A tiny study") -> Path:
        cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\nSome prose.")]
        if parameters is not None:
            cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        cells += [nbformat.v4.new_code_cell(source) for source in code]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write
