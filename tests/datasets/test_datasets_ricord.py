"""RICORD 1a on small made copies: a phantom's exact infiltrate, drawn as contours, must come back where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trees_more as trees

from pneumoscope.datasets.public.ricord import read_ricord_cases, survey
from pneumoscope.datasets.registry import read_dataset
from pneumoscope.errors import DatasetError, ReadError


@pytest.fixture(autouse=True)
def _in_process(request):
    """All but the first test read in this process."""
    if not request.node.name.endswith("truth[tcia]"):
        request.getfixturevalue("in_process")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A TCIA copy of two patients, never changed."""
    root = tmp_path_factory.mktemp("whole") / "data"
    return root, trees.ricord(root)


@pytest.fixture
def one(tmp_path):
    """One series, written by `write_series` and annotated by the test."""
    return trees.made_series(0, tmp_path / "scratch")


def drawn(scan) -> np.ndarray:
    """The infiltrate as (rows, columns, slices) of DICOM."""
    native = scan.volume.grid.reorient(("L", "P", "S"))
    return np.transpose(scan.infiltrate.to_native(native), (1, 0, 2)) > 0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def put(root: Path, made, annotations, **options) -> Path:
    trees.write_series(made, root, **options)
    trees.write_export(root / trees.ANNOTATIONS, annotations, [made])
    return root


def load(root: Path, made, annotations, **options):
    (case,) = read_ricord_cases(put(root, made, annotations), **options)
    return case.load()


def codes(scan) -> dict[str, str]:
    return {finding.code: finding.message for finding in scan.volume.findings}


BOX = {"x": 10, "y": 20, "width": 4, "height": 3}
SQUARE = [[10, 20], [14, 20], [14, 23], [10, 23]]


def square(k: int, made) -> np.ndarray:
    mask = np.zeros(made.truth.shape, bool)
    mask[20:23, 10:14, k] = True
    return mask


@pytest.mark.parametrize("layout", ["tcia", "mdai"])
def test_contours_of_the_truth_come_back_as_the_truth(layout, whole, tmp_path):
    root, all_made = whole if layout == "tcia" else (tmp_path / "data", trees.ricord(tmp_path / "data", layout="mdai"))
    cases = read_dataset("ricord", root)
    assert len(cases) == 2
    for case, made in zip(cases, all_made, strict=True):
        scan = case.load()
        assert made.truth.sum() > 50
        assert dice(drawn(scan), made.truth) > 0.97
        np.testing.assert_array_equal(scan.volume.hu, np.maximum(made.volume.hu, -1024))
        assert scan.volume.grid.is_same_space(made.volume.grid)
        assert scan.lungs is None
        assert dict(scan.infiltrate.names) == {1: "infiltrate"}


def test_what_a_case_says_of_itself(whole):
    root, (first, _) = whole
    case = read_ricord_cases(root)[0]
    digits = "".join(filter(str.isdigit, first.series))
    assert (case.patient, case.source, case.date) == ("MIDRC-RICORD-1A-660042-000100", "660042", "")
    assert case.case == f"{case.patient}_{digits[-5:]}"
    assert case.files is None
    assert "CC BY-NC" in case.licence


def test_any_folder_from_the_collection_up_will_do(whole):
    root, _ = whole
    manifest = root / "manifest-1612365584013"
    names = [case.case for case in read_ricord_cases(root)]
    for folder in (manifest, manifest / "MIDRC-RICORD-1A"):
        assert [case.case for case in read_ricord_cases(folder)] == names
    patient = manifest / "MIDRC-RICORD-1A" / "MIDRC-RICORD-1A-660042-000100"
    assert [case.case for case in read_ricord_cases(patient)] == names[:1]


