"""`compare`: synthetic patients whose change is known exactly; what cannot be compared is refused."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

import pneumoscope as ps
from phantom_followup import LesionChange, Pose, scan_dates
from pneumoscope.cases.compare import compare_cases
from pneumoscope.cases.followup import Timepoint, compare_dates, read_timepoint, require_quality
from pneumoscope.cases.outputs import write_case
from pneumoscope.errors import InputError
from pneumoscope.inference.segmenter import Segmentation
from pneumoscope.preprocess.registration import RegistrationRules
from pneumoscope.reports.case import CaseContent
from pneumoscope.reports.compare import sentence
from pneumoscope.severity.measure import assess
from pneumoscope.volume import Mask, Volume

ROUGH = RegistrationRules(spacing_mm=8.0, iterations=(25, 6), knots_mm=80)
"""Quick: voxels of 8 mm."""

COARSE = RegistrationRules(spacing_mm=6.0, iterations=(40, 12), knots_mm=70)

DAYS = {
    "moved and a deeper breath": (LesionChange(), Pose((12, -8, 20), (4, -3, 5), 1.05)),
    "grown": (LesionChange(grow_mm=4), Pose((5, 3, -10), (0, 3, 0), 0.95)),
    "shrunk": (LesionChange(grow_mm=-3), Pose()),
    "denser": (LesionChange(denser_hu=180), Pose((3, 3, 3))),
    "right resolved, others new": (LesionChange(right_resolved=True, new_share=0.05), Pose((0, 5, 0))),
}


def dated(scan) -> Timepoint:
    return Timepoint(scan.volume.case, scan.lungs, scan.truth, scan.volume, scan.volume.native)


@pytest.fixture(scope="module")
def dates():
    """A baseline and a scan for each of DAYS."""
    first, *rest = scan_dates("B", 1, list(DAYS.values()), spacing_mm=(4.0, 6.0))
    return first, dict(zip(DAYS, rest, strict=True))


@pytest.fixture(scope="module")
def quick():
    """A baseline and the same patient unchanged but moved, coarse."""
    return scan_dates(
        "B", 4, [(LesionChange(), Pose((9, -6, 12), (0, 4, 0)))], spacing_mm=(6.0, 8.0), detail=(9.0, 150)
    )


@pytest.fixture(scope="module")
def folders(quick, tmp_path_factory):
    """The same as case folders."""
    root = tmp_path_factory.mktemp("dates")
    for n, scan in enumerate(quick):
        volume = replace(scan.volume, case=f"day{n}")
        severity = assess(volume, scan.lungs, scan.truth)
        content = CaseContent(volume=volume, lungs=scan.lungs, infiltrate=scan.truth, severity=severity)
        write_case(root / f"day{n}", content)
    return [root / f"day{n}" for n in range(len(quick))]


def test_an_unchanged_patient_who_moved_shows_no_measurable_change(folders, quick, tmp_path):
    result = compare_cases(folders, tmp_path / "out", rules=ROUGH)
    (change,) = result.changes
    assert change.verdict == "no measurable change"
    assert not change.fates["new"].measurable
    assert not change.fates["resolved"].measurable
    assert change.registration["lung_dice"] > 0.9
    assert {region.verdict for region in change.regions.values()} == {"no measurable change"}
    stored = json.loads((tmp_path / "out" / "change.json").read_text())
    assert stored == result.as_dict()
    for lung_dice, warned in ((0.97, False), (0.88, True)):
        stored["changes"][0]["registration"]["lung_dice"] = lung_dice
        assert ("may only have moved" in sentence(stored["changes"][0])) == warned
    scan = nib.load(folders[0] / "lungs.nii.gz")
    for name in ("change", "followup_infiltrate_on_baseline"):
        image = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert image.shape == scan.shape
        assert np.array_equal(image.affine, scan.affine)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No measurable change" in page
    assert "not a medical device" in page
    assert (tmp_path / "out" / "view.html").is_file()
    with pytest.raises(InputError, match="--overwrite"):
        compare_cases(folders, tmp_path / "out", rules=ROUGH)


def test_results_in_memory_compare_as_their_folders_do(folders, quick):
    found = [
        Segmentation(scan.lungs, scan.truth, None, (), {}, {}, scan=replace(scan.volume, case=f"day{n}"))
        for n, scan in enumerate(quick)
    ]
    result = ps.compare(*found, rules=ROUGH)
    assert result.as_dict() == ps.compare(*folders, rules=ROUGH).as_dict()
    with pytest.raises(InputError, match="no scan or no lung"):
        ps.compare(found[0], replace(found[1], scan=None), rules=ROUGH)
    with pytest.raises(TypeError, match="expected Volume, a path"):
        ps.compare(found[0], 7)


def test_half_of_the_lungs_is_refused(quick):
    whole, other = dated(quick[0]), dated(quick[1])
    labels = other.lungs.labels.copy()
    labels[:, :, : int(labels.shape[2] * 0.6)] = 0
    part = Mask(labels, other.lungs.grid, other.lungs.names)
    with pytest.raises(InputError, match="only a part of the lungs"):
        compare_dates(whole, replace(other, lungs=part), ROUGH)
    with pytest.raises(InputError, match="shows no lung"):
        compare_dates(whole, replace(other, lungs=Mask.empty(part.grid, part.names)), ROUGH)


def test_each_measure_of_quality_can_refuse():
    good = {"similarity": 0.6, "lung_dice": 0.97, "folded_share": 0.0}
    require_quality(good, "a", "b")
    for name, value, words in (
        ("similarity", 0.05, "another patient"),
        ("lung_dice", 0.6, "part of the lungs"),
        ("folded_share", 0.1, "folds"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            require_quality({**good, name: value}, "a", "b")
        assert "\n" not in str(caught.value)


def test_what_is_no_date_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match="a baseline and at least one follow-up"):
        compare_cases(folders[:1], tmp_path / "x")
    with pytest.raises(InputError, match="is not a finished case folder"):
        compare_cases([folders[0], folders[0] / "lungs.nii.gz"])
    with pytest.raises(InputError, match="is missing; segment the scan first"):
        read_timepoint(tmp_path)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("day", DAYS)
def test_known_changes_are_recovered_within_the_noise_floor(dates, day):
    baseline, rest = dates
    scan = rest[day]
    change = compare_dates(dated(baseline), dated(scan), COARSE).change
    before, after = baseline.truth.any, scan.truth_on_baseline.any
    ml, lung_ml = baseline.lungs.grid.voxel_volume_ml, baseline.lungs.volume_ml()
    true_points = 100 * (after.sum() - before.sum()) * ml / lung_ml
    total = change.regions["total"]
    assert total.change_points == pytest.approx(true_points, abs=total.noise_points)
    expected = {"grown": "more", "shrunk": "less", "right resolved, others new": "more"}.get(
        day, "no measurable change"
    )
    assert change.verdict == expected
    for name, truth in (("new", after & ~before), ("resolved", before & ~after), ("persistent", before & after)):
        fate = change.fates[name]
        assert fate.ml == pytest.approx(truth.sum() * ml, abs=fate.noise_ml), name
    if day == "denser":
        assert change.fates["denser"].measurable
        assert change.density_change_hu > 60
    if day == "moved and a deeper breath":
        assert change.lung_change_percent == pytest.approx(5, abs=1)
        assert abs(change.density_change_hu) < 30


@pytest.mark.slow
def test_a_mirrored_scan_and_another_patient_are_refused(dates):
    baseline, _ = dates
    grid = baseline.volume.grid

    def mirrored(array):
        return np.ascontiguousarray(array[::-1])

    mirror = Timepoint(
        "mirror",
        Mask(mirrored(baseline.lungs.labels), grid, baseline.lungs.names),
        Mask(mirrored(baseline.truth.labels), grid, baseline.truth.names),
        Volume(mirrored(baseline.volume.hu), grid, grid),
        grid,
    )
    (other,) = scan_dates("B", 2, [], spacing_mm=(4.0, 6.0))
    for wrong in (mirror, dated(other)):
        with pytest.raises(InputError, match="another patient, or is one scan mirrored"):
            compare_dates(dated(baseline), wrong, COARSE)


@pytest.mark.slow
def test_the_same_dates_give_the_same_numbers(quick):
    first, second = (compare_dates(dated(quick[0]), dated(quick[1]), ROUGH) for _ in range(2))
    assert first.change == second.change
    assert np.array_equal(first.fates.labels, second.fates.labels)


@pytest.mark.slow
def test_several_dates_make_a_course(folders, tmp_path):
    result = compare_cases([folders[0], folders[1], folders[0]], tmp_path / "out", rules=ROUGH)
    assert [row["case"] for row in result.course] == ["day0", "day1", "day0"]
    assert result.course[2]["share_percent"] == result.course[0]["share_percent"]
    assert (tmp_path / "out" / "1_day1" / "change.nii.gz").is_file()
    assert "Time course" in (tmp_path / "out" / "report.html").read_text()


def test_a_resumed_comparison_registers_what_is_new_or_changed(folders, tmp_path, monkeypatch, caplog):
    from pneumoscope.cases import compare

    registered, compare_dates = [], compare.compare_dates
    second = shutil.copytree(folders[1], tmp_path / "day2")
    third = shutil.copytree(folders[1], tmp_path / "day3")
    dates = [folders[0], second, third]
    out = tmp_path / "out"

    def counted(baseline, later, *more, **options):
        registered.append(later.name)
        if len(registered) == 2:
            raise KeyboardInterrupt
        return compare_dates(baseline, later, *more, **options)

    monkeypatch.setattr(compare, "compare_dates", counted)
    with pytest.raises(KeyboardInterrupt):
        compare_cases(dates, out, rules=ROUGH)
    assert len(json.loads((out / "change.json").read_text())["changes"]) == 1
    with pytest.raises(InputError, match="an unfinished run"):
        compare_cases(dates, out, rules=ROUGH)
    result = compare_cases(dates, out, rules=ROUGH, resume=True)
    assert len(registered) == 3
    assert json.loads((out / "change.json").read_text()) == result.as_dict()
    compare_cases(dates, tmp_path / "again", rules=ROUGH)
    names = ("change.json", "report.html", "1_day1/change.nii.gz", "2_day1/view.html")
    assert all((out / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    mask = nib.load(third / "infiltrate.nii.gz")
    values = np.asanyarray(mask.dataobj).copy()
    values[values > 0] = 0
    nib.save(nib.Nifti1Image(values, mask.affine, mask.header), third / "infiltrate.nii.gz")
    registered.clear()
    changed = compare_cases(dates, out, rules=ROUGH, resume=True)
    assert len(registered) == 1
    assert "follow-up 2 (follow-up changed)" in caplog.text
    assert changed.changes[0] == result.changes[0]
    assert changed.changes[1].fates["persistent"].ml == 0
