"""What a screen reader is given of every page: Chromium's accessibility tree, as it hands it on."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

import pneumoscope as ps
from pneumoscope.cases.options import QuantifyOptions, XrayOptions
from pneumoscope.cases.quantify import quantify_cases
from pneumoscope.cases.xray import classify_radiographs
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.io.scans import list_scans
from pneumoscope.preprocess.registration import RegistrationRules

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1", "localhost", "::1"]), pytest.mark.enable_socket]

NAMED = {
    "image", "button", "slider", "spinbutton", "checkbox", "link", "textbox", "searchbox", "combobox", "region",
    "navigation", "Iframe", "heading",
}  # fmt: skip
"""Roles that mean nothing without a name."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A case, its follow-up, a study, radiographs and an audit."""
    root = tmp_path_factory.mktemp("pages")
    data = root / "data"
    write_phantom(data, "A", 1, size="tiny")
    options = QuantifyOptions(lungs=str(data / "lungs"), infiltrate=str(data / "infiltrate"))
    quantify_cases(list_scans([str(data / "images")]).scans, root / "cases", options)
    rough = RegistrationRules(spacing_mm=8.0, iterations=(25, 6), knots_mm=80)
    ps.compare(root / "cases" / "A-000", root / "cases" / "A-000", out=root / "change", rules=rough)
    ps.score_study(root / "study", data={"phantom": data}, predictions={"drawn": data / "infiltrate"}, device="cpu")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 260), dtype=np.uint8)).save(root / "film.png")
    classify_radiographs([root / "film.png"], root / "films", XrayOptions())
    ps.audit("manifest", data / "manifest.csv", out=root / "audit")
    return root


@pytest.fixture(scope="module")
def address(results, viewing):
    with viewing(results) as address:
        yield address


@pytest.mark.parametrize(
    "page",
    [
        "cases/A-000/report.html", "cases/A-000/view.html", "change/report.html", "change/view.html",
        "study/report.html", "films/report.html", "audit/audit.html", "the viewer", "a case in the viewer",
    ],
)  # fmt: skip
def test_everything_has_a_role_and_a_name(browser_without_gl, results, address, page):
    driver = browser_without_gl.driver
    if "viewer" in page:
        driver.get(address if page == "the viewer" else f"{address.partition('?')[0]}show/cases/A-000")
    elif page.endswith("view.html"):
        browser_without_gl.open(results / page)
    else:
        driver.get((results / page).as_uri())
    end, roles = time.monotonic() + 60, []
    while "main" not in roles and time.monotonic() < end:  # the browser builds the tree after the page
        tree = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        nodes = [node for node in tree if not node["ignored"]]
        roles = [node["role"]["value"] for node in nodes]
    assert [role for role, node in zip(roles, nodes, strict=True) if not node["name"]["value"] and role in NAMED] == []
    assert (roles.count("main"), roles.count("banner")) == (1, 1)
    outline = driver.execute_script("""
        const count = (what, test = () => true) => [...document.querySelectorAll(what)].filter(test).length;
        return {language: document.documentElement.lang, titles: count("h1"),
          tables: count("table", (table) => !table.querySelector("th")), fields: count("fieldset:not(:has(legend))"),
          empty: count("th", (cell) => !cell.textContent.trim())};
    """)
    assert outline == {"language": "en", "titles": 1, "tables": 0, "fields": 0, "empty": 0}