def test_the_patient_of_an_mdai_copy_is_the_public_subject_and_nothing_else(one, tmp_path):
    root = put(tmp_path / "data", one, trees.truth_annotations(one), layout="mdai")
    assert read_ricord_cases(root)[0].patient == one.subject
    for data in one.slices:
        data.PatientID = "DOE^JOHN 1970"
    shutil.rmtree(root)
    put(root, one, trees.truth_annotations(one), layout="mdai")
    (case,) = read_ricord_cases(root)
    assert case.patient.startswith("ct-")
    assert "DOE" not in repr(case)
    assert one.study not in repr((case.case, case.patient))


def test_order_of_files_does_not_matter(one, tmp_path):
    """Names from the head down, from the feet up and shuffled, all the same picture."""
    order = np.random.default_rng(1).permutation(len(one.slices))
    for n, names in enumerate((None, "{:03d}".format, lambda k: f"{order[k]:03d}")):
        root = tmp_path / str(n)
        put(root, one, trees.truth_annotations(one), names=names)
        np.testing.assert_array_equal(drawn(read_ricord_cases(root)[0].load()), one.truth)


def test_a_series_stored_from_the_head_down_with_reversed_axes(one, tmp_path):
    """Rows towards the front, columns to the right: each picture turned by half, its contours with it."""
    rows, columns, _ = one.truth.shape
    for data in one.slices:
        position = np.array([float(x) for x in data.ImagePositionPatient])
        axes = np.array([float(x) for x in data.ImageOrientationPatient]).reshape(2, 3)
        step_rows, step_columns = (float(x) for x in data.PixelSpacing)
        far = position + axes[0] * (columns - 1) * step_columns + axes[1] * (rows - 1) * step_rows
        data.ImagePositionPatient = [f"{x:.6f}" for x in far]
        data.ImageOrientationPatient = [f"{x:g}" for x in -axes.ravel()]
        data.PixelData = np.ascontiguousarray(data.pixel_array[::-1, ::-1]).tobytes()
    turned = one.truth[::-1, ::-1]
    annotations = [
        trees.annotation(one, k, "L_10", {"vertices": outline})
        for k in range(turned.shape[2])
        for outline in trees.contours(turned[:, :, k])
    ]
    scan = load(tmp_path, one, annotations)
    np.testing.assert_array_equal(drawn(scan), one.truth)
    np.testing.assert_array_equal(scan.volume.hu, np.maximum(one.volume.hu, -1024))


def test_labels_count_by_name_in_every_group_and_others_are_reported(one, tmp_path):
    data = {"vertices": SQUARE}
    annotations = [
        trees.annotation(one, 1, "L_10", data),  # Infectious opacity, team 1
        trees.annotation(one, 2, "L_20", data),  # the same name, team 2
        trees.annotation(one, 3, "L_21", data),  # Infectious TIB/micronodules
        trees.annotation(one, 4, "L_12", data),  # Infectious cavity
        trees.annotation(one, 5, "L_24", data),  # Atelectasis
        trees.annotation(one, 6, "L_14", data),
        trees.annotation(one, 6, "L_unknown", data),
    ]
    scan = load(tmp_path, one, annotations)
    np.testing.assert_array_equal(drawn(scan), square(1, one) | square(2, one) | square(3, one))
    assert "2 Atelectasis, 1 Infectious cavity, 1 without a name" in codes(scan)["IN-SET-114"]


def test_a_series_with_other_things_only_has_an_empty_infiltrate(one, tmp_path):
    scan = load(tmp_path, one, [trees.annotation(one, 1, "L_14", {"vertices": SQUARE})])
    assert scan.infiltrate is not None
    assert not scan.infiltrate.any.any()


def readers(one):
    small, wide = [[10, 20], [12, 20], [12, 23], [10, 23]], SQUARE
    shapes = {"U_one": small, "U_two": wide, "U_three": wide}
    return [trees.annotation(one, 1, "L_10", {"vertices": v}, createdById=who) for who, v in shapes.items()]


