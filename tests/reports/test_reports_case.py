from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from pneumoscope.errors import Finding, GeometryError
from pneumoscope.geometry import Grid
from pneumoscope.metrics.overlap import count, score
from pneumoscope.reports import case, page
from pneumoscope.reports.case import CaseContent, write_case_report
from pneumoscope.severity.measure import STATES, measure
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask

HOSTILE = "<script>alert(1)</script>\"' onload=x\x1b[31m\u202e"


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._style = [], "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style:
            self.text += data


@pytest.fixture
def written(tmp_path, small_case):
    def make(**changes):
        content = {**small_case, **changes}
        masks = (content["volume"], content["lungs"], content["infiltrate"])
        content.setdefault("severity", measure(*masks))
        report = write_case_report(tmp_path / "out", CaseContent(**content))
        assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == report
        html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        return report, html, Page(html)

    return make


def test_page_shows_the_numbers_of_the_json(written):
    report, _, shown = written()
    severity = report["severity"]
    for side in ("right", "left", "total"):
        part = severity[side]
        for name, value in part.items():
            as_text = {"ml": page.ml, "hu": page.hu, "percent": page.percent}[name.rsplit("_", 1)[1]]
            assert as_text(value) in shown.text, (side, name)
    assert page.number(report["truth"]["dice"], 3) in shown.text
    assert f"of {severity['slices_with_lung']} with lung, {severity['slices']} in all" in shown.text


def test_json_holds_the_measurement_and_the_scores(written, small_case):
    report, _, _ = written()
    severity = measure(small_case["volume"], small_case["lungs"], small_case["infiltrate"])
    assert report["severity"] == json.loads(json.dumps(severity.as_dict()))
    scores = score(count(small_case["infiltrate"].any, small_case["truth"].any))
    assert report["truth"]["dice"] == scores.dice == 0.5
    assert report["truth"]["mean_over_infected_slices"]["n_slices"] == 4
    assert sum(report["profile"]["lung_ml"]) == pytest.approx(severity.total.lung_ml, rel=0.05)
    assert len(report["profile"]["z_mm"]) == 6
    assert report["scan"]["shape"] == [4, 5, 6]
    assert report["notice"] == page.NOTICE


