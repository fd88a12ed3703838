"""Conversions come back bit for bit, in our own readers and in nibabel and SimpleITK; killed ones leave nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import trees_more as trees
from trees import TREES, patient

from grids import build_grid
from pneumoscope.datasets import convert as converting
from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.convert import convert_cases, convert_dataset
from pneumoscope.datasets.registry import read_dataset
from pneumoscope.errors import DatasetError, InputError, ReadError
from pneumoscope.io.write import write_mask
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume
from tables import rows_of

LAYOUTS = ("nnunet", "slices", "manifest")
READER = {"nnunet": "nnunet", "slices": "slices", "manifest": "manifest"}


def case_of(scan: LabelledScan, name: str, **more) -> Case:
    known = {
        "dataset": "made", "patient": f"p-{name}", "source": "north", "licence": "CC0", "citation": "nobody",
        "date": "2020-04-01",
    }  # fmt: skip
    return Case(case=name, load=lambda: replace(scan, volume=replace(scan.volume, case=name)), **(known | more))


@pytest.fixture
def cases():
    """With kinds and lungs; without lungs; without infiltrate; lungs of no side."""
    scans = [patient("A", n).scan for n in range(4)]
    one_lung = Mask(scans[3].lungs.any.astype(np.uint8), scans[3].lungs.grid, {1: "lung"})
    return [
        case_of(scans[0], "a"),
        case_of(replace(scans[1], lungs=None), "b", patient="p-a"),
        case_of(replace(scans[2], infiltrate=None, truth=None), "c", date=""),
        case_of(replace(scans[3], lungs=one_lung), "d_0001"),
    ]


def same(got: Mask | None, wanted: Mask | None) -> None:
    assert (got is None) == (wanted is None)
    if got is not None:
        np.testing.assert_array_equal(got.labels, wanted.labels)
        assert dict(got.names) == dict(wanted.names)


@pytest.mark.parametrize("to", LAYOUTS)
def test_everything_comes_back_bit_for_bit(to, cases, tmp_path):
    done = convert_cases(cases, tmp_path / "out", to)
    assert (done.cases, done.without_infiltrate, done.failed) == (("a", "b", "c", "d_0001"), ("c",), {})
    back = {case.case: case for case in read_dataset(READER[to], tmp_path / "out")}
    assert set(back) == set(done.cases)
    for case in cases:
        wanted, got = case.load(), back[case.case].load()
        np.testing.assert_array_equal(got.volume.hu, np.maximum(wanted.volume.hu, -1024))
        affine = wanted.volume.native.affine if to == "slices" else wanted.volume.native.affine.astype(np.float32)
        np.testing.assert_array_equal(got.volume.native.affine, affine)  # NIfTI holds float32
        assert got.volume.native.shape == wanted.volume.native.shape
        same(got.lungs, wanted.lungs)
        same(got.infiltrate, wanted.infiltrate)
        for what in ("patient", "source", "date"):
            assert getattr(back[case.case], what) == getattr(case, what), what
    if to != "manifest":
        assert {case.licence for case in back.values()} == {"CC0"}


@pytest.mark.parametrize("to", ["nnunet", "manifest"])
def test_other_programs_read_the_same_voxels_at_the_same_place(to, cases, tmp_path):
    convert_cases(cases[:1], tmp_path, to)
    scan = cases[0].load()
    native = scan.volume.native
    image, mask = (
        (tmp_path / "imagesTr" / "a_0000.nii.gz", tmp_path / "labelsTr" / "a.nii.gz")
        if to == "nnunet"
        else (tmp_path / "images" / "a.nii.gz", tmp_path / "infiltrate" / "a.nii.gz")
    )
    hu = np.asarray(nibabel.load(image).dataobj)
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(nibabel.load(image).affine, native.affine.astype(np.float32))
    index = np.argwhere(hu > 100)[::97]
    place = native.world(index)
    here = np.rint(scan.volume.grid.index(place)).astype(int)
    np.testing.assert_array_equal(scan.volume.hu[tuple(here.T)], hu[tuple(index.T)])
    itk_image, itk_mask = sitk.ReadImage(str(image)), sitk.ReadImage(str(mask))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk_image), hu.transpose(2, 1, 0))
    for point in index[:5]:
        lps = np.array(itk_image.TransformIndexToPhysicalPoint([int(v) for v in point]))
        np.testing.assert_allclose(lps * (-1, -1, 1), native.world(point), atol=1e-3)
    assert itk_mask.GetSize() == itk_image.GetSize()
    np.testing.assert_allclose(itk_mask.GetOrigin(), itk_image.GetOrigin())
    np.testing.assert_allclose(itk_mask.GetDirection(), itk_image.GetDirection())
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(itk_mask).transpose(2, 1, 0), scan.infiltrate.to_native(native)
    )


def awkward(codes, *, fraction: float = 0.0, shear: float = 0.0) -> LabelledScan:
    """A tilted, flipped, anisotropic grid with a bright corner and labels that tell every axis."""
    native = build_grid(codes, shape=(12, 13, 14), tilt_degrees=(6.0, 2.0, -3.0), shear=shear)
    rng = np.random.default_rng(3)
    hu = rng.integers(-1000, 300, native.shape).astype(np.float32) + np.float32(fraction)
    hu[-1, -1, -1] = 3000
    volume = Volume.from_native(hu, native, case="x")
    labels = rng.integers(0, 3, volume.grid.shape).astype(np.uint8)
    masks = [Mask(labels, volume.grid, names) for names in (LUNG_LABELS, INFILTRATE_LABELS)]
    return LabelledScan(volume, *masks)


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("codes", [("L", "P", "I"), ("P", "I", "R"), ("S", "R", "A")])
def test_awkward_grids_come_back(to, codes, tmp_path):
    scan = awkward(codes, shear=0.1)
    convert_cases([case_of(scan, "x")], tmp_path, to)
    (back,) = read_dataset(READER[to], tmp_path)
    got = back.load()
    np.testing.assert_array_equal(got.volume.hu, scan.volume.hu)
    same(got.lungs, scan.lungs)
    same(got.infiltrate, scan.infiltrate)
    assert got.volume.native.axis_codes == codes
    assert np.abs(got.volume.native.affine - scan.volume.native.affine).max() < (1e-12 if to == "slices" else 1e-4)


@pytest.mark.parametrize("to", LAYOUTS)
def test_what_is_kept_of_fractions_of_a_unit(to, tmp_path):
    """A float slope gives HU like -873.37: kept as float32, but rounded in PNG, which says by how much."""
    scan = awkward(("L", "P", "S"), fraction=0.37)
    convert_cases([case_of(scan, "x")], tmp_path, to)
    (back,) = read_dataset(READER[to], tmp_path)
    got = back.load().volume.hu
    stored = rows_of(tmp_path / "sources.csv")[0]["stored"]
    if to == "slices":
        np.testing.assert_array_equal(got, np.rint(scan.volume.hu))
        off = json.loads((tmp_path / "slices.json").read_text())["cases"][0]["rounded_hu"]
        assert off == pytest.approx(0.37, abs=0.01)
    else:
        np.testing.assert_array_equal(got, scan.volume.hu)
        assert stored == "float32"


def test_nnunets_description_and_folders(cases, tmp_path):
    done = convert_cases(cases[:3], tmp_path, "nnunet")
    held = json.loads((tmp_path / "dataset.json").read_text())
    assert held["channel_names"] == {"0": "CT"}
    assert held["labels"] == {"background": 0, "ground-glass": 1, "consolidation": 2}
    assert (held["numTraining"], held["file_ending"], held["licence"]) == (2, ".nii.gz", "CC0")
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.nii.gz")}
    assert files == {
        "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTs/c_0000.nii.gz", "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz", "lungsTr/a.nii.gz", "lungsTs/c.nii.gz",
    }  # fmt: skip
    assert done.labels == {1: "ground-glass", 2: "consolidation"}
    rows = rows_of(tmp_path / "sources.csv")
    assert [(row["case"], row["part"], row["patient"], row["values"]) for row in rows] == [
        ("a", "Tr", "p-a", "HU"),
        ("b", "Tr", "p-a", "HU"),
        ("c", "Ts", "p-c", "HU"),
    ]


def test_labels_mean_one_thing_in_all_cases(cases, tmp_path):
    """A set where some readers told kinds apart and others did not has plain infiltrate everywhere."""
    scan = patient("A", 1).scan
    plain = Mask(scan.infiltrate.any.astype(np.uint8), scan.infiltrate.grid, INFILTRATE_LABEL)
    mixed = [cases[0], case_of(replace(scan, infiltrate=plain), "e")]
    done = convert_cases(mixed, tmp_path, "nnunet")
    assert done.labels == {1: "infiltrate"}
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"] == {"background": 0, "infiltrate": 1}
    first = read_dataset("nnunet", tmp_path)[0].load().infiltrate
    assert (cases[0].load().infiltrate.labels == 2).any()
    np.testing.assert_array_equal(first.labels, cases[0].load().infiltrate.any)
    kept = tmp_path / "kept"
    convert_cases(mixed, kept, "manifest")
    assert dict(read_dataset("manifest", kept)[0].load().infiltrate.names) == INFILTRATE_LABELS


def test_slices_are_pictures_a_radiologist_knows(cases, tmp_path):
    """Hung as the house does, 16 bit, HU + 1024, with a table of what is where."""
    from PIL import Image

    convert_cases(cases[:1], tmp_path, "slices")
    scan = cases[0].load()
    k = 5
    with Image.open(tmp_path / "a" / "hu" / f"{k:03d}.png") as picture:
        assert picture.mode == "I;16"
        plane = np.asarray(picture).astype(np.int64) - 1024
    np.testing.assert_array_equal(plane, scan.volume.hu[::-1, ::-1, k].T)
    rows = rows_of(tmp_path / "slices.csv")
    assert len(rows) == scan.volume.grid.shape[2]
    assert int(rows[k]["lung_pixels"]) == np.count_nonzero(scan.lungs.labels[:, :, k])
    z = [float(row["z_mm"]) for row in rows]
    assert z == sorted(z)


@pytest.mark.parametrize("to", LAYOUTS)
def test_real_layouts_convert_too(to, tmp_path):
    """From trees as they lie on disks: NIfTI, nnU-Net regions, and DICOM in a process of its own."""
    for name in ("nnunet", "covid1920"):
        root = TREES[name](tmp_path / name)
        out = tmp_path / f"{name}-{to}"
        done = convert_dataset(name, root, out, to=to)
        back = {case.case: case for case in read_dataset(READER[to], out)}
        for case in read_dataset(name, root)[:2]:
            got, wanted = back[case.case].load(), case.load()
            np.testing.assert_array_equal(got.volume.hu, wanted.volume.hu)
            np.testing.assert_array_equal(got.volume.native.affine, wanted.volume.native.affine)
            same(got.infiltrate, wanted.infiltrate)
            same(got.lungs, wanted.lungs)
        assert not done.failed


def test_dicom_with_contours_converts(tmp_path, in_process):
    (made,) = trees.ricord(tmp_path / "data", patients=1)
    convert_dataset("ricord", tmp_path / "data", tmp_path / "out", to="nnunet")
    (back,) = read_dataset("nnunet", tmp_path / "out")
    scan = back.load()
    assert scan.infiltrate.any.sum() == made.truth.sum()
    np.testing.assert_array_equal(scan.volume.hu, np.maximum(made.volume.hu, -1024))
    assert back.patient == made.subject


def test_pictures_are_never_passed_on_as_hounsfield_units(tmp_path):
    root = trees.make_slices(tmp_path / "pictures")
    for to in ("slices", "manifest"):
        with pytest.raises(InputError, match="8-bit pictures"):
            convert_dataset("slices", root, tmp_path / to, to=to)
        assert list((tmp_path / to).iterdir()) == []
    done = convert_dataset("slices", root, tmp_path / "nnunet", to="nnunet")
    assert json.loads((tmp_path / "nnunet" / "dataset.json").read_text())["channel_names"] == {"0": "grey"}
    assert len(done.cases) == 6
    with pytest.raises(ReadError, match="Hounsfield"):
        read_dataset("nnunet", tmp_path / "nnunet")[0].load()


# --- one case at a time, whole or not at all ------------------------------------------------------------------------


def failing(name: str) -> Case:
    def load():
        raise ReadError("is cut off", code="IN-NII-051", path=f"{name}.nii.gz")

    return replace(case_of(patient("A", 0).scan, name), load=load)


def test_a_case_that_cannot_be_read_is_left_out_and_told(cases, tmp_path):
    done = convert_cases([cases[0], failing("z")], tmp_path, "nnunet")
    assert done.cases == ("a",)
    assert "z.nii.gz: is cut off" in done.failed["z"]
    assert json.loads((tmp_path / "dataset.json").read_text())["numTraining"] == 1


def test_when_none_can_be_read_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match=r"no case could be read; the first: .*is cut off"):
        convert_cases([failing("y"), failing("z")], tmp_path / "out", "manifest")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("to", LAYOUTS)
def test_a_run_that_dies_leaves_no_data_set(to, cases, tmp_path, monkeypatch):
    """At the second case, at the moving, and in the middle of the moving: no reader takes what is there."""

    def die(*_):
        raise KeyboardInterrupt

    broken = [cases[0], replace(cases[1], load=die)]
    with pytest.raises(KeyboardInterrupt):
        convert_cases(broken, tmp_path / "one", to)
    assert list((tmp_path / "one").iterdir()) == []
    moved = []
    replaced = Path.replace

    def half_way(self, target):
        if ".tmp-" in str(self) and "-convert" in str(self.parent) and Path(target).parent.name == "two":
            moved.append(self.name)
            if len(moved) == 2:
                raise KeyboardInterrupt
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", half_way)
    with pytest.raises(KeyboardInterrupt):
        convert_cases(cases[:2], tmp_path / "two", to)
    monkeypatch.undo()
    assert len(moved) == 2
    with pytest.raises(InputError):
        read_dataset(READER[to], tmp_path / "two")
    convert_cases(cases[:2], tmp_path / "two", to)  # an unfinished one is made again without asking
    assert len(read_dataset(READER[to], tmp_path / "two")) == 2
    assert not list((tmp_path / "two").glob(".tmp-*"))


def test_what_a_killed_process_left_is_cleared(cases, tmp_path):
    left = tmp_path / ".tmp-999999999-convert"
    (left / "imagesTr").mkdir(parents=True)
    convert_cases(cases[:1], tmp_path, "nnunet")
    assert not left.exists()


def test_an_earlier_conversion_is_replaced_only_when_asked_and_nothing_else(cases, tmp_path):
    convert_cases(cases, tmp_path, "nnunet")
    with pytest.raises(InputError, match=r"already holds a run \(convert\.json\).*--overwrite"):
        convert_cases(cases[:1], tmp_path, "nnunet")
    (tmp_path / "notes.txt").write_text("mine")
    convert_cases(cases[:1], tmp_path, "manifest", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "convert.json", "images", "infiltrate", "lungs", "manifest.csv", "notes.txt", "sources.csv",
    ]  # fmt: skip
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["a.nii.gz"]


def test_a_folder_of_something_else_is_never_written_into(cases, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"is not empty \(thesis\.tex\)"):
            convert_cases(cases[:1], tmp_path, "nnunet", overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_unusable_calls(cases, tmp_path):
    root = trees.make_nnunet(tmp_path / "data")
    with pytest.raises(InputError, match="to is 'bids'"):
        convert_dataset("nnunet", root, tmp_path / "out", to="bids")
    with pytest.raises(InputError, match="own folder"):
        convert_dataset("nnunet", root, root / "out", to="slices")
    with pytest.raises(InputError, match="both be written as 'A'"):
        convert_cases([replace(cases[0], case="A"), replace(cases[0], case="a")], tmp_path / "out", "slices")
    assert not (tmp_path / "out").exists()


def test_one_case_is_held_at_a_time(cases, tmp_path):
    import gc
    import weakref

    held = []

    def load():
        gc.collect()
        assert not any(ref() is not None for ref in held), "the case before is still in memory"
        scan = awkward(("L", "P", "S"))
        held.append(weakref.ref(scan.volume))
        return scan

    convert_cases([replace(cases[0], case=f"n{n}", load=load) for n in range(3)], tmp_path, "nnunet")
    assert len(held) == 3


def test_progress_counts_cases(cases, tmp_path):
    seen = []
    convert_cases(cases[:2], tmp_path, "slices", progress=lambda what, done, total, note="": seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


# --- exported slices that somebody touched --------------------------------------------------------------------------


def test_damaged_exports_are_refused_in_one_line(cases, tmp_path):
    convert_cases(cases[:1], tmp_path / "good", "slices")

    def spoiled(change) -> str:
        copy = tmp_path / "bad"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "good", copy)
        change(copy)
        with pytest.raises(DatasetError) as caught:
            read_dataset("slices", copy)[0].load()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def eight_bit(copy):
        from PIL import Image

        Image.fromarray(np.zeros((64, 64), np.uint8)).save(copy / "a" / "hu" / "003.png")

    def edit(copy, **changes):
        held = json.loads((copy / "slices.json").read_text())
        held["cases"][0] |= changes
        (copy / "slices.json").write_text(json.dumps(held))

    assert "is missing; half a download" in spoiled(lambda c: (c / "a" / "hu" / "003.png").unlink())
    assert "a program has changed it" in spoiled(eight_bit)
    assert "not a readable picture" in spoiled(lambda c: (c / "a" / "lungs" / "003.png").write_bytes(b"\x89PNG"))
    cut = (tmp_path / "good" / "slices.json").read_text()[:300]
    assert "not a description of exported slices" in spoiled(lambda c: (c / "slices.json").write_text(cut))
    assert "not a description of exported slices" in spoiled(lambda c: edit(c, case="../../etc"))
    assert "not a description of exported slices" in spoiled(lambda c: edit(c, grid={"shape": [1], "affine": 3}))


def test_masks_written_by_hand_into_an_nnunet_folder(cases, tmp_path):
    """A mask of another scan is refused where it is loaded."""
    convert_cases(cases[:2], tmp_path, "nnunet")
    scan = awkward(("L", "P", "S"))
    write_mask(scan.infiltrate, tmp_path / "labelsTr" / "a.nii.gz", scan.volume.native)
    with pytest.raises(DatasetError, match="is it the mask of another"):
        read_dataset("nnunet", tmp_path)[0].load()


def test_the_marker_is_ours(tmp_path):
    (tmp_path / converting.MARKER).write_text("{}")
    with pytest.raises(InputError, match="is not empty"):
        convert_cases([], tmp_path, "nnunet")
