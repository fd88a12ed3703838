import json
import shutil

import pytest

from pneumoscope.errors import InputError
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.reports.page import NOTICE
from pneumoscope.study.folder import start
from pneumoscope.study.report import write_report
from pneumoscope.study.transfer_page import headline, limits


def test_the_page_says_what_must_be_said(whole):
    page = (whole.folder / "report.html").read_text()
    assert NOTICE in page
    assert "Synthetic data" in page
    assert "without keeping patients apart" in page
    assert "Tr2_R_2_Te3" in page
    assert "paper 0.543" in page
    assert "The lungs of 4 scans of set 3 were found by the study" in page
    assert "Chaudhry et al. 2018" in page
    assert "stages.retrain.max_epochs" in page


def test_the_page_fetches_nothing(whole):
    page = (whole.folder / "report.html").read_text()
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert 'src="http' not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") >= 1 + 6 + 7  # heat map, examples, curves


def test_the_page_is_made_again_from_the_folder_alone(whole, tmp_path):
    copy = tmp_path / "moved"
    shutil.copytree(whole.folder, copy)
    before = (copy / "report.html").read_bytes()
    (copy / "report.html").unlink()
    write_report(copy)
    assert (copy / "report.html").read_bytes() == before
    shutil.rmtree(copy / "figures")  # still a report, without pictures
    shutil.rmtree(copy / "stages" / "lungs")
    write_report(copy)
    assert (copy / "report.html").is_file()


def test_an_unfinished_study_has_no_report_yet(tmp_path):
    with pytest.raises(InputError, match="holds no study"):
        write_report(tmp_path)
    start(four_channel(), tmp_path)
    with pytest.raises(InputError, match="not finished"):
        write_report(tmp_path)


def test_the_headline_follows_the_longest_chain():
    full = four_channel()
    rows = [
        {"stage": s.name, "test": t, "f1": 0.1 * t, "paper_f1": getattr(full.paper_row(s.name, t), "f1", None)}
        for s in full.stages.chain
        for t in (1, 2, 3)
    ]
    text = headline(full, rows)
    assert text.startswith("Trained on set 1, then set 2, then set 3. F1 on set 1: 0.10 → 0.10 → 0.10")
    assert "(the paper: 0.80 → 0.69 → 0.24)" in text
    rows[0]["f1"] = None
    assert "F1 on set 1: not measurable → 0.10" in headline(full, rows)


def test_limits_depend_on_what_was_done(whole):
    summary = json.loads((whole.folder / "study.json").read_text())
    leaking = sum(row["patients_in_several_parts"] for row in summary["sets"])
    assert leaking > 8
    assert any(f"{leaking} of 12 patients" in text for text in limits(whole.experiment, summary))
    by_patient = with_overrides(whole.experiment, ["split.by=patient"])
    assert limits(by_patient, summary)[0].startswith("Patients are kept whole")
