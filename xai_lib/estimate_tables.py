"""Tables whose cells are estimates: as text to read, and as the plain rows of a record.

Usage::

    as_text(table)                                  # "34 [28, 41]" in per cent
    rows = as_rows(table)                           # value, low and high of each estimate: JSON
    table = from_rows(rows)
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from xai_lib.results import Estimate

HITS = ("mass", "ring", "below", "any")  # keep this order in a table read from a record, whose keys are sorted


def as_text(table: pd.DataFrame, percent: bool = True) -> pd.DataFrame:
    """A table of estimates as text to read: ``34 [28, 41]`` in per cent."""

    def cell(value: object) -> object:
        if not isinstance(value, Estimate):
            return value
        scale = 100 if percent else 1
        digits = 0 if percent else 3
        text = f"{value.value * scale:.{digits}f}"
        if value.low is None or value.high is None:
            return text
        return f"{text} [{value.low * scale:.{digits}f}, {value.high * scale:.{digits}f}]"

    return table.map(cell)


def as_rows(table: pd.DataFrame) -> list[dict[str, object]]:
    """A table of estimates as plain rows for a record: each estimate becomes value, low and high."""
    out = []
    for row in table.to_dict("records"):
        flat: dict[str, object] = {}
        for key, value in row.items():
            if isinstance(value, Estimate):
                flat |= {str(key): value.value, f"{key}_low": value.low, f"{key}_high": value.high}
            else:
                flat[str(key)] = value
        out.append(flat)
    return out


def from_rows(rows: Sequence[Mapping[str, object]], first: Sequence[str] = ("row", "network", "class")) -> pd.DataFrame:
    """The inverse of `as_rows`, for tables read from a record; the columns named in `first` lead."""
    out = []
    for row in rows:
        names = [n for n in row if not n.endswith(("_low", "_high"))]
        ordered = [n for n in (*first, *HITS) if n in names]
        full: dict[str, object] = {}
        for name in (*ordered, *(n for n in names if n not in ordered)):
            value, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
            estimate = f"{name}_low" in row and value is not None
            full[name] = Estimate(value, low, high, "from a record") if estimate else value  # type: ignore[arg-type]
        out.append(full)
    return pd.DataFrame(out)
