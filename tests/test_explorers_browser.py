"""An explorer in JupyterLab, in a real browser: a slider is moved, and the figure changes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser import chromium, console_errors

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds for a step: the imports alone take minutes on a machine that is busy
CODE = """\
import torch
from xai_lib import explorers

layers = torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 3)

class Ensemble:
    members = [torch.nn.Sequential(*layers).requires_grad_(False).eval()]

    def normalise(self, images):
        return torch.from_numpy(images)[:, None]

image = torch.rand(16, 16).numpy()
explorers.omig_path({"toy": (Ensemble(), image)}, c=1.0, length=2)"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address and token of a JupyterLab that serves one notebook, ended together with its kernels."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    (tmp_path / "notebooks").mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)], metadata=kernel)
    nbformat.write(notebook, tmp_path / "notebooks" / "explorer.ipynb")
    quiet = tmp_path / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    folders = {f"JUPYTER_{kind.upper()}_DIR": str(tmp_path / kind) for kind in ("config", "data", "runtime")}
    folders |= {f"JUPYTERLAB_{kind.upper()}_DIR": str(tmp_path / kind) for kind in ("settings", "workspaces")}
    folders |= {"HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    command += [f"--ServerApp.root_dir={tmp_path / 'notebooks'}", *(["--allow-root"] if os.geteuid() == 0 else [])]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JPY_", "XAI_", "JUPYTER"))}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env=inherited | folders, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    try:
        facts = until(lambda: running(tmp_path, process))
        yield facts["url"], facts["token"]
    finally:
        process.terminate()  # the server ends its kernels
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def running(folder: Path, process: "subprocess.Popen[bytes]") -> dict[str, Any] | None:
    """What the server says of itself once it listens."""
    if process.poll() is not None:
        pytest.fail(f"JupyterLab ended with {process.returncode}: {(folder / 'server.log').read_text()[-2000:]}")
    files = list((folder / "runtime").glob("jpserver-*.json"))
    return json.loads(files[0].read_text()) if files and files[0].stat().st_size else None


def until(found: Callable[[], Any]) -> Any:
    """Its first result that is something; an error after `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.1)
    pytest.fail(f"nothing after {PATIENCE} s: {found.__name__}")


@pytest.mark.slow
def test_a_slider_moves_the_figure(server: tuple[str, str], tmp_path: Path) -> None:
    address, token = server
    with chromium() as driver:
        from selenium.webdriver.common.keys import Keys

        def one(selector: str, text: str = "") -> Any:
            shown = driver.find_elements("css selector", selector)
            return next((e for e in shown if e.is_displayed() and (not text or e.text.strip() == text)), None)

        def picture() -> str:
            script = "return document.querySelector('.jp-OutputArea img[src^=\"data:image/png\"]')?.src"
            return driver.execute_script(script) or ""

        def figure() -> str:
            return picture()

        def other_figure() -> str:
            now = picture()
            return now if now != before else ""

        driver.get(f"{address}lab/tree/explorer.ipynb?token={token}")
        until(lambda: one(".jp-CodeCell"))
        until(lambda: one(".jp-KernelName", "Python 3 (ipykernel)"))  # before that it says No Kernel, and would ask
        until(lambda: one(".jp-Notebook-ExecutionIndicator[data-status='idle']"))
        until(lambda: one(".lm-MenuBar-itemLabel", "Run")).click()
        until(lambda: one(".lm-Menu-itemLabel", "Run All Cells")).click()
        try:
            before = until(figure)
            handles = driver.find_elements("css selector", ".widget-slider .noUi-handle")
            assert len(handles) == 2  # c and L
            handles[0].send_keys(Keys.ARROW_RIGHT)
            after = until(other_figure)
            assert len(after) > 5000
            assert "3" in [e.text for e in driver.find_elements("css selector", ".widget-readout")]
        finally:
            driver.save_screenshot(str(tmp_path / "lab.png"))
        hosts = driver.execute_script("return performance.getEntriesByType('resource').map(e => new URL(e.name).host)")
        assert {host for host in hosts if host} == {address.split("/")[2]}  # no other machine was asked
        assert console_errors(driver) == []