def test_page_is_one_file_that_loads_nothing(written):
    _, html, shown = written()
    assert not re.search(r"https?:", html, re.IGNORECASE)
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    for tag, attributes in shown.tags:
        assert tag not in {"script", "iframe", "object", "embed", "form", "video", "audio"}
        for name in ("src", "href", "srcset", "data", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith("data:") or ":" not in address
    policy = next(a["content"] for t, a in shown.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert page.NOTICE in shown.text


def test_hostile_texts_are_shown_not_run(written, small_case):
    finding = Finding("IN-1", HOSTILE, "error", path=HOSTILE)
    card = {"name": HOSTILE, "limits": HOSTILE, HOSTILE: HOSTILE, "data": [{HOSTILE: HOSTILE}]}
    volume = replace(small_case["volume"], case=HOSTILE, source={HOSTILE: HOSTILE})
    infiltrate = Mask(small_case["infiltrate"].labels, volume.grid, {1: HOSTILE, 2: "b"})
    _, html, shown = written(volume=volume, infiltrate=infiltrate, findings=[finding], cards=[card])
    assert not [tag for tag, _ in shown.tags if tag == "script"]
    assert not [a for _, a in shown.tags if any(name.startswith("on") for name in a)]
    assert "<script>alert(1)" in shown.text
    assert "\x1b" not in html
    assert "\u202e" not in html


def test_states_are_banners(written, small_case):
    nothing = Mask.empty(small_case["volume"].grid, LUNG_LABELS)
    report, _, shown = written(lungs=nothing)
    assert "no_lung_found" in report["severity"]["states"]
    assert report["severity"]["total"]["share_percent"] is None
    banners = [a["class"] for t, a in shown.tags if "banner" in a.get("class", "")]
    assert banners[0] == "banner error"
    assert STATES["no_lung_found"] in shown.text
    assert "not measurable" in shown.text
    assert "none found" in shown.text
    assert not re.search(r"\b0(\.0+)?\s(ml|%)", shown.text.split("Infiltrate outside")[0])


def test_a_state_says_beside_its_numbers_what_it_means(written, small_case):
    assert {*case._ON_LUNGS, *case._ON_INFILTRATE} <= {*STATES}
    grid = small_case["volume"].grid
    right = Mask(np.where(small_case["lungs"].labels == 1, 1, 0).astype(np.uint8), grid, LUNG_LABELS)
    _, html, _ = written(lungs=right)
    tiles = dict(re.findall(r'<div class="tile"><div[^>]*>([^<]+)(.*?)</div></div>', html))
    assert "of one lung only" in tiles["Lung involvement"]
    assert "of one lung only" in tiles["Lungs"]
    assert "beside" not in tiles["Slices with infiltrate"]


def test_the_key_is_named_where_it_is_kept(written, tmp_path):
    assert "private/key.csv" not in written()[2].text
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.csv").touch()
    assert "row case-7 of ../private/key.csv" in " ".join(written()[2].text.split())


def test_lung_at_the_edge_names_the_edge(written, small_case, monkeypatch):
    monkeypatch.setattr("pneumoscope.severity.measure.EDGE_MM2", 0.3)  # the scan's voxels are far smaller than a lung
    labels = small_case["lungs"].labels.copy()
    labels[1, 2, 5] = 2
    _, _, shown = written(lungs=Mask(labels, small_case["volume"].grid, LUNG_LABELS))
    assert "Reached: the top (head)." in shown.text


def test_findings_come_once_and_errors_first(written, small_case):
    mild, grave = Finding("IN-2", "odd", "info"), Finding("IN-1", "withheld", "error", path="a.dcm")
    report, _, shown = written(volume=small_case["volume"].with_findings(mild), findings=[mild, grave])
    assert [f["code"] for f in report["findings"]] == ["IN-1", "IN-2"]
    assert "a.dcm" in shown.text


def test_without_truth_findings_cards_or_sides(written, small_case):
    labels = (small_case["lungs"].labels > 0).astype(np.uint8)
    lungs = Mask(labels, small_case["volume"].grid, {1: "lungs"})
    report, _, shown = written(truth=None, lungs=lungs)
    assert report["truth"] is None
    assert report["models"] == []
    assert report["timings_seconds"] is None
    assert "Agreement with the reference" not in shown.text
    assert "Findings about the scan None." in " ".join(shown.text.split())
    assert "sides not known" in shown.text


@pytest.mark.parametrize(
    ("found", "drawn", "words"),
    [(False, False, "they agree"), (False, True, "The prediction is empty"), (True, False, "The reference is empty")],
)
def test_empty_masks_against_the_reference_are_said_aloud(written, small_case, found, drawn, words):
    none = Mask.empty(small_case["volume"].grid, INFILTRATE_LABEL)
    report, _, shown = written(
        infiltrate=small_case["infiltrate"] if found else none, truth=small_case["truth"] if drawn else none
    )
    assert words in shown.text
    assert report["truth"]["empty"] != ""


def test_files_that_lie_there_are_linked(written, tmp_path):
    (tmp_path / "out" / "points").mkdir(parents=True)
    for name in ("points/lungs.csv", "points/truth.csv", "notes.txt"):
        (tmp_path / "out" / name).touch()
    for truth, more in ((None, []), (..., ["points/truth.csv"])):
        _, _, shown = written() if truth is ... else written(truth=None)
        links = [a["href"] for t, a in shown.tags if t == "a"]
        assert links == ["report.json", "points/lungs.csv", *more]


def test_json_comes_last(small_case, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pneumoscope.reports.case.write_page", fail)
    severity = measure(small_case["volume"], small_case["lungs"], small_case["infiltrate"])
    with pytest.raises(OSError, match="disk full"):
        write_case_report(tmp_path, CaseContent(**small_case, severity=severity))
    assert not list(tmp_path.iterdir())


def test_same_input_same_bytes(written, tmp_path):
    _, first, _ = written()
    _, second, _ = written()
    assert first == second


def test_masks_on_another_grid_are_refused(small_case, tmp_path):
    severity = measure(small_case["volume"], small_case["lungs"], small_case["infiltrate"])
    other = Mask.empty(Grid.from_spacing((4, 5, 6), (1, 1, 1)), INFILTRATE_LABEL)
    with pytest.raises(GeometryError, match="another grid"):
        write_case_report(tmp_path, CaseContent(**{**small_case, "truth": other}, severity=severity))
    assert not list(tmp_path.iterdir())
