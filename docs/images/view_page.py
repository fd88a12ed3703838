"""Draw docs/images/view-page.png: the offline page of a synthetic case, photographed in Chromium.

Run from the repository: ``python docs/images/view_page.py``; needs chromium, chromedriver and selenium.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.reports.view import ViewScan, write_case_view
from pneumoscope.severity.assess import assess
from pneumoscope.surfaces.mesh import build_mesh
from pneumoscope.surfaces.files import structures

SIZE = (1640, 1330)


def write_phantom_page(path: Path) -> None:
    """The page of patient 0 of site B: what its reader drew against the exact infiltrate."""
    made = scan_patient("B", 0)
    volume, lungs, drawn, truth = made.scan.volume, made.lungs, made.scan.infiltrate, made.scan.truth
    parts = {name: build_mesh(where(), volume.grid) for name, where in structures(lungs, drawn, truth).items()}
    meshes = {name: mesh for name, mesh in parts.items() if mesh is not None}
    scan = ViewScan(f"{volume.case} (synthetic)", volume, lungs, drawn, truth, meshes)
    write_case_view(path, scan, assess(volume, lungs, drawn))


def photograph(page: Path) -> bytes:
    """The page as PNG, with the surfaces a little from the side."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for option in ("headless=new", "no-sandbox", "use-angle=swiftshader", "enable-unsafe-swiftshader"):
        options.add_argument(f"--{option}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.as_uri())
        while driver.execute_script("return document.documentElement.dataset.ready") is None:
            time.sleep(0.2)
        time.sleep(1)
        return driver.get_screenshot_as_png()
    finally:
        driver.quit()


def main() -> None:
    """Make the page, photograph it, write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "view.html"
        write_phantom_page(page)
        picture = Image.open(BytesIO(photograph(page))).convert("RGB")
    picture = picture.resize((1230, 1230 * SIZE[1] // SIZE[0]), Image.Resampling.LANCZOS)
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(Path(__file__).with_name("view-page.png"), optimize=True)


if __name__ == "__main__":
    main()
