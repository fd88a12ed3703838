"""Draw the pictures of docs/gallery.md that show pages: all of synthetic scans, photographed in Chromium.

Run from the repository: ``python docs/images/gallery.py [NAME...]``; needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from phantom_followup import LesionChange, Pose, scan_dates
from pneumoscope.cases.compare import compare_cases
from pneumoscope.cases.outputs import write_case
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.reports.case import CaseContent
from pneumoscope.reports.view import ViewScan, write_case_view
from pneumoscope.severity.measure import assess

HERE = Path(__file__).parent
KEY = "case,path,series_uid,patient,study_date\nmarch,,,,20200302\napril,,,,20200404\n"


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a screen, with WebGL2 in software."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for option in (
        "headless=new",
        "no-sandbox",
        "hide-scrollbars",
        "use-angle=swiftshader",
        "enable-unsafe-swiftshader",
    ):
        options.add_argument(f"--{option}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def photograph(address: str, name: str, size: tuple[int, int], width: int = 1000) -> None:
    """The upper part of a page as a PNG of 256 colours."""
    with browser() as driver:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(address)
        scripted = driver.execute_script("return document.querySelector('script#facts') !== null")
        while scripted and driver.execute_script("return document.documentElement.dataset.ready") is None:
            time.sleep(0.2)
        time.sleep(1)
        picture = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture = picture.resize((width, width * size[1] // size[0]), Image.Resampling.LANCZOS)
    picture.quantize(256, Image.Quantize.MEDIANCUT).save(HERE / f"{name}.png", optimize=True)


def view_page(work: Path) -> None:
    """``view.html`` of patient 0 of site B: what its reader drew against the exact infiltrate."""
    made = scan_patient("B", 0)
    volume, lungs, drawn = made.scan.volume, made.lungs, made.scan.infiltrate
    scan = ViewScan(f"{volume.case} (synthetic)", volume, lungs, drawn, made.scan.truth)
    write_case_view(work / "view.html", scan, assess(volume, lungs, drawn))
    photograph((work / "view.html").as_uri(), "view-page", (1640, 1330), 1230)


def reports(work: Path) -> None:
    """A patient on two dates: the case report, the follow-up report, and the viewer over both."""
    days = scan_dates("B", 1, [(LesionChange(grow_mm=3, new_share=0.03), Pose((5, 3, -8), (0, 3, 0), 0.97))],
                      spacing_mm=(2.0, 4.0), detail=(5.0, 800))  # fmt: skip
    out = work / "out"
    (out / "private").mkdir(parents=True)
    (out / "private" / "key.csv").write_text(KEY)
    for name, day in zip(("march", "april"), days, strict=True):
        volume = replace(day.volume, case=name)
        severity = assess(volume, day.lungs, day.truth)
        write_case(out / name, CaseContent(volume=volume, lungs=day.lungs, infiltrate=day.truth, severity=severity))
    compare_cases([out / "march", out / "april"], out / "change")
    photograph((out / "march" / "report.html").as_uri(), "case-report", (1200, 1150))
    photograph((out / "change" / "report.html").as_uri(), "follow-up", (1200, 1350))
    command = [sys.executable, "-u", "-m", "pneumoscope", "view", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout is not None
        try:
            photograph(viewer.stdout.readline().strip(), "viewer", (1200, 520))
        finally:
            viewer.terminate()


def main() -> None:
    """Draw all, or those named."""
    for draw in (view_page, reports):
        if not sys.argv[1:] or draw.__name__ in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                draw(Path(folder))


if __name__ == "__main__":
    main()
