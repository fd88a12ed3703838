"""MedSeg set 2 (nine volumes) and set 1 (single slices): quirks of real copies, one test each."""

from __future__ import annotations

import gc
import pickle
import weakref

import nibabel
import numpy as np
import pytest
from trees import EXPECTED, make_medseg, make_medseg_slices

from pneumoscope.datasets.public.medseg import read_medseg_cases, read_medseg_slices_cases
from pneumoscope.errors import DatasetError, ReadError


def same(scan, expected):
    np.testing.assert_array_equal(scan.volume.hu, expected.volume.hu)
    for kind in ("lungs", "infiltrate"):
        got, wanted = getattr(scan, kind), getattr(expected, kind)
        assert (got is None) == (wanted is None)
        if got is not None:
            np.testing.assert_array_equal(got.labels, wanted.labels)


def codes(scan):
    return [finding.code for finding in scan.volume.findings]


def rewrite(path, change):
    """Store a NIfTI file again with its array and header changed."""
    image = nibabel.load(path)
    array, affine = change(np.asarray(image.dataobj), image.affine)
    nibabel.Nifti1Image(array, affine).to_filename(path)


# --- set 2 ----------------------------------------------------------------------------------------------------------


def test_kinds_of_infiltrate_are_told_apart_and_lungs_need_no_mapping(tmp_path):
    case = read_medseg_cases(make_medseg(tmp_path, cases=(1,)))[0]
    assert dict(case.load().infiltrate.names) == {1: "ground-glass", 2: "consolidation"}
    assert dict(case.files.lung_labels) == {1: 1, 2: 2}
    assert case.files.ignored_labels == {3}


def test_effusion_and_stray_lung_voxels_are_left_out_and_counted(tmp_path):
    """Volume 2: label 3 in both masks."""
    case = read_medseg_cases(make_medseg(tmp_path, cases=(2,)))[0]
    scan = case.load()
    same(scan, EXPECTED["medseg"]("rp_2"))
    notes = [f.message for f in scan.volume.findings if f.code == "IN-SET-087"]
    assert notes == ["8 voxels of mask label 3 are neither lung nor infiltrate: left out"]


def test_values_far_below_air_are_raised(tmp_path):
    root = make_medseg(tmp_path, cases=(1,))

    def darker(array, affine):
        array[:3, :3] = -1500
        return array, affine

    rewrite(root / "rp_im" / "1.nii.gz", darker)
    scan = read_medseg_cases(root)[0].load()
    assert scan.volume.hu.min() == -1024
    assert "IN-NII-067" in codes(scan)


def test_no_matrix_is_taken_for_granted(tmp_path):
    """630 x 630 nearly always, and not everywhere: any shape is read, image and masks must agree."""
    root = make_medseg(tmp_path, cases=(1, 2))
    for folder in ("rp_im", "rp_msk", "rp_lung_msk"):
        rewrite(root / folder / "1.nii.gz", lambda array, affine: (array[:, 6:-10], affine))
    assert read_medseg_cases(root)[0].load().volume.grid.shape[:2] == (64, 48)
    rewrite(root / "rp_im" / "2.nii.gz", lambda array, affine: (array[:, 6:-10], affine))
    with pytest.raises(DatasetError, match=r"rp_lung_msk/2\.nii\.gz: has 64 x 64 x \d+ voxels, its scan 64 x 48"):
        read_medseg_cases(root)[1].load()


def test_a_damaged_file_is_named_when_it_is_loaded(tmp_path):
    root = make_medseg(tmp_path, cases=(1,))
    image = root / "rp_im" / "1.nii.gz"
    image.write_bytes(image.read_bytes()[:500])
    (case,) = read_medseg_cases(root)
    with pytest.raises(ReadError, match=r"rp_im/1\.nii\.gz"):
        case.load()


# --- set 1 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    return make_medseg_slices(tmp_path_factory.mktemp("slices"))


def test_every_slice_is_a_patient_and_no_volume(stacks):
    cases = read_medseg_slices_cases(stacks)
    assert [case.source for case in cases] == ["training"] * 100 + ["validation"] * 10
    assert len({case.patient for case in cases}) == 110
    assert [case.files.part for case in cases[98:102]] == [98, 99, 0, 1]
    scan = cases[5].load()
    assert scan.volume.grid.shape == (64, 64, 1)
    (note,) = [f for f in scan.volume.findings if f.code == "IN-SET-086"]
    assert "slice 5 of a stack of unrelated patients: no volume" in note.message
    assert "estimates" in note.message


def test_lung_masks_came_later_and_validation_may_be_absent(tmp_path):
    cases = read_medseg_slices_cases(make_medseg_slices(tmp_path / "a", variant="no-lungs"))
    scan = cases[0].load()
    assert scan.lungs is None
    assert scan.infiltrate is not None
    assert len(read_medseg_slices_cases(make_medseg_slices(tmp_path / "b", variant="no-validation"))) == 100


def test_a_header_that_contradicts_the_known_orientation_is_put_right(tmp_path):
    """A unit matrix says R, A; the pictures are stored L, P, so that the right lung must come out at the right."""
    case = read_medseg_slices_cases(make_medseg_slices(tmp_path, variant="identity"))[20]
    scan, expected = case.load(), EXPECTED["medseg-slices"]("tr_020")
    same(scan, expected)
    assert scan.volume.native.axis_codes == ("L", "P", "S")
    (note,) = [f for f in scan.volume.findings if f.code == "IN-SET-081"]
    assert "mirrored left-right and front-back" in note.message


def test_a_stack_of_another_length(tmp_path):
    root = make_medseg_slices(tmp_path)
    rewrite(root / "tr_im.nii.gz", lambda array, affine: (array[:, :, :60], affine))
    with pytest.raises(DatasetError, match=r"tr_im\.nii\.gz: measures 64 x 64 x 60, expected a stack of 100 slices"):
        read_medseg_slices_cases(root)[0].load()


def test_one_stack_is_kept_at_a_time(stacks):
    """Slices of one stack share one reading; the next stack takes its place; nothing outlives the cases."""
    cases = read_medseg_slices_cases(stacks)
    shelf = cases[0].load.args[-1]
    cases[0].load()
    first = shelf.stack
    cases[1].load()
    assert shelf.stack is first
    gone = weakref.ref(first)
    del first
    cases[100].load()
    gc.collect()
    assert gone() is None
    last = weakref.ref(shelf.stack)
    del cases, shelf
    gc.collect()
    assert last() is None


def test_a_case_travels_without_the_stack(stacks):
    case = read_medseg_slices_cases(stacks)[3]
    case.load()
    data = pickle.dumps(case)
    assert len(data) < 5000
    same(pickle.loads(data).load(), EXPECTED["medseg-slices"]("tr_003"))


def test_changing_a_loaded_slice_does_not_change_the_stack(stacks):
    case = read_medseg_slices_cases(stacks)[3]
    scan = case.load()
    scan.volume.hu[:] = 0
    scan.lungs.labels[:] = 0
    same(case.load(), EXPECTED["medseg-slices"]("tr_003"))
