"""The order of the house: a module imports only from its own layer or an earlier one, and no layer has a cycle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "xai_lib"

LAYERS = [
    {"config", "results", "statistics", "paired_tests", "estimate_tables", "records", "claims"},
    {"data"},
    {
        "mobilenet_v1",
        "models",
        "checkpoints",
        "augmentations",
        "losses",
        "schedules",
        "training_state",
        "training",
        "stored_tables",
        "stored_pictures",
    },
    {"attribution", "localization", "box_scores", "boxes"},
    {
        "network_groups",
        "knowledge_transfer",
        "glcm",
        "patch_replacement",
        "inpainting",
        "deletion_region",
        "perturbation_maps",
        "perturbation_masks",
        "cdmam",
        "iqa_network",
        "omig",
        "omig_maps",
        "omig_upsampling",
    },
    {"studies"},
    {"plotting"},
    {
        "notebooks",
        "batch",
        "verify",
        "report",
        "sweep",
        "sweep_grid",
        "sweep_summary",
        "sweep_task",
        "map_cases",
        "map_batches",
        "map_store",
    }
    | {"explain_file", "explorers", "cli", "__main__"},
]


def modules(package: Path) -> dict[str, Path]:
    """Dotted name below the package -> file; a folder's ``__init__`` has the folder's name, the root's is ''."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path], root: str) -> set[str]:
    """Modules of the package that `file` imports, anywhere in it, also inside functions and by relative imports."""
    package = name.split(".") if file.name == "__init__.py" and name else name.split(".")[:-1]
    wanted: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - (node.level - 1)]
                base = ".".join([root, *above, *([base] if base else [])])
            wanted |= {f"{base}.{alias.name}" for alias in node.names}
    inside = {w.removeprefix(root).removeprefix(".") for w in wanted if w == root or w.startswith(root + ".")}
    return {_nearest(target, known) for target in inside} - {name}


def _nearest(target: str, known: dict[str, Path]) -> str:
    """The module that `target` names, or of which it is an attribute."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target


def faults(package: Path, layers: list[set[str]]) -> list[str]:
    """What breaks the order, in words; empty for a house in order."""
    known = modules(package)
    level = {name: i for i, layer in enumerate(layers, 1) for name in layer} | {"": 0}
    level = {name: level.get(name.split(".")[0], -1) for name in known}
    graph = {name: imports(name, file, known, package.name) for name, file in known.items()}
    found = [f"{name} has no layer" for name in known if level[name] < 0]
    for name, targets in graph.items():
        if level[name] >= 0:
            found += [f"{name} imports {t} of a later layer" for t in sorted(targets) if level[t] > level[name]]
    return found + [f"cycle: {' -> '.join(path)}" for path in _cycles(graph)]


def _cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One path for every module from which a depth-first walk meets a module that is still open."""
    done: set[str] = set()
    found: list[list[str]] = []

    def walk(path: list[str]) -> None:
        for target in sorted(graph[path[-1]]):
            if target in path:
                found.append([*path[path.index(target) :], target])
            elif target not in done:
                walk([*path, target])
        done.add(path[-1])

    for name in graph:
        if name not in done:
            walk([name])
    return found


def test_the_house_is_in_order():
    assert faults(PACKAGE, LAYERS) == []


def test_the_walk_sees_the_package():
    known = modules(PACKAGE)
    assert {"", "config", "records", "data", "data.busi", "cli"} <= set(known)
    assert imports("records", known["records"], known, "xai_lib") == {"config", "results"}
    assert "data.busi" in imports("data", known["data"], known, "xai_lib")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"low.py": "import house.high"}, ["low imports high of a later layer"]),
        ({"low.py": "from house import high"}, ["low imports high of a later layer"]),
        ({"low.py": "from house.high import thing"}, ["low imports high of a later layer"]),
        ({"low.py": "def f():\n    from . import high"}, ["low imports high of a later layer"]),
        ({"pack/inner.py": "from ..high import thing"}, ["pack.inner imports high of a later layer"]),
        ({"pack/__init__.py": "from ..high import thing"}, ["pack imports high of a later layer"]),
        ({"__init__.py": "from house import low"}, [" imports low of a later layer"]),
        ({"low.py": "import house.also", "also.py": "import house.low"}, ["cycle: also -> low -> also"]),
        (
            {"low.py": "def f():\n    import house.pack.inner", "pack/inner.py": "import house.low"},
            ["cycle: low -> pack.inner -> low"],
        ),
        ({"stray.py": ""}, ["stray has no layer"]),
        ({"stray/inner.py": ""}, ["stray.inner has no layer"]),
        (
            {"high.py": "import os\nfrom house import low, pack\nfrom house.pack.inner import x", "pack/inner.py": ""},
            [],
        ),
        ({"pack/__init__.py": "from house.pack import inner", "pack/inner.py": "x = 1"}, []),
        ({"low.py": "import household.high"}, []),
    ],
)
def test_the_test_finds_what_is_wrong(tmp_path, files, expected):
    house = tmp_path / "house"
    for name, text in ({"__init__.py": "", "low.py": "", "high.py": "", "pack/__init__.py": ""} | files).items():
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(text)
    assert faults(house, [{"low", "also", "pack"}, {"high"}]) == expected
