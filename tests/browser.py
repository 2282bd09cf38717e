"""A headless Chromium for tests that need a real browser; the test is skipped where there is none."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = (
    "--headless=new --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)


@contextmanager
def chromium(size: tuple[int, int] = (1280, 900), dark: bool = False) -> Iterator[Any]:
    """A selenium driver of headless Chromium, with a viewport of `size` in CSS pixels; closed at the end.

    The test is skipped, with the reason, where selenium, Chromium or its driver is missing: nothing is downloaded.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium or no chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS.split(), *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            width, height = size  # a window cannot be narrower than 500 pixels, an emulated screen can
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            found.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            found.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
            yield found
        finally:
            found.quit()


def console_errors(driver: Any) -> list[str]:
    """What the browser's console has reported as an error since the last call (a missing file is one as well)."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
