"""nnU-Net (v1, v2), the Decathlon and MIScnn as people have them; the contract of all readers is tested elsewhere."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import trees_more as trees

from pneumoscope.datasets.formats.miscnn import read_miscnn_cases
from pneumoscope.datasets.formats.nnunet import read_decathlon_cases, read_nnunet_cases
from pneumoscope.errors import DatasetError, GeometryError, ReadError

NNUNET = "Dataset501_Chest"


def edit(path, **changes):
    held = json.loads(path.read_text())
    for key, value in changes.items():
        held.pop(key, None) if value is None else held.update({key: value})
    path.write_text(json.dumps(held))


def refused(read, *args, **options) -> str:
    with pytest.raises(DatasetError) as caught:
        read(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("variant", ["plain", "nrrd", "nii", "channels", "listed", "kinds", "v1"])
def test_nnunet_in_all_its_forms(variant, tmp_path):
    cases = read_nnunet_cases(trees.make_nnunet(tmp_path, variant=variant))
    assert [(case.case, case.source) for case in cases] == [
        ("chest_000", "train"), ("chest_001", "train"), ("chest_002", "train"), ("chest_003", "test"),
    ]  # fmt: skip
    for case in (cases[0], cases[3]):
        got, wanted = case.load(), trees.scan_of(case.case)
        np.testing.assert_array_equal(got.volume.hu, np.maximum(wanted.volume.hu, -1024))
        assert got.volume.grid.is_same_space(wanted.volume.grid)
        assert (got.infiltrate is None) == (case.source == "test")
    got, wanted = cases[0].load(), trees.scan_of("chest_000")
    np.testing.assert_array_equal(got.infiltrate.labels, wanted.infiltrate.labels)
    assert dict(got.infiltrate.names) == {1: "ground-glass", 2: "consolidation"}
    assert (got.lungs is None) == (variant in ("kinds", "v1"))


def test_the_folder_itself_and_one_above_are_the_same(tmp_path):
    root = trees.make_nnunet(tmp_path / "nnUNet_raw")
    names = [case.case for case in read_nnunet_cases(root)]
    assert [case.case for case in read_nnunet_cases(root / NNUNET)] == names
    assert [case.case for case in read_nnunet_cases(tmp_path)] == names
    shutil.copytree(root / NNUNET, root / "Dataset502_Other")
    message = refused(read_nnunet_cases, root)
    assert "2 datasets" in message
    assert "Dataset502_Other" in message


def test_nnunet_channels_are_chosen_by_name(tmp_path):
    root = trees.make_nnunet(tmp_path, variant="channels")
    assert read_nnunet_cases(root, channel="CT")[0].files.image.name == "chest_000_0001.nii.gz"
    assert read_nnunet_cases(root, channel=0)[0].files.image.name == "chest_000_0000.nii.gz"
    assert "no channel 'MR'" in refused(read_nnunet_cases, root, channel="MR")
    edit(root / NNUNET / "dataset.json", channel_names={"0": "T1", "1": "T2"})
    assert "none or several called CT; say which (channel=)" in refused(read_nnunet_cases, root)


def test_nnunet_licence_and_reference_are_kept(tmp_path):
    root = trees.make_nnunet(tmp_path)
    edit(root / NNUNET / "dataset.json", licence="CC BY 4.0", reference="us  2021")
    case = read_nnunet_cases(root)[0]
    assert (case.licence, case.citation) == ("CC BY 4.0", "us 2021")


def test_nnunet_half_downloads(tmp_path):
    root = trees.make_nnunet(tmp_path)
    folder = root / NNUNET
    (folder / "labelsTr" / "chest_001.nii.gz").unlink()
    assert "chest_001 without mask in labelsTr: half a download" in refused(read_nnunet_cases, root)
    (folder / "imagesTr" / "chest_001_0000.nii.gz").unlink()
    assert "counts 3 training cases, 2 are there: half a download" in refused(read_nnunet_cases, root)
    (folder / "imagesTr" / "chest_002_0000.nii.gz").unlink()
    assert "chest_002 without scan in imagesTr" in refused(read_nnunet_cases, root)
    shutil.rmtree(folder / "imagesTr")
    shutil.rmtree(folder / "labelsTr")
    shutil.rmtree(folder / "imagesTs")
    assert "imagesTr is empty" in refused(read_nnunet_cases, root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"labels": {"background": 0', "was cut off"),
        ("<!DOCTYPE html>", "is no JSON"),
        ("[]", "not a dataset description"),
        ('{"labels": {"infiltrate": "one"}}', "'infiltrate': 'one', expected a name and whole numbers"),
        ('{"labels": {"infiltrate": 300}}', "expected a name and whole numbers"),
        ('{"labels": {"infiltrate": []}}', "expected a name and whole numbers"),
        ('{"labels": {"infiltrate": 1}, "channel_names": ["CT"]}', "no usable channel names"),
        ('{"labels": {"infiltrate": 1}, "file_ending": 7}', "file ending 7"),
        ('{"labels": {"fog": 1}}', "a label 'fog' (1) that is not known here"),
    ],
)
def test_bad_descriptions_are_refused(text, words, tmp_path):
    for build, read, name in (
        (trees.make_nnunet, read_nnunet_cases, NNUNET), (trees.make_decathlon, read_decathlon_cases, "Task01_Chest"),
    ):  # fmt: skip
        root = build(tmp_path / name, cases=1)
        (root / name / "dataset.json").write_text(text)
        assert words in refused(read, root)


def test_paths_must_stay_in_the_folder(tmp_path):
    outside = tmp_path / "secret.nii.gz"
    outside.write_bytes(b"x")
    root = trees.make_decathlon(tmp_path / "d", cases=1)
    path = root / "Task01_Chest" / "dataset.json"
    for target in ("../../secret.nii.gz", str(outside), "imagesTr/../../../secret.nii.gz"):
        edit(path, training=[{"image": target, "label": "./labelsTr/chest_000.nii.gz"}])
        assert "leads out of its folder" in refused(read_decathlon_cases, root)
    edit(path, training=[{"image": 3, "label": None}])
    assert "where a scan is expected" in refused(read_decathlon_cases, root)
    nn = trees.make_nnunet(tmp_path / "n", cases=1, variant="listed")
    edit(nn / NNUNET / "dataset.json", dataset={"a": {"images": [str(outside)], "label": str(outside)}})
    assert "leads out of its folder" in refused(read_nnunet_cases, nn)


def test_the_decathlons_layout_is_told_from_nnunets(tmp_path):
    root = trees.make_decathlon(tmp_path)
    assert "Read it as decathlon" in refused(read_nnunet_cases, root)


def test_the_decathlon_passes_over_junk_and_finds_unpacked_files(tmp_path):
    root = trees.make_decathlon(tmp_path)
    folder = root / "Task01_Chest"
    import gzip

    for path in (folder / "imagesTr" / "chest_001.nii.gz", folder / "labelsTr" / "chest_001.nii.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    cases = read_decathlon_cases(root)
    assert [case.case for case in cases] == ["chest_000", "chest_001", "chest_002", "chest_003"]
    assert cases[1].files.image.name == "chest_001.nii"
    got, wanted = cases[1].load(), trees.scan_of("chest_001")
    np.testing.assert_array_equal(got.infiltrate.labels, wanted.infiltrate.labels)
    (folder / "labelsTr" / "chest_001.nii").unlink()
    assert "./labelsTr/chest_001.nii.gz', which is not there: half a download" in refused(read_decathlon_cases, root)
    edit(folder / "dataset.json", training=[], test=[])
    assert "lists no scan" in refused(read_decathlon_cases, root)


@pytest.mark.parametrize("style", ["nii.gz", "nii", "folder"])
def test_miscnn_reads_the_combined_mask_and_keeps_the_lungs_whole(style, tmp_path):
    cases = read_miscnn_cases(trees.make_miscnn(tmp_path, style=style))
    assert [case.case for case in cases] == ["chest_000", "chest_001", "chest_002"]
    got, wanted = cases[0].load(), trees.scan_of("chest_000")
    np.testing.assert_array_equal(got.infiltrate.labels, wanted.infiltrate.any)
    assert dict(got.infiltrate.names) == {1: "infiltrate"}
    # right and left are told apart as here, and infiltrate in a lung is lung of that side again
    inside = wanted.lungs.any
    agree = got.lungs.labels[inside] == wanted.lungs.labels[inside]
    assert agree.mean() > 0.995  # 5 mm voxels: some between the lungs are nearer to the other one
    assert (got.lungs.labels[inside] > 0).all()
    assert "IN-SET-085" in {finding.code for finding in got.volume.findings}


def test_miscnn_labels_can_be_said(tmp_path):
    root = trees.make_miscnn(tmp_path, cases=1)
    scan = trees.scan_of("chest_000")
    mask = (scan.infiltrate.any).astype(np.uint8)
    trees.save(root / "chest_000" / "segmentation.nii.gz", mask, scan.volume.native)
    (case,) = read_miscnn_cases(root)
    with pytest.raises(DatasetError, match=r"nothing but label 1.*--label 1=infiltrate"):
        case.load()
    (case,) = read_miscnn_cases(root, labels={1: "infiltrate"})
    got = case.load()
    np.testing.assert_array_equal(got.infiltrate.labels, mask)
    assert got.lungs is None
    assert "numbers from 1 to 255" in refused(read_miscnn_cases, root, labels={"one": "lung"})


def test_miscnn_half_downloads_and_scans_to_predict(tmp_path):
    root = trees.make_miscnn(tmp_path, cases=3)
    (root / "chest_001" / "segmentation.nii.gz").unlink()
    assert "chest_001 without segmentation: half a download" in refused(read_miscnn_cases, root)
    assert read_miscnn_cases(root, unlabelled=True)[1].load().infiltrate is None
    (root / "chest_002" / "imaging.nii.gz").unlink()
    assert "chest_002 without its scan" in refused(read_miscnn_cases, root)
    for n in (0, 2):
        (root / f"chest_00{n}" / "segmentation.nii.gz").unlink()
    assert [case.case for case in read_miscnn_cases(root)] == ["chest_000", "chest_001"]


def test_lungs_without_infiltrate_stay_what_they_are(tmp_path):
    root = trees.make_miscnn(tmp_path, cases=1)
    scan = trees.scan_of("chest_000")
    lungs = np.array([0, 2, 1], np.uint8)[scan.lungs.labels]
    trees.save(root / "chest_000" / "segmentation.nii.gz", lungs, scan.volume.native)
    got = read_miscnn_cases(root)[0].load()
    np.testing.assert_array_equal(got.lungs.labels, scan.lungs.labels)
    assert not got.infiltrate.any.any()


def test_masks_of_other_scans_and_scans_that_are_none_are_refused_when_loaded(tmp_path):
    root = trees.make_nnunet(tmp_path / "n", cases=2, variant="kinds")
    labels = root / NNUNET / "labelsTr"
    other = trees.patient_mask("B", 0)
    trees.save(labels / "chest_000.nii.gz", other.labels, other.grid)
    scan = trees.scan_of("chest_001")
    shifted = scan.volume.native.crop((0, 0, 0), scan.volume.native.shape)
    moved = type(shifted)(shifted.shape, shifted.affine + np.eye(4, k=3) * 40)
    trees.save(labels / "chest_001.nii.gz", scan.infiltrate.labels, moved)
    first, second, _ = read_nnunet_cases(root)
    with pytest.raises(DatasetError, match=r"chest_000.*is it the mask of another"):
        first.load()
    with pytest.raises((DatasetError, GeometryError), match=r"chest_001.*shifted"):
        second.load()
    grey = trees.pictures(trees.scan_of("chest_001"))[0].astype(np.float32)
    trees.save(root / NNUNET / "imagesTs" / "chest_002_0000.nii.gz", grey.transpose(2, 1, 0), scan.volume.native)
    with pytest.raises(ReadError, match="does not hold Hounsfield units"):
        read_nnunet_cases(root)[2].load()


def test_lungs_of_no_side_are_whole_too(tmp_path):
    root = trees.make_miscnn(tmp_path, cases=1)
    got = read_miscnn_cases(root, labels={1: "lung", 2: "lung", 3: "infiltrate"})[0].load()
    scan = trees.scan_of("chest_000")
    np.testing.assert_array_equal(got.lungs.labels, scan.lungs.any | scan.infiltrate.any)
    assert dict(got.lungs.names) == {1: "lung"}