def test_readers_are_joined_outvoted_or_chosen(one, tmp_path):
    annotations = readers(one)
    narrow = square(1, one)
    narrow[:, 12:] = False
    joined = load(tmp_path / "a", one, annotations)
    np.testing.assert_array_equal(drawn(joined), square(1, one))
    assert codes(joined)["IN-SET-115"].startswith("3 readers")
    np.testing.assert_array_equal(drawn(load(tmp_path / "b", one, annotations, readers="majority")), square(1, one))
    np.testing.assert_array_equal(drawn(load(tmp_path / "c", one, annotations, readers="U_one")), narrow)
    half = drawn(load(tmp_path / "d", one, annotations[:2], readers="majority"))  # one of two is no majority
    np.testing.assert_array_equal(half, narrow)


def test_a_reader_who_found_nothing_infectious_has_a_vote(one, tmp_path):
    annotations = [*readers(one)[:1], trees.annotation(one, 2, "L_14", {"vertices": SQUARE}, createdById="U_two")]
    assert not drawn(load(tmp_path, one, annotations, readers="majority")).any()


def test_an_unknown_reader_lists_the_known(one, tmp_path):
    root = put(tmp_path, one, readers(one))
    with pytest.raises(DatasetError, match=r"no reader 'Emily'.*union, majority or one of U_one, U_three, U_two"):
        read_ricord_cases(root, readers="Emily")


def test_series_a_reader_did_not_see_are_left_out(whole, tmp_path):
    root, (first, second) = whole
    copy = shutil.copytree(root, tmp_path / "data")
    annotations = [*trees.truth_annotations(first)]
    annotations += [entry | {"createdById": "U_two"} for entry in trees.truth_annotations(second)]
    trees.write_export(copy / "manifest-1612365584013" / trees.ANNOTATIONS, annotations, [first, second])
    assert [case.patient for case in read_ricord_cases(copy, readers="U_two")] == [second.subject]


def test_null_data_and_null_vertices_are_left_out_and_counted(one, tmp_path):
    bad = [None, {}, {"vertices": None}, {"vertices": []}, {"vertices": [[1, None], [2, 3], [4, 5]]}]
    annotations = [trees.annotation(one, 2, "L_10", data) for data in bad]
    annotations.append(trees.annotation(one, 1, "L_10", {"vertices": SQUARE}))
    scan = load(tmp_path, one, annotations)
    np.testing.assert_array_equal(drawn(scan), square(1, one))
    assert codes(scan)["IN-SET-112"] == "5 of 6 drawings of infiltrate left out: without data"


def test_flat_vertices_boxes_and_filled_masks(one, tmp_path):
    flat = [number for pair in SQUARE for number in pair]
    inner = [[11, 21], [12, 21], [12, 22], [11, 22]]
    filled = {"foreground": [SQUARE], "background": [inner]}
    annotations = [
        trees.annotation(one, 1, "L_10", {"vertices": flat}),
        trees.annotation(one, 2, "L_10", BOX, annotationMode="bbox"),
        trees.annotation(one, 3, "L_10", filled, annotationMode="mask"),
        trees.annotation(one, 4, "L_10", {"vertices": SQUARE}, annotationMode="polygon"),
    ]
    scan = load(tmp_path, one, annotations)
    expected = square(1, one) | square(2, one) | square(3, one) | square(4, one)
    expected[21, 11, 3] = False
    np.testing.assert_array_equal(drawn(scan), expected)
    assert codes(scan)["IN-SET-113"].startswith("1 drawings are boxes")


def test_points_lines_and_drawings_on_pictures_of_another_size_have_no_area(one, tmp_path):
    annotations = [
        trees.annotation(one, 1, "L_10", {"x": 3, "y": 4}, annotationMode="location"),
        trees.annotation(one, 1, "L_10", {"vertices": SQUARE}, annotationMode="line"),
        trees.annotation(one, 1, "L_10", {"vertices": SQUARE[:2]}),
        trees.annotation(one, 2, "L_10", {"vertices": SQUARE}, height=512, width=512),
        trees.annotation(one, 3, "L_10", {"foreground": None, "background": None}, annotationMode="mask"),
    ]
    scan = load(tmp_path, one, annotations)
    assert not drawn(scan).any()
    messages = [finding.message for finding in scan.volume.findings if finding.code == "IN-SET-112"]
    assert messages == [
        "3 of 5 drawings of infiltrate left out: without an area",
        "1 of 5 drawings of infiltrate left out: drawn on a picture of another size",
        "1 of 5 drawings of infiltrate left out: without data",
    ]


