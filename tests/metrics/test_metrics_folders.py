from __future__ import annotations

import json
import math
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from grids import build_grid
from pneumoscope.errors import InputError, RunError
from pneumoscope.geometry import Grid
from pneumoscope.io.write import write_mask
from pneumoscope.metrics import folders as folders_module
from pneumoscope.metrics.folders import COLUMNS, evaluate_folders, score_folders, score_masks
from pneumoscope.metrics.options import EvaluateOptions
from pneumoscope.metrics.overlap import count, mean_over_infected, score, slice_scores
from pneumoscope.metrics.pairs import find_pairs
from pneumoscope.metrics.surface import surface_scores
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask
from tables import rows_of

GRID = Grid.from_spacing((4, 5, 6), (0.5, 0.8, 1.2))
ML = 0.5 * 0.8 * 1.2 / 1000


def save(path, labels, names=INFILTRATE_LABEL, grid=GRID):
    """Stored flipped and permuted, so that nothing works by array order alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Mask(np.asarray(labels, np.uint8), grid, names)
    write_mask(mask, path, grid.reorient(("P", "L", "S")))
    return mask


@pytest.fixture
def folders(tmp_path, rng):
    """Three cases: one ordinary, one missed, one with nothing to find and nothing found."""
    some, other = (rng.random((2, 4, 5, 6)) < 0.3).astype(np.uint8)
    some[..., 0] = other[..., :2] = 0
    nothing = np.zeros_like(some)
    for case, pred, ref in (("a", some, other), ("b", nothing, other), ("c", nothing, nothing)):
        save(tmp_path / "pred" / f"{case}.nii.gz", pred)
        save(tmp_path / "ref" / f"{case}.nii.gz", ref)
    return tmp_path / "pred", tmp_path / "ref", some.astype(bool), other.astype(bool)


def test_rows_equal_the_plain_functions(folders):
    pred, ref, some, other = folders
    result = score_folders(pred, ref)
    row = result.rows[0]
    scores = score(count(some, other))
    slices = mean_over_infected(slice_scores(to_slices(some), to_slices(other)))
    assert (row["case"], row["label"]) == ("a", "infiltrate")
    for name in ("dice", "iou", "precision", "recall", "specificity", "accuracy", "f1"):
        assert row[name] == getattr(scores, name), name
    assert row["slice_f1"] == slices.f1
    assert row["slices_infected"] == slices.n_slices
    assert row["reference_ml"] == pytest.approx(other.sum() * ML)
    assert tuple(row) == COLUMNS


def test_empty_cases_are_counted_apart(folders):
    result = score_folders(*folders[:2])
    assert [row["empty"] for row in result.rows] == ["", "prediction", "both"]
    assert [row["dice"] for row in result.rows][1:] == [0.0, 1.0]
    assert math.isnan(result.rows[2]["slice_f1"])
    label = result.summary["labels"]["infiltrate"]
    assert (label["cases"], label["n_both_empty"], label["n_missed"], label["n_false_alarms"]) == (3, 1, 1, 0)
    assert label["dice"]["mean"] == pytest.approx((result.rows[0]["dice"] + 0 + 1) / 3)
    assert label["slice_mean"]["n_slices"] == result.rows[0]["slices_infected"] + result.rows[1]["slices_infected"]
    assert label["slice_mean"]["n_missed"] >= result.rows[1]["slices_infected"]


def test_swapped_sides_are_false_alarms(folders):
    pred, ref = folders[:2]
    assert score_folders(ref, pred).summary["labels"]["infiltrate"]["n_false_alarms"] == 1


def test_files_are_written(folders, tmp_path):
    summary = evaluate_folders(*folders[:2], tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == ["per_case.csv", "summary.json"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["cases"] == summary["cases"] == 3
    rows = rows_of(tmp_path / "out" / "per_case.csv")
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert rows[2]["slice_f1"] == ""
    assert float(rows[0]["dice"]) == pytest.approx(summary["labels"]["infiltrate"]["dice_pooled"], abs=1)
    with pytest.raises(InputError, match="already holds a run"):
        evaluate_folders(*folders[:2], tmp_path / "out")
    evaluate_folders(*folders[:2], tmp_path / "out", overwrite=True)


def test_names_of_any_length_and_encoding_are_scored_and_resumed(folders, tmp_path, caplog):
    pred, ref = folders[:2]
    for name in ("\u80ba" * 80, "M\udcfcller", "Doe, Jane"):
        for side in (pred, ref):
            shutil.copy(side / "a.nii.gz", side / f"{name}.nii.gz")
    evaluate_folders(pred, ref, tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "per_case.csv")
    assert {row["case"] for row in rows} == {"a", "b", "c", "\u80ba" * 80, r"M\xfcller", "Doe, Jane"}
    evaluate_folders(pred, ref, tmp_path / "out", resume=True)
    assert "6 of 6 done before are kept" in caplog.text


def test_cases_that_fail_are_named_and_the_others_written(folders, tmp_path):
    pred, ref, some, _ = folders
    (pred / "b.nii.gz").unlink()
    save(pred / "d.nii.gz", some)
    shifted = Grid.from_spacing((4, 5, 6), (0.5, 0.8, 1.2), (0, 0, 0.6))
    save(pred / "c.nii.gz", some, grid=shifted)
    (ref / "e.nii.gz").write_bytes(b"no image")
    save(pred / "e.nii.gz", some)
    with pytest.raises(RunError, match="4 of 5 cases could not be scored, first b: no pred") as caught:
        evaluate_folders(pred, ref, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert caught.value.summary["failures"] == summary["failures"]
    assert [(f["case"], f["kind"]) for f in summary["failures"]] == [
        ("b", "InputError"), ("c", "GeometryError"), ("d", "InputError"), ("e", "ReadError"),
    ]  # fmt: skip
    assert "another grid" in summary["failures"][1]["message"]
    assert "no reference for the prediction" in summary["failures"][2]["message"]
    assert summary["cases"] == 1


def test_slices_are_axial_from_the_feet_up(rng):
    found, drawn = (rng.random((2, 4, 5, 6)) < 0.4).astype(np.uint8)
    counts, slices = score_masks(Mask(found, GRID, INFILTRATE_LABEL), Mask(drawn, GRID, INFILTRATE_LABEL))
    assert counts == count(found > 0, drawn > 0)
    assert [s.counts for s in slices] == [count(found[..., k] > 0, drawn[..., k] > 0) for k in range(6)]


def test_several_labels_are_scored_apart_and_together(tmp_path, rng):
    found, drawn = rng.integers(0, 3, (2, 4, 5, 6))
    save(tmp_path / "p.nii.gz", found, LUNG_LABELS)
    save(tmp_path / "r.nrrd", drawn, LUNG_LABELS)
    rows = {row["label"]: row for row in score_folders(tmp_path / "p.nii.gz", tmp_path / "r.nrrd").rows}
    assert list(rows) == ["right lung", "left lung", "any"]
    assert rows["left lung"]["dice"] == score(count(found == 2, drawn == 2)).dice
    assert rows["any"]["dice"] == score(count(found > 0, drawn > 0)).dice
    assert {row["case"] for row in rows.values()} == {"r"}


def test_labels_of_another_meaning_are_refused(tmp_path, rng):
    labels = rng.integers(0, 3, (4, 5, 6))
    save(tmp_path / "p.nii.gz", labels, LUNG_LABELS)
    save(tmp_path / "r.nii.gz", labels, {1: "left lung", 2: "right lung"})
    result = score_folders(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")
    assert "label 1 is 'right lung' in the prediction, 'left lung' in the reference" in result.failures[0]["message"]
    assert result.rows == ()


def test_one_side_that_does_not_tell_kinds_apart_is_compared_as_a_whole(tmp_path, rng):
    labels = rng.integers(0, 3, (4, 5, 6))
    save(tmp_path / "p.nii.gz", labels > 0, INFILTRATE_LABEL)
    save(tmp_path / "r.nii.gz", labels, INFILTRATE_LABELS)
    rows = score_folders(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz").rows
    assert [row["label"] for row in rows] == ["any"]
    assert rows[0]["dice"] == 1.0


def test_spacing_of_the_user_counts_for_volumes(folders):
    pred, ref, _, other = folders
    row = score_folders(pred, ref, EvaluateOptions(spacing_mm=(1, 1, 2))).rows[0]
    assert row["reference_ml"] == pytest.approx(other.sum() * 0.002)
    for wrong in ((1, 1), (1, 1, 0), (1, 1, math.nan)):
        with pytest.raises(InputError, match="three positive numbers"):
            score_folders(pred, ref, EvaluateOptions(spacing_mm=wrong))


def test_progress_is_told(folders):
    told = []
    score_folders(*folders[:2], progress=lambda *call: told.append(call))
    assert told == [("evaluate", 0, 3, "a"), ("evaluate", 1, 3, "b"), ("evaluate", 2, 3, "c"), ("evaluate", 3, 3)]


def test_surfaces_are_measured_in_mm_of_the_grid(folders):
    pred, ref, some, other = folders
    row = score_folders(pred, ref).rows[0]
    scores = surface_scores(some, other, (0.5, 0.8, 1.2), 3.0)
    assert (row["nsd"], row["hd95"], row["msd"]) == pytest.approx((scores.nsd, scores.hd95_mm, scores.msd_mm))
    assert row["surface_tolerance_mm"] == 3.0
    row = score_folders(pred, ref, EvaluateOptions(spacing_mm=(1, 1, 2), surface_tolerance_mm=0.5)).rows[0]
    assert row["nsd"] == pytest.approx(surface_scores(some, other, (1, 1, 2), 0.5).nsd)
    assert row["surface_tolerance_mm"] == 0.5
    for wrong in (-1, math.nan, math.inf):
        with pytest.raises(InputError, match="tolerance"):
            score_folders(pred, ref, EvaluateOptions(surface_tolerance_mm=wrong))


def test_a_missed_case_never_shortens_distances(folders, tmp_path):
    summary = evaluate_folders(*folders[:2], tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "per_case.csv")
    assert [(row["nsd"] == "0", row["hd95"], row["msd"]) for row in rows[1:]] == [
        (True, "inf", "inf"),  # b: missed
        (False, "", ""),  # c: nothing to find, nothing found
    ]
    label = json.loads((tmp_path / "out" / "summary.json").read_text())["labels"]["infiltrate"]
    assert label["n_infinite"] == 1
    assert label["hd95"]["mean"] == pytest.approx(float(rows[0]["hd95"]), abs=1e-6)
    assert label["nsd"]["mean"] == pytest.approx(float(rows[0]["nsd"]) / 2, abs=1e-6)
    assert label["hd95"]["median"] is None  # half way to infinity
    assert summary["labels"]["infiltrate"]["hd95"]["median"] == math.inf


@pytest.mark.parametrize(
    ("names", "structure", "expected"),
    [
        (INFILTRATE_LABELS, "infiltrate", {"ground-glass": 3.0, "consolidation": 3.0, "any": 3.0}),
        (LUNG_LABELS, "infiltrate", {"right lung": 1.0, "left lung": 1.0, "any": 1.0}),
        ({1: "left lung", 2: "infection"}, "lungs", {"left lung": 1.0, "infection": 3.0, "any": 3.0}),
        ({1: "label 1", 2: "label 2"}, "lungs", {"label 1": 1.0, "label 2": 1.0, "any": 1.0}),
    ],
)
def test_tolerance_goes_by_structure(tmp_path, rng, names, structure, expected):
    save(tmp_path / "p.nii.gz", rng.integers(0, 3, (4, 5, 6)), names)
    save(tmp_path / "r.nii.gz", rng.integers(0, 3, (4, 5, 6)), names)
    rows = score_folders(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", EvaluateOptions(structure=structure)).rows
    assert {row["label"]: row["surface_tolerance_mm"] for row in rows} == expected


def test_a_scan_of_one_slice_is_scored_by_its_contour(tmp_path, rng):
    flat = Grid.from_spacing((4, 5, 1), (0.5, 0.8, 10.0))
    found, drawn = (rng.random((2, 4, 5, 1)) < 0.4).astype(np.uint8)
    save(tmp_path / "p.nii.gz", found, grid=flat)
    save(tmp_path / "r.nii.gz", drawn, grid=flat)
    row = score_folders(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", EvaluateOptions(surface_tolerance_mm=0.6)).rows[0]
    expected = surface_scores(found[..., 0] > 0, drawn[..., 0] > 0, (0.5, 0.8), 0.6)
    assert (row["nsd"], row["hd95"]) == pytest.approx((expected.nsd, expected.hd95_mm))


def test_a_tilted_gantry_is_measured_in_the_world(tmp_path, rng):
    grid = build_grid(shear=0.3)
    found, drawn = (rng.random((2, 4, 5, 6)) < 0.4).astype(np.uint8)
    save(tmp_path / "p.nrrd", found, grid=grid)
    save(tmp_path / "r.nrrd", drawn, grid=grid)
    row = score_folders(tmp_path / "p.nrrd", tmp_path / "r.nrrd", EvaluateOptions(surface_tolerance_mm=0.6)).rows[0]
    expected = surface_scores(found > 0, drawn > 0, grid.affine[:3, :3], 0.6)
    assert row["nsd"] == pytest.approx(expected.nsd)
    assert row["nsd"] != pytest.approx(surface_scores(found > 0, drawn > 0, grid.spacing_mm, 0.6).nsd)


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def names(pairs, root):
    return [
        (p.case, *(None if f is None else f.relative_to(root).as_posix() for f in (p.prediction, p.reference)))
        for p in pairs
    ]


def test_pairs_by_name_whatever_the_format(tmp_path):
    pred = touch(tmp_path / "p", "a.nii.gz", "sub/b.nrrd", "a.txt", ".tmp-1-c.nii.gz", "case.v2.nii")
    ref = touch(tmp_path / "r", "a.nrrd", "sub/b.mha", "case.v2.nii.gz")
    assert names(find_pairs(pred, ref), tmp_path) == [
        ("a", "p/a.nii.gz", "r/a.nrrd"),
        ("case.v2", "p/case.v2.nii", "r/case.v2.nii.gz"),
        ("sub/b", "p/sub/b.nrrd", "r/sub/b.mha"),
    ]


def test_pairs_of_case_folders_with_a_flat_reference(tmp_path):
    written = ("lungs", "infiltrate", "probability", "registration", "uncertainty-entropy", "uncertainty-variance")
    pred = touch(tmp_path / "p", *(f"{c}/{s}.nii.gz" for c in "ab" for s in written))
    ref = touch(tmp_path / "r", "a.nii.gz", "b.nii.gz")
    assert names(find_pairs(pred, ref), tmp_path) == [
        ("a", "p/a/infiltrate.nii.gz", "r/a.nii.gz"),
        ("b", "p/b/infiltrate.nii.gz", "r/b.nii.gz"),
    ]
    assert find_pairs(pred, ref, structure="lungs")[1].prediction == pred / "b" / "lungs.nii.gz"
    both = find_pairs(pred, pred)
    assert [p.case for p in both] == ["a/infiltrate", "a/lungs", "b/infiltrate", "b/lungs"]


def test_pairs_without_mask_endings_where_unmistakable(tmp_path):
    pred = touch(tmp_path / "p", "x.nii", "y.nii", "z.nii")
    ref = touch(tmp_path / "r", "x_mask.nii", "y_mask.nii", "y_seg.nii", "z.nii")
    assert names(find_pairs(pred, ref), tmp_path) == [
        ("x", "p/x.nii", "r/x_mask.nii"), ("y", "p/y.nii", None), ("y_mask", None, "r/y_mask.nii"),
        ("y_seg", None, "r/y_seg.nii"), ("z", "p/z.nii", "r/z.nii"),
    ]  # fmt: skip


def test_unusable_folders_are_refused(tmp_path):
    pred = touch(tmp_path / "p", "a.nii")
    for call, message in (
        (lambda: find_pairs(tmp_path / "nowhere", pred), "does not exist"),
        (lambda: find_pairs(pred, pred / "a.nii"), "is a folder, the reference a file"),
        (lambda: find_pairs(pred, touch(tmp_path / "r", "b.nii")), "no case in common"),
        (lambda: find_pairs(pred, touch(tmp_path / "e", "notes.txt")), "holds no masks"),
        (lambda: find_pairs(pred, touch(tmp_path / "d", "a.nii", "a.nii.gz")), "same case name"),
        (lambda: find_pairs(pred, pred, structure="heart"), "one of infiltrate, lungs"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_case_name_is_never_taken_for_a_formula(folders, tmp_path):
    pred, ref = folders[:2]
    for folder in (pred, ref):
        (folder / "a.nii.gz").rename(folder / "=1+1.nii.gz")
    evaluate_folders(pred, ref, tmp_path / "out")
    assert "\n'=1+1," in (tmp_path / "out" / "per_case.csv").read_text()


LOBES = {
    1: "right upper lobe", 2: "right middle lobe", 3: "right lower lobe", 4: "left upper lobe", 5: "left lower lobe",
}  # fmt: skip
SIDES_OF_LOBES = np.array([0, 1, 1, 1, 2, 2], np.uint8)


def unnamed(path, labels):
    """As other programs write masks: numbers without meaning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.asarray(labels, np.uint8).transpose(2, 1, 0))
    image.SetSpacing(GRID.spacing_mm)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # SimpleITK counts in LPS
    sitk.WriteImage(image, str(path))


