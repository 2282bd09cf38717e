"""The files for people: what they name exists, and what they say twice they say alike."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from xai_lib import data

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def script(name: str):
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = script(".ci/check_notebooks.py")

# ------------------------------------------------------------------------------------------------ documents


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_to_a_file_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+)", text(name)):
        assert target.startswith("http") or (ROOT / target).exists(), f"{name}: {target}"


def test_contributing_names_files_and_targets_that_exist():
    code = re.findall(r"`([^`\n]+)`", text("CONTRIBUTING.md"))
    roots = ("xai_lib/", "tests/", "data/", "bench/", ".ci/")
    paths = [c for c in code if c.startswith(roots) and not re.search(r"[<>*\s]", c)]
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", text("CONTRIBUTING.md"))) <= targets | {"the"}


def test_the_changelog_has_the_version_of_the_project():
    assert re.findall(r"^## \[([\d.]+)\]", text("CHANGELOG.md"), re.MULTILINE)[0] == PROJECT["version"]


def test_every_data_set_has_a_row_in_the_data_readme():
    rows = re.findall(r"^\| `(\w+)` \|", text("data/README.md"), re.MULTILINE)
    assert set(data.available()) - set(rows) == set()


# ------------------------------------------------------------------------------------------------ citation


def test_the_citation_names_the_five_papers():
    cff = yaml.safe_load(text("CITATION.cff"))
    assert cff["cff-version"] == "1.2.0" and cff["message"] and cff["title"] and cff["type"] == "software"
    assert cff["authors"] == [{"name": "xai-lib contributors"}]
    assert cff["version"] == PROJECT["version"] and cff["license"] == PROJECT["license"]
    families = [paper["authors"][0]["family-names"] for paper in cff["references"]]
    years = [paper["year"] for paper in cff["references"]]
    cited = {claim["paper"] for claim in yaml.safe_load(text("data/claims.yml"))}
    assert {f"{f.replace(' ', '-')} {y}" for f, y in zip(families, years, strict=True)} == cited
    assert all(paper["title"] and paper["type"] for paper in cff["references"])


def test_the_dois_of_the_readme_are_those_of_the_citation():
    cited = {paper["doi"] for paper in yaml.safe_load(text("CITATION.cff"))["references"] if "doi" in paper}
    shown = set(re.findall(r"doi:(10\.\d{4,}/[^\s|,)]+)", text("README.md")))
    assert len(shown) >= 2 and shown <= cited


# ------------------------------------------------------------------------------------------------ containers


def test_the_dockerfile_installs_as_make_does_and_runs_as_a_user():
    lines = text("Dockerfile").replace("\\\n", "").splitlines()
    steps = [line for line in lines if line and not line.startswith("#")]
    for source in [
        part for s in steps if s.startswith("COPY") for part in s.split()[1:-1] if not part.startswith("--")
    ]:
        assert (ROOT / source).exists(), source
    without = lambda s: re.sub(r"\$\(BIN\)|\.venv/bin| --no-cache-dir|\s+&&", "", s).split()  # noqa: E731
    ours = [" ".join(without(s)) for s in steps]
    wanted = [line for line in text("Makefile").splitlines() if "-m pip install" in line]
    assert len(wanted) == 2
    for line in wanted:
        assert any(" ".join(without(line.strip().removesuffix("; \\"))) in step for step in ours), line
    users = [i for i, s in enumerate(steps) if s.startswith("USER")]
    assert users and steps[users[-1]] != "USER root" and users[0] < min(i for i, s in enumerate(steps) if "pip" in s)
    base = re.fullmatch(r"FROM python:(3\.\d+)-slim", steps[0])
    assert base and base[1] in PYTHONS
    command = json.loads(steps[-1].removeprefix("CMD "))
    assert command[:2] == ["jupyter", "lab"] and "--port=8888" in command and "EXPOSE 8888" in steps
    assert "docker run --rm -p 127.0.0.1:8888:8888" in text("Dockerfile")
    assert not any("token" in part or "password" in part for part in command)


def test_the_image_leaves_out_what_git_leaves_out():
    patterns = {line.removeprefix("**/") for line in text(".dockerignore").splitlines()}
    assert {".git/", *text(".gitignore").split()} <= patterns


def test_binder_installs_the_lock_as_make_does():
    assert text(".binder/runtime.txt").strip().removeprefix("python-") in PYTHONS
    assert (ROOT / ".binder" / "postBuild").stat().st_mode & 0o111
    steps = re.findall(r"^\$install (.+)", text(".binder/postBuild"), re.MULTILINE)
    assert len(steps) == 2
    assert all(step in text("Makefile") for step in steps)


# ------------------------------------------------------------------------------------------------ hooks and workflows


def test_the_hooks_run_what_is_locked_and_keep_outputs():
    config = yaml.safe_load(text(".pre-commit-config.yaml"))
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff", "ruff-format", "notebooks"}
    for hook in repository["hooks"]:
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_has_few_rights_an_end_and_pinned_actions(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert "run" in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step


def test_continuous_integration_runs_the_same_script_on_every_declared_python():
    workflow = yaml.safe_load(text(".github/workflows/ci.yml"))
    assert {"push", "pull_request"} == set(workflow[True])  # YAML reads the key `on` as true
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    (step,) = [s for s in job["steps"] if "run" in s]
    assert step["run"] == ".ci/run" and step["env"]["PYTHON"] == "python${{ matrix.python }}"


def test_the_nightly_run_reproduces_verifies_and_keeps_the_report():
    workflow = yaml.safe_load(text(".github/workflows/nightly.yml"))
    assert "schedule" in workflow[True]
    job = workflow["jobs"]["reproduce"]
    commands = [s["run"].removeprefix(".venv/bin/") for s in job["steps"] if "run" in s]
    assert commands == ["make setup", "xai-lib run all --profile lab", "xai-lib verify", "xai-lib report"]
    assert job["env"]["PYTHON"].removeprefix("python") in PYTHONS
    assert job["steps"][-1]["uses"].startswith("actions/upload-artifact@")


# ------------------------------------------------------------------------------------------------ notebooks


def test_the_committed_notebooks_are_as_they_should_be():
    assert CHECK.main([]) == 0


@pytest.fixture
def notebook(tmp_path, write_notebook):
    """A notebook of two cells that were run; `change` edits it."""

    def make(change=lambda cells: None, **options):
        path = write_notebook(tmp_path / "07_new.ipynb", "1 + 1", **options)
        content = json.loads(path.read_text())
        code = [c for c in content["cells"] if c["cell_type"] == "code"]
        for count, cell in enumerate(code, 1):
            cell["execution_count"] = count
        code[-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "2"}]
        change(code)
        path.write_text(json.dumps(content))
        return path

    return make


def fail(cells):
    cells[-1]["outputs"].append({"output_type": "error", "ename": "E", "evalue": "", "traceback": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[-1]["outputs"].clear(), "has no outputs"),
        (lambda cells: cells[-1].update(execution_count=7), "not run once, in order"),
        (lambda cells: cells[0]["metadata"]["tags"].clear(), "0 code cells are tagged 'parameters'"),
        (lambda cells: cells[-1]["outputs"][0].update(text="x" * 410_000), "KiB, expected at most 400"),
        (fail, "ended in an error"),
    ],
)
def test_a_fault_of_a_notebook_is_named(notebook, change, message, capsys):
    assert CHECK.faults(notebook()) == []
    path = notebook(change)
    assert CHECK.main([str(path)]) == 1
    said = capsys.readouterr().err
    assert message in said and str(path) in said