def test_images_that_the_series_does_not_hold_are_counted(one, tmp_path):
    annotations = [
        trees.annotation(one, 1, "L_10", {"vertices": SQUARE}),
        trees.annotation(one, 2, "L_10", {"vertices": SQUARE}, SOPInstanceUID="1.2.3"),
        trees.annotation(one, 3, "L_10", {"vertices": SQUARE}, SOPInstanceUID="1.2.4"),
    ]
    scan = load(tmp_path, one, annotations)
    np.testing.assert_array_equal(drawn(scan), square(1, one))
    assert codes(scan)["IN-SET-111"].startswith("2 of 3 drawings of infiltrate left out: on images that")


def test_exam_labels_without_series_draw_nothing(whole):
    root, all_made = whole
    found = survey(root)
    assert set(found.export.drawings) == {made.series for made in all_made}


def test_an_image_that_is_there_twice_counts_once(one, tmp_path):
    """A download repeated into another manifest folder: drawings on either copy land on the one slice."""
    put(tmp_path, one, trees.truth_annotations(one))
    trees.write_series(one, tmp_path / "manifest-2")
    (case,) = read_ricord_cases(tmp_path)
    scan = case.load()
    np.testing.assert_array_equal(drawn(scan), one.truth)
    assert "IN-DCM-008" in codes(scan)


def test_series_without_drawings_are_left_out_or_listed(whole, tmp_path):
    root, (first, second) = whole
    copy = shutil.copytree(root, tmp_path / "data")
    path = copy / "manifest-1612365584013" / trees.ANNOTATIONS
    trees.write_export(path, trees.truth_annotations(first), [first, second])
    assert [case.patient for case in read_ricord_cases(copy)] == [first.subject]
    plain = read_ricord_cases(copy, unannotated=True)[1]
    assert plain.patient == second.subject
    assert plain.load().infiltrate is None


def test_annotated_series_that_are_not_on_disk_are_known(whole, tmp_path):
    root, (first, second) = whole
    copy = shutil.copytree(root, tmp_path / "data")
    shutil.rmtree(copy / "manifest-1612365584013" / "MIDRC-RICORD-1A" / second.subject)
    assert [case.patient for case in read_ricord_cases(copy)] == [first.subject]
    assert survey(copy).missing == (second.series,)
    note = codes(read_ricord_cases(copy)[0].load())["IN-SET-117"]
    assert note == "1 of the 2 annotated series of this dataset are not in the folder"
    assert "IN-SET-117" not in codes(read_ricord_cases(root)[0].load())
    shutil.rmtree(copy / "manifest-1612365584013" / "MIDRC-RICORD-1A" / first.subject)
    with pytest.raises(DatasetError, match="holds no CT image"):
        read_ricord_cases(copy)


def test_images_of_another_set_are_not_taken_for_it(whole, one, tmp_path):
    root, _ = whole
    copy = shutil.copytree(root, tmp_path / "data")
    path = copy / "manifest-1612365584013" / trees.ANNOTATIONS
    held = json.loads(path.read_text())
    for entry in held["datasets"][0]["annotations"]:
        entry["SeriesInstanceUID"] = "1.2.3"
    path.write_text(json.dumps(held))
    with pytest.raises(DatasetError, match="2 CT series and none of the 1 that are annotated"):
        read_ricord_cases(copy)