def named(names):
    return lambda path, labels: save(path, labels, names)


@pytest.mark.parametrize("turned", [False, True], ids=["prediction", "reference"])
@pytest.mark.parametrize(
    ("write", "other", "merge"),
    [
        (named(LUNG_LABELS), unnamed, np.array([0, 1, 1])),
        (unnamed, unnamed, np.array([0, 1, 1])),
        (named(LUNG_LABELS), named({1: "lung"}), np.array([0, 1, 1])),
        (unnamed, named(INFILTRATE_LABEL), np.array([0, 1, 1])),
        (named(INFILTRATE_LABELS), unnamed, np.array([0, 1, 1])),
        (named(LOBES), named(LUNG_LABELS), SIDES_OF_LOBES),
        (unnamed, named(LUNG_LABELS), SIDES_OF_LOBES),
        (named(LOBES), unnamed, SIDES_OF_LOBES),
        (unnamed, unnamed, SIDES_OF_LOBES),
        (unnamed, unnamed, np.minimum(np.arange(6), 1)),
    ],
)  # fmt: skip
def test_parts_that_one_side_does_not_tell_apart_are_scored_as_one(tmp_path, rng, write, other, merge, turned):
    parts = rng.permutation(np.resize(np.arange(len(merge)), 120)).reshape(4, 5, 6)
    fine, coarse = ("ref", "pred") if turned else ("pred", "ref")
    write(tmp_path / fine / "a.nii.gz", parts)
    other(tmp_path / coarse / "a.nii.gz", merge[parts])
    result = score_folders(tmp_path / "pred", tmp_path / "ref")
    assert [(row["label"], row["dice"]) for row in result.rows] == [("any", 1.0)]
    assert "scored as one structure only" in result.rows[0]["note"]
    assert result.summary["scored_as_one"] == {"a": result.rows[0]["note"]}
    assert list(result.summary["labels"]) == ["any"]


