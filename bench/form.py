"""The common form of a measurement; `all.py` makes one table of those of all scripts."""

from typing import Any


def line(
    study: str,
    what: str,
    size: str,
    ours: float,
    usual: float | None,
    unit: str,
    tool: str,
    more: bool = False,
    efficiency: float | None = None,
    memory_mib: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One line of the table.

    Args:
        study: number of the study that uses it; "00" for the library as a whole.
        what: what was measured.
        size: of the problem.
        ours: our figure, in `unit`.
        usual: that of the usual way, named by `tool`; None where there is no other.
        unit: of both.
        tool: what people would use, or the plain way to write it.
        more: whether a larger figure is the better one (images a second) or a smaller one (seconds, an error).
        efficiency: time of the network passes alone over the time of the whole.
        memory_mib: what our way takes above the loaded process, where the script measures it.
        note: what else must be known to read the figures.
    """
    ratio = None
    if usual is not None and ours and usual:
        ratio = ours / usual if more else usual / ours
    return {
        "study": study, "what": what, "size": size, "unit": unit, "ours": ours, "usual": usual, "tool": tool,
        "ratio": ratio, "efficiency": efficiency, "memory_mib": memory_mib, "note": note,
    }  # fmt: skip
