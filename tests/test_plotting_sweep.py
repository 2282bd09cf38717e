import matplotlib

matplotlib.use("Agg")

import warnings

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from xai_lib.plotting import sweep_figure

RUNS = pd.DataFrame(
    [
        {"cell": cell, "figure": figure, "value": 0.1 * k + 0.01 * seed, "baselines": {"chance": 0.5}}
        for k, cell in enumerate("abc")
        for figure in ("auc", "hits")
        for seed in range(3)
    ]
)
SUMMARY = pd.DataFrame(
    [
        {
            "cell": cell,
            "label": f"03 beta={k}",
            "notebook": "03_tiny",
            "figure": figure,
            "unit": "area",
            "mean": 0.1 * k,
        }
        | {"low": 0.1 * k - 0.1, "high": 0.1 * k + 0.1, "within_low": 0.0, "within_high": 0.4}
        for k, cell in enumerate("abc")
        for figure in ("auc", "hits")
    ]
)


@pytest.fixture(autouse=True)
def drawn():
    """Each figure is drawn, without a warning and with no text too small to read."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in plt.get_fignums():
            figure = plt.figure(number)
            figure.set_dpi(40)
            figure.canvas.draw()
            texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip()]
            assert min(text.get_fontsize() for text in texts) >= 7
    plt.close("all")


def test_a_panel_per_figure_and_a_row_per_cell():
    first, second = sweep_figure(RUNS, SUMMARY).axes
    assert [first.get_title(), second.get_title()] == ["03 auc", "03 hits"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["03 beta=0", "03 beta=1", "03 beta=2"]
    low, high = first.get_ylim()
    assert low > high  # the first cell is on top


def test_the_marks_are_where_the_tables_say():
    axes = sweep_figure(RUNS, SUMMARY).axes[0]
    dots, mean = axes.lines[2], axes.lines[3]  # of the second cell
    assert list(dots.get_xdata()) == pytest.approx([0.1, 0.11, 0.12]) and list(mean.get_xdata()) == [0.1]
    level, within, over = axes.collections[3:6]
    assert level.get_segments()[0][:, 0].tolist() == [0.5, 0.5]
    assert within.get_segments()[0][:, 0].tolist() == [0.0, 0.4]
    assert over.get_segments()[0][:, 0].tolist() == pytest.approx([0.0, 0.2])


def test_missing_intervals_leave_the_dots():
    one = SUMMARY.assign(low=float("nan"), high=float("nan"), within_low=float("nan"), within_high=float("nan"))
    assert len(sweep_figure(RUNS, one).axes) == 2


def test_many_figures_of_two_notebooks_have_rows_of_panels():
    other = [SUMMARY.assign(notebook=f"0{k}_other", figure=f"figure {k}") for k in range(4, 8)]
    figure = sweep_figure(RUNS, pd.concat([SUMMARY, *other]), columns=2)
    assert len([axes for axes in figure.axes if axes.axison]) == 6


def test_tables_without_rows_or_columns_are_refused():
    with pytest.raises(ValueError, match="runs: is empty"):
        sweep_figure(RUNS[:0], SUMMARY)
    with pytest.raises(ValueError, match="summary: lacks mean"):
        sweep_figure(RUNS, SUMMARY.drop(columns="mean"))


def test_the_key_fits_into_a_figure_of_one_panel():
    figure = sweep_figure(RUNS, SUMMARY[SUMMARY["figure"] == "auc"])
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert figure.axes[0].get_xlabel() == "area"
