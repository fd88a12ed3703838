from __future__ import annotations

import math
import subprocess
import sys

import pytest
from jinja2 import UndefinedError

from pneumoscope.reports import page
from pneumoscope.reports.page import NOTICE, card_table, environment, flat, render, write_page
from pneumoscope.reports.xray import wrong_on_unseen


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
        (page.percent(None), "not measurable"), (page.ml(None), "not measurable"),
        (page.hu(math.nan), "not measurable"), (page.percent(0.0), "0 %"), (page.percent(0.004), "< 0.1 %"),
        (page.percent(3.456), "3.5 %"), (page.percent(34.56), "35 %"), (page.ml(4326.4), "4 330 ml"),
        (page.ml(321.4), "321 ml"), (page.ml(12.34), "12 ml"), (page.ml(9.96), "10 ml"), (page.ml(1.234), "1.2 ml"),
        (page.ml(0.04), "< 0.1 ml"), (page.ml(0.0), "0 ml"), (page.by_error(0.0312, 0.46), "0.0"),
        (page.by_error(12.345, 3.4), "12"), (page.by_error(1.2345, 0.001), "1.23"),
        (page.by_error(1.2345, None), "1.23"), (page.signed(0.29, 0.54, "ml"), "+0.3 ml"),
        (page.signed(-0.89, 2.09), "−1"), (page.signed(0.03, 0.46), "0.0"), (page.signed(None), "not measurable"),
        (page.hu(-812.4), "−812 HU"), (page.hu(-0.2), "0 HU"), (page.seconds(0.123), "0.12 s"),
        (page.seconds(12.34), "12.3 s"), (page.words("one_lung_only"), "one lung only"),
    ],
)  # fmt: skip
def test_numbers_with_units(text, expected):
    assert text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ") == expected


def test_cards_of_any_shape_become_lines():
    card = {
        "data": [{"name": "a"}, {"name": "b"}],
        "filters": [16, 32],
        "x": None,
        "y": [],
        "z": "",
        "deep": {"dice_lung": 0.98765},
    }
    expected = [
        ("data 1 / name", "a"), ("data 2 / name", "b"), ("filters", "16, 32"),
        ("deep / dice lung", "0.9877"),
    ]  # fmt: skip
    assert flat(card) == expected
    assert flat(["a", "b"], "names") == [("names", "a, b")]


def test_a_card_says_first_what_a_reader_asks():
    card = {"title": "m", "limits": ["a", "<b>"], "licence": "CC", "numbers": {"dice": 0.5}, "format": 2}
    assert card_table(card) == {
        "title": "m", "rows": [("licence", "CC"), ("limits", ["a", "<b>"])], "more": [("numbers / dice", "0.5")],
    }  # fmt: skip


def test_an_answer_comes_with_how_often_it_was_wrong_on_unseen_hospitals():
    said = {"p": ("covid19", 200, {"covid19": 0.25, "normal": 0.1}), "q": ("normal", 50, {"covid19": 0.8})}
    sources = {k: {"unseen": {"class": c, "pictures": n, "said": s}} for k, (c, n, s) in said.items()}
    card = {"numbers": {"unseen_sources": sources}}
    films = "On films of hospitals not in training (200 COVID-19, 50 Normal), this answer was"
    plain = {name: wrong_on_unseen(card, name).replace("\xa0", " ") for name in ("covid19", "normal", "bacterial")}
    assert plain["covid19"] == f"{films} wrong in 40 of 90 (44 %)."
    assert plain["normal"] == f"{films} wrong in 20 of 20 (100 %)."
    assert plain["bacterial"] == f"{films} never given."
    assert wrong_on_unseen({}, "covid19") == ""


def test_reports_are_imported_without_matplotlib_jinja_or_torch():
    code = (
        "import sys, pneumoscope.reports.case, pneumoscope.surfaces.files, pneumoscope.metrics.overlap;"
        "print([m for m in ('torch', 'matplotlib', 'jinja2', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
