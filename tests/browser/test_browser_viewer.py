"""The served viewer in a real browser: the page of a case works inside its box, and the box holds."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from pneumoscope.geometry import Grid
from pneumoscope.reports.view import ViewScan, write_case_view
from pneumoscope.severity.measure import measure
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"]), pytest.mark.enable_socket]


@pytest.fixture(scope="module")
def served(tmp_path_factory, viewing):
    """Address of a viewer over two cases."""
    root = tmp_path_factory.mktemp("served")
    for n, name in enumerate(("one", "two")):
        (root / name).mkdir()
        grid = Grid.from_spacing((20, 20, 10), (5, 5, 10))
        lungs = np.zeros(grid.shape, np.uint8)
        lungs[2:9, 3:17, 1:9], lungs[11:18, 3:17, 1:9] = 2, 1
        spots = np.zeros_like(lungs)
        spots[3 : 5 + n, 4:8, 2:5] = 1
        volume = Volume(np.full(grid.shape, -700, np.float32), grid, grid, case=name)
        masks = Mask(lungs, grid, LUNG_LABELS), Mask(spots, grid, INFILTRATE_LABEL)
        severity = measure(volume, *masks)
        write_case_view(root / name / "view.html", ViewScan(name, volume, *masks), severity)
        (root / name / "report.html").write_text("<script>document.title = document.cookie || 'no cookie'</script>")
        total = {"share_percent": severity.total.share_percent, "infiltrate_ml": 1.0, "lung_ml": 2.0}
        report = {"case": name, "severity": {"total": total, "states": []}, "findings": []}
        (root / name / "report.json").write_text(json.dumps(report))
    with viewing(root) as address:
        yield address


def wait(driver, script, seconds=60):
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return {script}"):
        assert time.monotonic() < end, script
        time.sleep(0.1)


def test_table_case_and_report(browser_without_gl, served):
    driver = browser_without_gl.driver
    browser_without_gl.complaints()  # those of pages shown before
    driver.get(served)
    wait(driver, "document.querySelectorAll('tbody tr').length === 2")
    wait(driver, "document.images.length === 2 && [...document.images].every(image => image.complete)")
    time.sleep(0.2)  # what the browser says of a picture comes after it
    assert "token" not in driver.current_url
    assert not browser_without_gl.complaints(), "its own policy allows all that it asks for"
    driver.find_element("link text", "involvement").click()
    wait(driver, "location.search.includes('share_percent')")
    first = driver.execute_script("return document.querySelector('tbody th').textContent")
    driver.find_element("partial link text", "involvement").click()
    wait(driver, f"document.querySelector('tbody th').textContent !== '{first}'")
    driver.find_element("link text", "one").click()
    wait(driver, "document.querySelector('iframe') !== null")
    root = "document.documentElement"
    assert driver.execute_script(f"return {root}.scrollHeight <= {root}.clientHeight"), (
        "one bar to scroll, the report's"
    )
    driver.switch_to.frame(driver.find_element("tag name", "iframe"))
    wait(driver, "document.documentElement.dataset.ready === 'yes'")
    refused = [line for line in browser_without_gl.complaints() if "Security Policy" in line]
    assert not refused, "nor does the policy of the page around a case forbid anything it asks for"
    assert driver.execute_script("return self.origin") == "null", "boxed in: an origin of its own"
    driver.switch_to.default_content()
    driver.find_element("link text", "report").click()
    wait(driver, "document.querySelector('iframe').src.endsWith('report.html')")
    driver.switch_to.frame(driver.find_element("tag name", "iframe"))
    blocked = "try { return document.cookie } catch (error) { return error.name }"
    assert driver.execute_script(blocked) == "SecurityError", "a script in a report cannot reach the session"
    driver.switch_to.default_content()