def test_missing_slices_are_refused_or_filled_as_asked(one, tmp_path):
    folder = trees.write_series(one, tmp_path)
    annotations = trees.truth_annotations(one)
    trees.write_export(tmp_path / trees.ANNOTATIONS, annotations, [one])
    (folder / "1-006.dcm").unlink()
    with pytest.raises(ReadError, match="missing"):
        read_ricord_cases(tmp_path)[0].load()
    scan = read_ricord_cases(tmp_path, fill_gaps=True)[0].load()
    k = len(one.slices) - 6
    expected = one.truth.copy()
    expected[:, :, k] = False  # nobody could draw on what is guessed
    np.testing.assert_array_equal(drawn(scan), expected)


def test_a_series_that_is_not_axial_says_so_and_keeps_its_place(one, tmp_path):
    """The same stack laid along the body's front: contours stay on their pictures."""
    for data in one.slices:
        x, y, z = (float(v) for v in data.ImagePositionPatient)
        data.ImagePositionPatient = [f"{v:.6f}" for v in (x, z, -y)]
        data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    scan = load(tmp_path, one, trees.truth_annotations(one))
    assert "IN-SET-116" in codes(scan)
    assert scan.volume.native.axis_codes == ("L", "I", "P")
    as_stored = scan.infiltrate.to_native(scan.volume.native) > 0
    np.testing.assert_array_equal(np.transpose(as_stored, (1, 0, 2)), one.truth)


def test_annotations_are_found_by_pattern_beside_or_inside(one, tmp_path):
    trees.write_series(one, tmp_path)
    inside = tmp_path / "Annotations" / "MIDRC-RICORD-1a_annotations_labelgroup_all_2020-Dec-8 2.json"
    trees.write_export(inside, trees.truth_annotations(one), [one])
    (tmp_path / "other.json").write_text("{")
    assert survey(tmp_path).annotations == inside
    with pytest.raises(DatasetError, match="has no annotations"):
        survey(tmp_path / "MIDRC-RICORD-1A" / one.subject)
    assert len(read_ricord_cases(tmp_path / "MIDRC-RICORD-1A", annotations=inside)) == 1
    shutil.copy(inside, tmp_path / trees.ANNOTATIONS)
    assert survey(tmp_path).annotations == tmp_path / trees.ANNOTATIONS
    trees.write_export(inside, [], [one])
    with pytest.raises(DatasetError, match="annotation files that differ"):
        survey(tmp_path)


def test_bad_copies_are_refused_in_one_line(whole, one, tmp_path):
    root, _ = whole
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="has no annotations"):
        read_ricord_cases(tmp_path / "empty")
    with pytest.raises(DatasetError, match="no such folder"):
        read_ricord_cases(tmp_path / "absent")
    copy = shutil.copytree(root, tmp_path / "data")
    path = copy / "manifest-1612365584013" / trees.ANNOTATIONS
    whole_text = path.read_text()
    for text, words in (
        (whole_text[: len(whole_text) // 2], "was cut off"),
        ("<html>404</html>", "is no JSON"),
        ("[]", "no MD.ai export"),
        ('{"labelGroups": 3, "datasets": []}', "no MD.ai export"),
        ("[" * 100_000, "is no JSON"),
    ):
        path.write_text(text)
        with pytest.raises(DatasetError, match=words) as caught:
            read_ricord_cases(copy)
        assert "\n" not in str(caught.value)
    path.write_text(whole_text)
    (copy / "out").symlink_to(root)
    with pytest.raises(DatasetError, match="link out of"):
        read_ricord_cases(copy)


@pytest.mark.parametrize(
    "entry",
    [None, 7, [], {"labelId": 3}, {"SeriesInstanceUID": "x", "SOPInstanceUID": "y"}, {"labelId": "L_10", "data": "x"}],
)
def test_odd_entries_do_not_stop_the_others(entry, one, tmp_path):
    scan = load(tmp_path, one, [entry, trees.annotation(one, 1, "L_10", {"vertices": SQUARE})])
    np.testing.assert_array_equal(drawn(scan), square(1, one))
