"""What the files at the root of the repository promise, held against one another."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(r) for r in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
LOCK = (ROOT / "requirements.lock").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def locked() -> dict[str, list[tuple[str, Marker | None]]]:
    """Versions that the lock file pins, with the marker that says where."""
    pins: dict[str, list[tuple[str, Marker | None]]] = {}
    for line in LOCK.splitlines():
        if line and line[0] not in " #":
            requirement = Requirement(line.removesuffix("\\").strip())
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            pins.setdefault(canonicalize_name(requirement.name), []).append((pin.version, requirement.marker))
    return pins


def test_the_lock_has_hashes_and_names_no_index():
    for block in re.split(r"\n(?=\S)", LOCK):
        if block and not block.startswith("#"):
            assert "--hash=sha256:" in block, block.splitlines()[0]
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", LOCK)


@pytest.mark.parametrize("requirement", REQUIRED, ids=str)
def test_the_lock_is_within_the_bounds(requirement):
    operators = {s.operator for s in requirement.specifier}
    assert operators == {">=", "<"}, "a lower and an upper bound"
    pins = locked()[canonicalize_name(requirement.name)]
    assert all(requirement.specifier.contains(version) for version, _ in pins)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_lock_has_one_version_of_each_requirement_everywhere(python, system):
    where = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": system}
    where |= {"platform_machine": "x86_64" if system == "linux" else "arm64", "implementation_name": "cpython"}
    pins = locked()
    for requirement in [*REQUIRED, Requirement("setuptools>=77")]:
        fits = [v for v, m in pins[canonicalize_name(requirement.name)] if m is None or m.evaluate(where)]
        assert len(fits) == 1, f"{requirement.name} on Python {python}, {system}: {fits}"


def test_setuptools_is_locked_because_the_editable_install_runs_without_the_network():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [Requirement(r).name for r in build] == ["setuptools"]
    assert all(Requirement(build[0]).specifier.contains(version) for version, _ in locked()["setuptools"])


def test_the_conda_environment_states_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    assert pip[-1] == "-e ."
    assert sorted(pip[:-1], key=str.lower) == sorted(map(str, as_written()), key=str.lower)
    assert f"python{PROJECT['requires-python']}" in environment


def as_written() -> list[str]:
    return [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def test_declared_pythons_are_the_range_of_the_makefile():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] < (3, 14)" in MAKEFILE
    declared = {c.split(" :: ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c}
    assert declared == {"3.11", "3.12", "3.13"}


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def test_every_make_command_of_the_documents_exists():
    for document in [ROOT / "README.md", *(ROOT / "data").glob("*.md")]:
        code = re.findall(r"```.*?```|`[^`\n]+`", document.read_text(), re.DOTALL)
        for target in re.findall(r"(?:^|[`;&\n])\s*make ([a-z]+)", "\n".join(code)):
            assert target in targets(), f"{document.name}: make {target}"


def test_make_alone_lists_every_target_with_one_line():
    listed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = listed.stdout.splitlines()
    assert {line.split()[1] for line in lines} == targets()
    assert all(len(line.split()) > 3 for line in lines)
    assert {"reproduce", "test", "lab", "lint", "bench", "verify", "clean"} <= targets()


def test_make_says_plainly_when_there_is_no_python(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    made = subprocess.run(["make", "setup", "PYTHON=/no/python"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode != 0
    assert "No Python >= 3.11 and < 3.14 found (tried: /no/python)" in made.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_runs_the_test_command():
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_license_is_the_one_declared():
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 The xai-lib authors\n")


def test_the_readme_shows_the_measured_table_of_methods(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    spec = importlib.util.spec_from_file_location("attribution_methods", ROOT / "bench" / "attribution_methods.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    assert bench.markdown(pd.read_csv(bench.TABLE)) in (ROOT / "README.md").read_text()
