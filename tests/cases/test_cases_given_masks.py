"""Masks made elsewhere, as the usual programs leave them, against the arrays they were made of."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from grids import build_grid
from pneumoscope.cases.options import QuantifyOptions
from pneumoscope.cases.quantify import read_given, with_masks
from pneumoscope.errors import InputError, ReadError
from pneumoscope.geometry import LPS_TO_RAS
from pneumoscope.io.scans import ScanRef
from pneumoscope.severity.regions import LOBES, LUNGMASK_ORDER, TOTALSEGMENTATOR_ORDER, lobe_lookup
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

GRID = build_grid(("P", "S", "L"), shape=(9, 7, 12), spacing_mm=(0.8, 2.0, 1.2), tilt_degrees=(4, 0, 3))


@pytest.fixture
def scan():
    hu = np.random.default_rng(0).uniform(-1000, 400, GRID.shape)
    return Volume.from_native(hu, GRID, case="awkward")


def lobes_on(grid):
    """Five lobes, each with voxels of its own (i, j, k), right where i is large."""
    labels = np.zeros(grid.shape, np.uint8)
    middle, high = grid.shape[0] // 2, grid.shape[2]
    for number, (i, k) in enumerate(
        [(slice(middle, None), slice(5, high)), (slice(middle, None), slice(3, 5)), (slice(middle, None), slice(0, 3)),
         (slice(0, middle), slice(4, high)), (slice(0, middle), slice(0, 4))], start=1
    ):  # fmt: skip
        labels[i, 1:-1, k] = number
    return labels


def given(scan, part, source, threshold=None, case="awkward"):
    ref = with_masks([ScanRef(case, Path("scan.nii.gz"))], QuantifyOptions(**{part: source}))[0]
    return getattr(read_given(scan, ref, threshold), part)


def save(path, labels, grid, names=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    native = np.asarray(labels, np.uint8)
    nib.save(nib.Nifti1Image(native, grid.affine), path)
    return path


def test_one_file_per_structure_as_totalsegmentator_writes_them(tmp_path, scan):
    lobes = lobes_on(scan.grid)
    for number, name in enumerate(LOBES, start=1):
        side, level, _ = name.split("_")
        save(tmp_path / "all" / "awkward" / f"lung_{level}_lobe_{side}.nii.gz", lobes == number, scan.grid)
    save(tmp_path / "all" / "awkward" / "heart.nii.gz", lobes > 9, scan.grid)
    save(tmp_path / "all" / "awkward" / "lung_nodules.nii.gz", lobes == 2, scan.grid)
    for source in (tmp_path / "all", tmp_path / "all" / "awkward"):
        assert np.array_equal(given(scan, "lungs", source).labels, np.where(lobes > 3, 2, (lobes > 0) * 1))
        found = given(scan, "lobes", source)
        assert np.array_equal(lobe_lookup(found)[found.labels], lobes)
        assert np.array_equal(given(scan, "infiltrate", source).labels, lobes == 2)
    save(tmp_path / "all" / "awkward" / "lung_covid_infiltrate.nii.gz", lobes == 4, scan.grid)
    assert np.array_equal(given(scan, "infiltrate", tmp_path / "all").labels, lobes == 4)


@pytest.mark.parametrize("order", [LUNGMASK_ORDER, TOTALSEGMENTATOR_ORDER], ids=["lungmask", "totalsegmentator"])
def test_five_lobes_in_one_file_without_names(tmp_path, scan, order):
    lobes = lobes_on(scan.grid)
    lookup = np.zeros(256, np.uint8)
    for label, name in order.items():
        lookup[1 + LOBES.index(name)] = label
    labels = lookup[lobes]
    if order is TOTALSEGMENTATOR_ORDER:
        labels[0, 0, 0] = 90  # one of a hundred other structures
    file = save(tmp_path / "m.nii.gz", labels, scan.grid)
    found = given(scan, "lobes", file)
    assert np.array_equal(lobe_lookup(found)[found.labels], lobes)
    assert np.array_equal(given(scan, "lungs", file).labels, np.where(lobes > 3, 2, (lobes > 0) * 1))


@pytest.mark.parametrize(
    ("names", "lungs", "infiltrate"),
    [({1: "lung", 2: "lung_nodules"}, [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]),
     ({1: "lung_left", 2: "lung_right", 5: "heart"}, [0, 2, 1, 0, 0, 0], None),
     ({n: f"part {n}" for n in range(1, 200)} | {4: "lung_upper_lobe_left", 5: "lung_lower_lobe_right"},
      [0, 0, 0, 0, 2, 1], None)],
)  # fmt: skip
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_names_that_totalsegmentator_writes_into_the_header_go_before_orders(
    tmp_path, scan, names, lungs, infiltrate, threshold
):
    labels = lobes_on(scan.grid)
    image = nib.Nifti1Image(labels, scan.grid.affine)
    table = "\n".join(f'<Label Key="{n}" Red="1.0" Alpha="1"><![CDATA[{name}]]></Label>' for n, name in names.items())
    xml = f"<CaretExtension> <VolumeInformation Index='0'> <LabelTable>{table} </LabelTable></VolumeInformation>"
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, xml.encode()))
    labels[~np.isin(labels, list(names))] = 0
    nib.save(image, tmp_path / "m.nii.gz")
    assert np.array_equal(given(scan, "lungs", tmp_path / "m.nii.gz", threshold).labels, np.take(lungs, labels))
    if infiltrate:
        found = given(scan, "infiltrate", tmp_path / "m.nii.gz", threshold)
        assert np.array_equal(found.labels, np.take(infiltrate, labels))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("awkward.nii.gz", "masks"), ("awkward_lungs.nii.gz", "masks"), ("awkward-lungs.nii.gz", "masks"),
        ("awkward_seg.nii.gz", "masks"), ("awkward/lungs.nii.gz", "masks"),
        ("x_awkward_y.nii.gz", "masks/x_{case}_y.nii.gz"),
        ("awkward.lung.nii.gz", "masks/*.lung.nii.gz"),
    ],
)  # fmt: skip
def test_masks_are_matched_by_case_name(tmp_path, scan, name, source):
    labels = np.where(lobes_on(scan.grid) > 3, 2, 1)
    save(tmp_path / "masks" / name, labels, scan.grid)
    assert np.array_equal(given(scan, "lungs", str(tmp_path / source)).labels, labels)
    assert given(scan, "lungs", str(tmp_path / source)).names == LUNG_LABELS
    if name == "awkward.nii.gz":
        assert np.array_equal(given(scan, "lungs", tmp_path / "masks", case="awkward_0000").labels, labels)
    with pytest.raises(InputError, match="no mask of other; looked for"):
        given(scan, "lungs", str(tmp_path / source), case="other")


def test_a_folder_of_nnunet_names_its_labels(tmp_path, scan):
    labels = lobes_on(scan.grid) % 4
    save(tmp_path / "awkward.nii.gz", labels, scan.grid)
    text = '{"labels": {"background": 0, "lung": 1, "GGO": 2, "consolidation": 3}}'
    (tmp_path / "dataset.json").write_text(text)
    assert np.array_equal(given(scan, "infiltrate", tmp_path).labels, np.where(labels > 1, labels - 1, 0))
    assert given(scan, "infiltrate", tmp_path).names == {1: "ground-glass", 2: "consolidation"}
    assert np.array_equal(given(scan, "lungs", tmp_path).labels, labels == 1)


def slicer_file(path, labels, grid, start, stop, names):
    """A .seg.nrrd as 3D Slicer writes it: cropped, with its segments' names."""
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels[box].transpose(2, 1, 0)))
    affine = LPS_TO_RAS @ grid.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((affine @ [*start, 1])[:3].tolist())
    for n, (label, name) in enumerate(names.items()):
        image.SetMetaData(f"Segment{n}_Name", name)
        image.SetMetaData(f"Segment{n}_LabelValue", str(label))
    sitk.WriteImage(image, str(path), True)
    return path


