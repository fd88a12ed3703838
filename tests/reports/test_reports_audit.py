from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pneumoscope.datasets.audit.rules import AuditFinding, AuditRules, spotted
from pneumoscope.geometry import Grid
from pneumoscope.reports.audit import FOUND, SIDE_PX, finding_picture, pair_picture, write_audit_page
from pneumoscope.volume import Volume


@pytest.fixture
def scan():
    grid = Grid.from_spacing((40, 50, 6), (4.0, 3.0, 5.0))
    return Volume(np.full(grid.shape, -800, np.float32), grid, grid)


def pixels(picture):
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB"), int)


def marked(picture):
    """(row, column) of the finding's frame within the right panel, 0..1."""
    panel = pixels(picture)[:, SIDE_PX + 4 :]
    colour = np.array([int(FOUND[n : n + 2], 16) for n in (1, 3, 5)])
    near = np.abs(panel - colour).sum(axis=2) < 150
    return np.argwhere(near).mean(axis=0) / SIDE_PX


def test_the_picture_is_radiological(scan):
    """A place on the patient's right and in front is at the upper left of the picture."""
    where = np.array([[38, 47, 2]])
    finding = spotted("c", "speck", "warning", "", where, scan.grid)
    whole = replace(finding, where=np.array([[38, 47, 2], [1, 2, 2]]))
    assert pixels(finding_picture(scan, finding, None, None)).shape == (SIDE_PX, 2 * SIDE_PX + 4, 3)
    colour = np.array([int(FOUND[n : n + 2], 16) for n in (1, 3, 5)])
    panel = pixels(finding_picture(scan, whole, None, None))[:, SIDE_PX + 4 :]
    near = np.abs(panel - colour).sum(axis=2) < 150
    assert near[: SIDE_PX // 4, : SIDE_PX // 4].any()
    assert near[-SIDE_PX // 4 :, -SIDE_PX // 4 :].any()


def test_a_close_up_is_centred(scan):
    finding = spotted("c", "speck", "warning", "", np.array([[20, 25, 2]]), scan.grid)
    assert marked(finding_picture(scan, finding, None, None)) == pytest.approx([0.5, 0.5], abs=0.06)


def test_findings_without_a_place_and_pictures_without_hounsfield_units(scan):
    lungs = np.zeros(scan.grid.shape, np.uint8)
    lungs[5:15, 5:15, 4] = 1
    whole = AuditFinding("c", "mirrored-mask", "error", "", mask="lungs")
    shown = pixels(finding_picture(scan, whole, lungs, None, hounsfield=False))
    assert (np.abs(shown[:, SIDE_PX + 4 :] - shown[:, :SIDE_PX]).sum(axis=2) > 60).any()
    assert pixels(pair_picture(np.zeros((9, 12), np.uint8), np.zeros((128, 64), np.uint8))).shape[0] == SIDE_PX


def test_the_page_escapes_and_groups(tmp_path):
    findings = [
        AuditFinding("<script>x</script>", "duplicate-scan", "error", "<b>same</b>", confidence=1),
        AuditFinding("b", "crumbs", "note", "few", slice=3, voxels=2, volume_ml=0.1, centre_mm=(1.0, 2.0, 3.0)),
    ]
    summary = {
        "dataset": "own", "cases": 3, "cases_without": 1, "severities": {"error": 1, "warning": 0, "note": 1},
        "not_judged": [{"rule": "in-air", "cases": 2, "why": "<8 bit>"}], "model": None, "repairs": None,
    }  # fmt: skip
    write_audit_page(tmp_path / "p.html", title="Audit", findings=findings, pictures={}, summary=summary,
                     rules=AuditRules())  # fmt: skip
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;x" in page
    assert "&lt;8 bit&gt;" in page
    assert page.index('id="duplicate-scan"') < page.index('id="crumbs"')
    write_audit_page(tmp_path / "q.html", title="Audit", findings=[], pictures={}, summary=summary, rules=AuditRules())
    assert "No findings" in (tmp_path / "q.html").read_text(encoding="utf-8")
