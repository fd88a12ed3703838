"""`pneumoscope compare`: the call, what it prints, how it ends; what it computes is tested with `cases`."""

import pytest

from pneumoscope.cases import compare as driver
from pneumoscope.cases.options import SegmentOptions
from pneumoscope.severity.change import Change, FateVolume, region_change


@pytest.fixture
def folders(tmp_path):
    """Two folders that look like finished cases."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("report.json", "lungs.nii.gz"):
            (tmp_path / name / file).write_text("{}")
    return tmp_path / "a", tmp_path / "b"


def test_what_it_prints(cli, folders, tmp_path, monkeypatch):
    fates = {name: FateVolume(5.0, 10.0, False) for name in ("new", "resolved", "persistent", "denser", "thinner")}
    region = region_change((40.0, 90.0), (1000.0, 1000.0), 10.0)
    change = Change("a", "b", (1000.0, 1000.0), 0.0, {"total": region}, fates, None, None, {"lung_dice": 0.98}, 0.2)
    calls = []

    def compare(paths, out, **options):
        calls.append((paths, out, options))
        return driver.Comparison((change,), ())

    monkeypatch.setattr(driver, "compare_cases", compare)
    ran = cli("compare", *folders, "-o", tmp_path / "out")
    assert ran.code == 0, ran
    assert ran.out.startswith("b: more. From 4.0 % to 9.0 % of the lungs: +5 percentage points, noise floor 1.")
    assert calls[0][0] == list(folders)
    assert calls[0][2]["options"] == SegmentOptions()
    printed = cli("compare", *folders, folders[0], "-o", tmp_path / "out", "--json").json
    assert printed["changes"][0]["verdict"] == "more"
    assert len(calls[1][0]) == 3


def test_unusable_calls(cli, folders, tmp_path):
    cli("compare", folders[0], "-o", tmp_path / "out").refused("FOLLOWUP")
    cli("compare", *folders).refused("--out")
    cli("compare", *folders, "-o", tmp_path / "out").refused("infiltrate.nii.gz", "is missing")
    cli("compare", folders[0], tmp_path / "nowhere", "-o", tmp_path / "other").refused("nowhere")
