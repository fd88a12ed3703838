from __future__ import annotations

import math
import subprocess
import sys

import pytest
from jinja2 import UndefinedError

from pneumoscope.reports import page
from pneumoscope.reports.page import NOTICE, environment, flat, render, write_page


def test_every_page_forbids_loading_and_carries_the_notice(tmp_path):
    write_page(tmp_path / "p.html", "base.html", {"title": "<b>x</b>"})
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert NOTICE in html
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_no_template_steps_around_the_escape():
    for name in environment().list_templates():
        source, _, _ = environment().loader.get_source(environment(), name)
        assert "safe" not in source.replace("unsafe-inline", ""), name
        assert "autoescape" not in source, name
        assert "http" not in source.replace("http-equiv", ""), name


def test_missing_values_are_errors():
    with pytest.raises(UndefinedError):
        render("base.html", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (page.percent(None), "not measurable"),
        (page.ml(None), "not measurable"),
        (page.hu(math.nan), "not measurable"),
        (page.percent(0.0), "0 %"),
        (page.percent(0.004), "< 0.1 %"),
        (page.percent(3.456), "3.5 %"),
        (page.percent(34.56), "35 %"),
        (page.ml(4321.4), "4 321 ml"),
        (page.ml(12.34), "12.3 ml"),
        (page.ml(0.123), "0.12 ml"),
        (page.hu(-812.4), "−812 HU"),
        (page.hu(-0.2), "0 HU"),
        (page.seconds(0.123), "0.12 s"),
        (page.seconds(12.34), "12.3 s"),
        (page.words("one_lung_only"), "one lung only"),
    ],
)
def test_numbers_with_units(text, expected):
    assert text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ") == expected


def test_cards_of_any_shape_become_lines():
    card = {"data": [{"name": "a"}, {"name": "b"}], "filters": [16, 32], "x": None, "deep": {"dice_lung": 0.98765}}
    expected = [
        ("data 1 / name", "a"),
        ("data 2 / name", "b"),
        ("filters", "16, 32"),
        ("x", ""),
        ("deep / dice lung", "0.9877"),
    ]
    assert flat(card) == expected
    assert flat(["a", "b"], "names") == [("names", "a, b")]


def test_reports_are_imported_without_matplotlib_jinja_or_torch():
    code = (
        "import sys, pneumoscope.reports.case, pneumoscope.surfaces.points, pneumoscope.metrics.overlap;"
        "print([m for m in ('torch', 'matplotlib', 'jinja2', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
