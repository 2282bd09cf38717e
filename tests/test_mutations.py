"""Would the tests notice? Wrong methods (`mutations.py`) are planted in a copy of the library, and tests must fail.

What it shows: for each of these faults there is a test that fails with a wrong number, not with an error, and that
passes without the fault (the ordinary run of the same test). All are planted in one copy, each in a file of its own,
so that one process finds them all; what a test needs of other files is then faulty too. That each fails by itself was
tried once, by hand: ``python tests/test_mutations.py`` does it again, one process per fault.

What it does not show: that other faults would be noticed. The list was written by people who knew the tests.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent


def failures(planted: Sequence[Mutation], folder: Path) -> dict[str, str]:
    """Plant faults in a copy of the library in `folder`; what each of their tests says: its failure, or "passed"."""
    for name in ("xai_lib", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for mutation in planted:
        file = folder / mutation.file
        file.write_text(file.read_text(encoding="utf-8").replace(mutation.old, mutation.new), encoding="utf-8")
    command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={folder / 'found.xml'}"]
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [*command, *(mutation.caught_by for mutation in planted)],
        cwd=folder,
        env=settings | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]  # 1: tests ran and some failed
    found = {}
    for case in ElementTree.parse(folder / "found.xml").iter("testcase"):
        said = [*case.iter("failure"), *case.iter("error")]
        file = case.attrib["classname"].replace(".", "/") + ".py"
        found[f"{file}::{case.attrib['name']}"] = said[0].attrib["message"] if said else "passed"
    return found


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.what.split(":")[0])
def test_a_fault_changes_one_place(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1 and mutation.new != mutation.old
    compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")


def test_there_are_ten_faults_each_in_a_file_and_before_a_test_of_its_own():
    assert len(MUTATIONS) >= 10
    assert len({m.file for m in MUTATIONS}) == len({m.caught_by for m in MUTATIONS}) == len(MUTATIONS)


def is_wrong_number(message: str) -> bool:
    """Whether a test failed because something that it asserts does not hold."""
    return message.startswith(("assert ", "AssertionError"))


@pytest.mark.slow
def test_every_planted_fault_is_caught(tmp_path):
    found = failures(MUTATIONS, tmp_path)
    missed = {m.what: found.get(m.caught_by) for m in MUTATIONS if not is_wrong_number(found.get(m.caught_by, ""))}
    assert missed == {} and len(found) == len(MUTATIONS)


if __name__ == "__main__":
    for one in MUTATIONS:
        with tempfile.TemporaryDirectory() as place:
            said = failures([one], Path(place))[one.caught_by]
            sys.stdout.write(f"{'caught' if is_wrong_number(said) else 'MISSED'}  {one.what}: {said.splitlines()[0]}\n")