def test_a_case_without_one_kind_is_known_by_the_others_of_its_folder(tmp_path, rng):
    """Only case a lacks label 2, and case c any: both folders tell kinds apart all the same."""
    for case in "abc":
        labels = rng.integers(0, 3, (4, 5, 6)) * (case != "c")
        named(INFILTRATE_LABELS)(tmp_path / "pred" / f"{case}.nii.gz", rng.integers(0, 3, (4, 5, 6)))
        unnamed(tmp_path / "ref" / f"{case}.nii.gz", np.where((labels == 2) & (case == "a"), 0, labels))
    result = score_folders(tmp_path / "pred", tmp_path / "ref")
    assert [row["label"] for row in result.rows] == ["ground-glass", "consolidation", "any"] * 3
    consolidation = [row for row in result.rows if row["label"] == "consolidation"]
    assert [row["empty"] for row in consolidation] == ["reference", "", "reference"]
    assert result.summary["scored_as_one"] == {}


def test_a_side_without_any_voxel_misses_every_part(tmp_path, rng):
    named(LUNG_LABELS)(tmp_path / "ref" / "a.nii.gz", np.resize([0, 1, 2], (4, 5, 6)))
    unnamed(tmp_path / "pred" / "a.nii.gz", np.zeros((4, 5, 6)))
    rows = score_folders(tmp_path / "pred", tmp_path / "ref").rows
    assert [(row["label"], row["dice"], row["empty"]) for row in rows] == [
        (label, 0.0, "prediction") for label in ("right lung", "left lung", "any")
    ]


