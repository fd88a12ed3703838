"""Chromium without a screen and without a network, where it is installed; tests skip with the reason elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

COMMON = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-extensions", "--no-first-run",
    "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1400,1100",
)  # fmt: skip
SOFTWARE_GL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_GL = ("--disable-gpu", "--disable-3d-apis")


class Page:
    """A page of ours in a browser: wait for it, drive it, read its pixels."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def open(self, path, *, width=1400, height=1100, phone=False):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
        )
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(path.as_uri())
        end = time.monotonic() + 60
        while self.run("return document.documentElement.dataset.ready || ''") == "":
            assert time.monotonic() < end, "the page was not ready within a minute"
            time.sleep(0.05)
        assert self.run("return document.documentElement.dataset.ready") == "yes"
        return self

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def settle(self):
        """Until what was asked for is drawn."""
        self.driver.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => setTimeout(done, 0));")

    def element(self, name):
        return self.driver.find_element("id", name)

    def pixel(self, name, x, y):
        """(red, green, blue) at a part of the width and height of a canvas, drawn in 2D or in 3D."""
        self.settle()
        script = """
            const source = document.getElementById(arguments[0]), copy = document.createElement("canvas");
            copy.width = source.width; copy.height = source.height;
            const context = copy.getContext("2d");
            context.drawImage(source, 0, 0);
            const at = (part, size) => Math.min(size - 1, Math.floor(part * size));
            const x = at(arguments[1], copy.width), y = at(arguments[2], copy.height);
            return Array.from(context.getImageData(x, y, 1, 1).data);
        """
        return tuple(self.run(script, name, x, y)[:3])

    def pixels(self, name):
        """Rows of (red, green, blue) of a whole canvas, thinned to every fourth pixel, as nested lists."""
        self.settle()
        script = """
            const source = document.getElementById(arguments[0]), copy = document.createElement("canvas");
            copy.width = Math.floor(source.width / 4); copy.height = Math.floor(source.height / 4);
            const context = copy.getContext("2d");
            context.imageSmoothingEnabled = false;
            context.drawImage(source, 0, 0, copy.width, copy.height);
            return [copy.width, copy.height, Array.from(context.getImageData(0, 0, copy.width, copy.height).data)];
        """
        return self.run(script, name)

    def press(self, name, *keys):
        self.element(name).send_keys(*keys)
        self.settle()

    def cursor(self):
        return self.run("return pneumoscope.state.cursor")

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """Addresses asked for since the page was opened."""
        import json

        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def _start(*options: str) -> Iterator[Page]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no Chromium with chromedriver on the path; browser tests need both")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed; browser tests need it")
    from selenium.webdriver.chrome.service import Service

    settings = webdriver.ChromeOptions()
    settings.binary_location = chromium
    for option in (*COMMON, *options):
        settings.add_argument(option)
    settings.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=settings, service=Service(chromedriver))
    try:
        yield Page(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def browser() -> Iterator[Page]:
    """With WebGL2, in software."""
    yield from _start(*SOFTWARE_GL)


@pytest.fixture(scope="session")
def browser_without_gl() -> Iterator[Page]:
    """With no WebGL at all."""
    yield from _start(*NO_GL)


@pytest.fixture(scope="session")
def viewing():
    """A context manager that serves a folder and gives the address to open."""

    @contextmanager
    def serve(root) -> Iterator[str]:
        command = [sys.executable, "-m", "pneumoscope", "view", str(root)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                assert process.stdout is not None
                yield process.stdout.readline().strip()
            finally:
                process.kill()

    return serve