def test_a_cropped_segmentation_of_slicer(tmp_path, scan):
    lobes = lobes_on(scan.grid)
    labels = np.where(lobes > 3, 7, (lobes > 0) * 5).astype(np.uint8)
    native = Mask(labels, scan.grid, {5: "a", 7: "b"}).to_native(GRID)
    found_at = np.nonzero(native)
    start, stop = [int(x.min()) for x in found_at], [int(x.max()) + 1 for x in found_at]
    file = slicer_file(tmp_path / "awkward.seg.nrrd", native, GRID, start, stop, {5: "Right Lung", 7: "lung_left"})
    for source in (file, tmp_path):
        assert np.array_equal(given(scan, "lungs", source).labels, np.where(lobes > 3, 2, (lobes > 0) * 1))
    ref = ScanRef("awkward", Path("scan.nii.gz"), lungs=file)
    assert "crop" in read_given(scan, ref).findings[0].message
    with pytest.raises(ReadError, match="Right Lung, lung_left, none of which is known as infiltrate"):
        given(scan, "infiltrate", file)


def test_a_single_segment_of_any_name_is_taken(tmp_path, scan):
    native = Mask((lobes_on(scan.grid) > 0).astype(np.uint8), scan.grid, {1: "a"}).to_native(GRID)
    file = slicer_file(tmp_path / "awkward.seg.nrrd", native, GRID, [0, 0, 0], list(GRID.shape), {1: "Segment_1"})
    assert np.array_equal(given(scan, "infiltrate", file).any, lobes_on(scan.grid) > 0)


@pytest.mark.parametrize("change", ["shift", "spacing", "beyond"])
def test_other_grids_are_refused_with_both_grids_named(tmp_path, scan, change):
    affine = scan.grid.affine.copy()
    if change == "shift":
        affine[:3, 3] += affine[:3, 0] / 2
    if change == "spacing":
        affine[:3, 1] *= 1.02
    if change == "beyond":
        affine[:3, 3] += affine[:3, 0] * 3
    mask = np.ones(scan.grid.shape, np.uint8)
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "m.nii.gz")
    with pytest.raises(ReadError, match=r"the mask is .* mm.*, the scan .* from") as caught:
        given(scan, "infiltrate", tmp_path / "m.nii.gz")
    assert "\n" not in str(caught.value)


def test_probabilities_are_cut_at_the_threshold(tmp_path, scan):
    values = np.random.default_rng(1).uniform(0, 1, scan.grid.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, scan.grid.affine), tmp_path / "awkward.nii.gz")
    assert np.array_equal(given(scan, "infiltrate", tmp_path, 0.3).labels, values > 0.3)
    with pytest.raises(ReadError, match="fractions"):
        given(scan, "infiltrate", tmp_path)


def test_one_mask_for_several_scans_is_refused(tmp_path, scan):
    file = save(tmp_path / "m.nii.gz", lobes_on(scan.grid), scan.grid)
    refs = [ScanRef(name, Path("scan.nii.gz")) for name in "ab"]
    with pytest.raises(InputError, match="is one mask, but there are 2 scans; give a folder"):
        with_masks(refs, QuantifyOptions(lungs=file))
    with pytest.raises(InputError, match="no such file or folder"):
        with_masks(refs, QuantifyOptions(lungs=tmp_path / "absent"))
    own = [replace(ref, lungs=file) for ref in refs]
    (tmp_path / "empty").mkdir()
    assert with_masks(own, QuantifyOptions(lungs=tmp_path / "empty")) == own
