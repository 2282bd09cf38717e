"""What all explorers share: controls and a drawing function, shown live to a person and as one picture to a program.

Usage::

    def draw(image: int, share: float) -> Figure: ...

    Explorer(draw, {"image": dropdown("image", {"first": 0}, 0), "share": slider("share", 0.01, 0.5, 0.01, 0.1)})

As the last line of a notebook's cell an explorer shows itself. Where a person sits at the kernel (`interactive`) it is
controls above a figure, drawn anew whenever one changes. Where a program runs the notebook (papermill, nbval,
nbconvert) it is one small picture with the controls' first values, and no widget is made.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import Image, clear_output, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Control = partial[widgets.Widget]  # makes the widget when it is called; its "value" is the first choice

SWITCH = "XAI_INTERACTIVE"  # 0 or 1: overrides what `interactive` finds
LIVE_DPI = 120
STILL_DPI, STILL_QUALITY = 72, 40  # a JPEG of an image in grey needs a third of a PNG's room


def interactive() -> bool:
    """Whether a person sits at the kernel: then controls are worth making.

    True in kernels that JupyterLab or Notebook started (their server names the session in the environment), in VS Code
    (it puts the notebook's path into the namespace) and in Colab (its module is loaded). papermill, nbval and nbconvert
    leave none of these marks. The environment variable XAI_INTERACTIVE, 0 or 1, decides where it is set.

    Raises:
        ValueError: XAI_INTERACTIVE is neither.
    """
    said = os.environ.get(SWITCH, "")
    if said not in ("", "0", "1"):
        raise ValueError(f"{SWITCH}: {said!r} is not 0 or 1")
    if said:
        return said == "1"
    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return False
    marked = "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
    return marked or "__vsc_ipynb_file__" in shell.user_ns


def dropdown(label: str, options: Mapping[str, Any], value: Any) -> Control:
    """One of several: `options` are the values by the words that are shown."""
    return partial(widgets.Dropdown, options=list(options.items()), value=value, **_look(label))


def checkbox(label: str, value: bool = False) -> Control:
    """Yes or no."""
    return partial(widgets.Checkbox, value=value, indent=False, description=label)


def slider(label: str, low: float, high: float, step: float, value: float, quick: bool = True) -> Control:
    """A number, whole where all four are. `quick`: the figure follows while it is dragged, else afterwards."""
    whole = all(isinstance(n, int) for n in (low, high, step, value))
    kind = widgets.IntSlider if whole else widgets.FloatSlider
    look = _look(label) if whole else {"readout_format": ".3g", **_look(label)}
    return partial(kind, min=low, max=high, step=step, value=value, continuous_update=quick, **look)


def steps(label: str, options: Mapping[str, Any], value: Any) -> Control:
    """A slider over given values, which need not be evenly spaced; drawn when it is let go."""
    return partial(
        widgets.SelectionSlider, options=list(options.items()), value=value, continuous_update=False, **_look(label)
    )


def _look(label: str) -> dict[str, Any]:
    return {"description": label, "style": {"description_width": "7em"}, "layout": {"width": "24em"}}


@dataclass(frozen=True)
class Explorer:
    """A figure that depends on choices.

    `draw` takes a value for each of the `controls`, by name. `title` says in a few words what is seen; it stands in the
    picture's alternative text.
    """

    draw: Callable[..., Figure]
    controls: Mapping[str, Control]
    title: str = ""

    @property
    def first(self) -> dict[str, Any]:
        """The choices at the start."""
        return {name: control.keywords["value"] for name, control in self.controls.items()}

    def still(self) -> Image:
        """The figure of the first choices as one small picture."""
        return Image(data=still_jpeg(self.draw(**self.first)), format="jpeg", alt=self._words(self.first))

    def live(self) -> widgets.Widget:
        """Controls above the figure, which follows them."""
        made = {name: control() for name, control in self.controls.items()}
        busy, shown = widgets.Label("", layout={"height": "1.6em"}), widgets.Output()

        def follow(_: Any = None) -> None:
            busy.value = "computing …"
            try:
                with shown:  # an error is shown where the figure would be
                    choices = {name: widget.value for name, widget in made.items()}
                    data = live_png(self.draw(**choices))
                    clear_output(wait=True)
                    display(Image(data=data, format="png", alt=self._words(choices)))
            finally:
                busy.value = ""

        for widget in made.values():
            widget.observe(follow, names="value")
        follow()
        row = widgets.HBox(list(made.values()), layout={"flex_flow": "row wrap"})
        return widgets.VBox([row, busy, shown])

    def _ipython_display_(self) -> None:
        display(self.live() if interactive() else self.still())

    def _words(self, choices: Mapping[str, Any]) -> str:
        return ", ".join([self.title, *(f"{name} {value}" for name, value in choices.items())])


def live_png(figure: Figure) -> bytes:
    """The figure as it is looked at; it is closed."""
    figure.savefig(file := BytesIO(), format="png", dpi=LIVE_DPI)
    plt.close(figure)  # else the notebook would show it a second time
    return file.getvalue()


def still_jpeg(figure: Figure) -> bytes:
    """The figure as it is stored in a notebook, about 10 kB; it is closed."""
    look = {"quality": STILL_QUALITY, "optimize": True, "progressive": True}
    figure.savefig(file := BytesIO(), format="jpeg", dpi=STILL_DPI, pil_kwargs=look)
    plt.close(figure)
    return file.getvalue()