def test_one_name_in_two_spellings_and_a_side_that_is_not_there(tmp_path, rng):
    labels = np.resize([0, 1, 2], (4, 5, 6))
    named(LUNG_LABELS)(tmp_path / "pred" / "a.nii.gz", labels)
    named({1: "Lung_Right", 2: "lung-left"})(tmp_path / "ref" / "a.nii.gz", labels)
    named({1: "right lung"})(tmp_path / "pred" / "b.nii.gz", labels == 1)
    named(LUNG_LABELS)(tmp_path / "ref" / "b.nii.gz", labels)
    rows = score_folders(tmp_path / "pred", tmp_path / "ref").rows
    assert [(row["case"], row["label"], row["dice"]) for row in rows if row["label"] != "any"] == [
        ("a", "Lung_Right", 1.0), ("a", "lung-left", 1.0), ("b", "right lung", 1.0), ("b", "left lung", 0.0),
    ]  # fmt: skip


def test_an_effusion_beside_kinds_of_infiltrate_is_a_label_of_its_own(tmp_path, rng):
    labels = np.resize([0, 1, 2, 3], (4, 5, 6))
    named(INFILTRATE_LABELS)(tmp_path / "pred" / "a.nii.gz", np.where(labels == 3, 0, labels))
    unnamed(tmp_path / "ref" / "a.nii.gz", labels)
    rows = {row["label"]: row["dice"] for row in score_folders(tmp_path / "pred", tmp_path / "ref").rows}
    assert (rows["ground-glass"], rows["consolidation"], rows["label 3"]) == (1.0, 1.0, 0.0)


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scored(monkeypatch):
    """Names of the cases that are scored, as they are."""
    names, score = [], folders_module._score_pair
    monkeypatch.setattr(
        folders_module, "_score_pair", lambda pair, *more: names.append(pair.case) or score(pair, *more)
    )
    return names


