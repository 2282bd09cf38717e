import json
import math

import pytest

from xai_lib import notebooks
from xai_lib.notebooks import NotebookError, Parameter, convert, find_notebook, read_notebook


@pytest.fixture
def folder(tmp_path, monkeypatch, write_notebook):
    for name in ("00_start_here", "03_ultrasound_cam", "12_last", "12_later"):
        write_notebook(tmp_path / f"{name}.ipynb")
    (tmp_path / "notes.ipynb").write_text("{}")
    monkeypatch.setattr(notebooks, "notebooks_dir", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("00", "00_start_here"),
        ("0", "00_start_here"),
        ("3", "03_ultrasound_cam"),
        ("03_", "03_ultrasound_cam"),
        ("12_last", "12_last"),
        ("notebooks/12_last.ipynb", "12_last"),
    ],
)
def test_a_notebook_is_found_by_number_start_or_name(folder, name, stem):
    assert find_notebook(name) == folder / f"{stem}.ipynb"


def test_a_path_is_taken_as_it_is(folder, tmp_path, write_notebook):
    path = write_notebook(tmp_path / "mine.ipynb")
    assert find_notebook(path) == path


def test_ambiguous_and_unknown_notebooks_list_what_there_is(folder):
    with pytest.raises(NotebookError, match="'12' fits several: 12_last, 12_later"):
        find_notebook("12")
    with pytest.raises(NotebookError, match=r"'07' not found; there are 00_start_here, 03_.*, 12_last, 12_later"):
        find_notebook("07")
    with pytest.raises(NotebookError, match="not found"):
        find_notebook("")


def test_only_numbered_notebooks_are_listed(folder):
    assert [p.stem for p in notebooks.list_notebooks()] == ["00_start_here", "03_ultrasound_cam", "12_last", "12_later"]


def test_an_empty_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "notebooks_dir", lambda: tmp_path)
    with pytest.raises(NotebookError, match="none in"):
        find_notebook("03")


def test_title_and_typed_parameters_are_read(tmp_path, write_notebook):
    source = 'from typing import Literal\nseed: int = 7  # of everything\nrate: float | None = None\nname: str = "a#b"'
    found = read_notebook(write_notebook(tmp_path / "a.ipynb", parameters=source, title="Study 3"))
    assert found.title == "Study 3"
    assert list(found.parameters.values()) == [
        Parameter("seed", "int", "7", "of everything"),
        Parameter("rate", "float | None", "None", ""),
        Parameter("name", "str", "'a#b'", ""),
    ]


def test_the_hash_is_of_the_code_only(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "a.ipynb", "x = 1")
    before = read_notebook(path).sha256
    content = json.loads(path.read_text())
    content["cells"][0]["source"] = "# Another title"
    content["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    injected = {"cell_type": "code", "source": "seed = 1", "metadata": {"tags": ["injected-parameters"]}, "outputs": []}
    content["cells"].insert(2, injected)
    path.write_text(json.dumps(content))
    assert read_notebook(path).sha256 == before
    content["cells"][3]["source"] = ["x = 1\n", "y = 2"]
    path.write_text(json.dumps(content))
    assert read_notebook(path).sha256 != before
    assert read_notebook(write_notebook(tmp_path / "b.ipynb", "x = 1\ny = 2")).sha256 == read_notebook(path).sha256


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "0 code cells are tagged 'parameters', expected 1"),
        ("seed = 1", "'seed = 1' has no type"),
        ("seed: int = (", "not Python"),
    ],
)
def test_a_parameters_cell_that_cannot_be_used_is_an_error(tmp_path, write_notebook, parameters, message):
    path = write_notebook(tmp_path / "a.ipynb", parameters=parameters)
    with pytest.raises(NotebookError, match=message) as raised:
        read_notebook(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"cells": 3}', '{"cells": [1]}', '{"cells": [{}]}'])
def test_a_file_that_is_no_notebook_is_an_error(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(NotebookError, match="cannot be read as a notebook"):
        read_notebook(tmp_path / "a.ipynb")


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        ("int", "7", 7),
        ("int", -3, -3),
        ("float", "1e-3", 0.001),
        ("float", 2, 2.0),
        ("bool", "True", True),
        ("bool", "false", False),
        ("bool", False, False),
        ("str", "03", "03"),
        ("str", "None", "None"),
        ("str | None", "None", None),
        ("str | None", "x", "x"),
        ("None | int", None, None),
        ("int | float", "2", 2),
        ("int | float", "2.5", 2.5),
        ("str | int | None", "2", 2),
        ("list", "[1, a]", [1, "a"]),
        ("list[float]", "[1, 1e-3]", [1.0, 0.001]),
        ("list[str]", ["a", "b"], ["a", "b"]),
        ("list[list[int]]", "[[1, 2], []]", [[1, 2], []]),
        ("dict[str, float]", "{a: 0.5}", {"a": 0.5}),
        ("Literal['a', 2]", "2", 2),
        ("Literal['a'] | None", "none", None),
    ],
)
def test_values_become_the_declared_type(kind, value, result):
    found = convert(value, Parameter("p", kind, "", ""))
    assert found == result and type(found) is type(result)


def test_nan_is_a_float():
    assert math.isnan(convert(math.nan, Parameter("p", "float", "", "")))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", "abc"),
        ("int", "1.5"),
        ("int", True),
        ("int", None),
        ("float", "fast"),
        ("bool", "1"),
        ("list[int]", "[1, 2.5]"),
        ("list[int]", "3"),
        ("list", "[1"),
        ("dict", "[1]"),
        ("Literal['a', 'b']", "c"),
        ("float | None", "x"),
        ("Path", "x"),
    ],
)
def test_values_of_another_type_are_errors_that_name_the_parameter(kind, value):
    with pytest.raises(NotebookError, match=r"03_x: parameter rate: .* is not of type"):
        convert(value, Parameter("rate", kind, "", ""), "03_x: parameter")