def outputs(out):
    return [(out / name).read_bytes() for name in ("per_case.csv", "summary.json")]


def test_a_resumed_evaluation_scores_what_is_new_or_changed(folders, tmp_path, scored, caplog):
    pred, ref, some, _ = folders
    evaluate_folders(pred, ref, tmp_path / "out")
    before = outputs(tmp_path / "out")
    assert scored == ["a", "b", "c"]
    evaluate_folders(pred, ref, tmp_path / "out", resume=True)
    assert scored == ["a", "b", "c"]
    assert outputs(tmp_path / "out") == before, "numbers come back to the bit, NaN and infinity too"
    save(pred / "b.nii.gz", some)
    evaluate_folders(pred, ref, tmp_path / "out", resume=True)
    assert scored[3:] == ["b"]
    assert "b (prediction changed)" in caplog.text
    evaluate_folders(pred, ref, tmp_path / "again")
    assert outputs(tmp_path / "again") == outputs(tmp_path / "out")
    evaluate_folders(pred, ref, tmp_path / "out", EvaluateOptions(spacing_mm=(1, 1, 2)), resume=True)
    assert scored[-3:] == ["a", "b", "c"]


def test_an_interrupted_evaluation_leaves_its_tables_and_resumes(folders, tmp_path, scored, monkeypatch):
    score = folders_module._score_pair

    def interrupted(pair, *more):
        if pair.case == "c":
            raise KeyboardInterrupt
        return score(pair, *more)

    with monkeypatch.context() as patch:
        patch.setattr(folders_module, "_score_pair", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_folders(*folders[:2], tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["finished"], summary["cases"]) == (False, 2)
    with pytest.raises(InputError, match="an unfinished run"):
        evaluate_folders(*folders[:2], tmp_path / "out")
    evaluate_folders(*folders[:2], tmp_path / "out", resume=True)
    assert scored == ["a", "b", "c"]
    evaluate_folders(*folders[:2], tmp_path / "again")
    assert outputs(tmp_path / "again") == outputs(tmp_path / "out")


def test_labels_that_only_other_files_tell_count_for_a_resume(tmp_path, scored):
    """Of files without names, 1 alone is both lungs, and beside 2 the right one: the other files decide."""
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    right, left = np.zeros((2, 4, 5, 6), np.uint8)
    right[:2], left[2:] = 1, 2
    for folder in (pred, ref):
        folder.mkdir()
    for side, labels in ((pred, right), (ref, right + left)):
        nib.save(nib.Nifti1Image(labels, np.eye(4)), side / "a.nii.gz")
    for side in (pred, ref):
        nib.save(nib.Nifti1Image(right, np.eye(4)), side / "b.nii.gz")
    evaluate_folders(pred, ref, tmp_path / "out", EvaluateOptions(structure="lungs"))
    nib.save(nib.Nifti1Image(right + left, np.eye(4)), pred / "b.nii.gz")
    scored.clear()
    evaluate_folders(pred, ref, tmp_path / "out", EvaluateOptions(structure="lungs"), resume=True)
    assert scored == ["a", "b"], "b shows that predictions know a left lung, so a's is missing"
    evaluate_folders(pred, ref, tmp_path / "again", EvaluateOptions(structure="lungs"))
    assert outputs(tmp_path / "again") == outputs(tmp_path / "out")
