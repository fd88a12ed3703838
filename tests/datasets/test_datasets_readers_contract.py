"""What every reader of a public dataset keeps, on a tree as it lies on people's disks (see `trees.py`)."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from trees import EXPECTED, TREES

from pneumoscope.datasets.formats.labelled import filed_grid, write_as_filed
from pneumoscope.datasets.registry import DATASETS, READERS, read_dataset
from pneumoscope.errors import DatasetError
from pneumoscope.io.kinds import require_kind
from pneumoscope.io.read import read_stored
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS

pytestmark = pytest.mark.usefixtures("in_process")

NAMES = [name for name in TREES if name in READERS]


@pytest.fixture(scope="session")
def roots(tmp_path_factory) -> dict[str, Path]:
    """One plain tree per dataset, read only."""
    return {name: TREES[name](tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def copied(roots, name, tmp_path) -> Path:
    """A tree that a test may damage."""
    return Path(shutil.copytree(roots[name], tmp_path / "copy"))


def some(cases):
    """First, middle and last, and a case of every source."""
    by_source = {case.source: case for case in cases}
    return list({id(c): c for c in (cases[0], cases[len(cases) // 2], cases[-1], *by_source.values())}.values())


def test_every_tree_has_a_reader():
    assert set(TREES) <= set(READERS)
    assert set(EXPECTED) <= set(TREES)


def test_cases_say_who_they_are(roots, name):
    cases = read_dataset(name, roots[name])
    assert cases
    assert len({case.case for case in cases}) == len(cases)
    for case in cases:
        assert case.dataset == name
        assert case.patient.strip()
        assert case.source.strip()
        if name != "slices":  # each of its sources has its own
            assert case.licence == DATASETS[name].licence
            assert case.citation == DATASETS[name].citation
        assert case.licence.strip()
        assert case.files is None or case.files.image.exists()
    assert DATASETS[name].readable


def test_the_order_is_the_same_every_time(roots, name):
    assert [c.case for c in read_dataset(name, roots[name])] == [c.case for c in read_dataset(name, str(roots[name]))]


def test_listing_opens_no_image(roots, name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("an image was opened")

    targets = ("io.read.read_volume", "io.read.read_stored", "io.formats.nifti.read_nifti", "io.stored.open_regular")
    for target in targets:
        monkeypatch.setattr(f"pneumoscope.{target}", refuse)
    monkeypatch.setattr("pneumoscope.datasets.formats.labelled.read_volume", refuse)
    assert read_dataset(name, roots[name])


def test_masks_have_the_houses_labels(roots, name):
    for case in some(read_dataset(name, roots[name])):
        scan = case.load()
        assert scan.volume.case == case.case
        if scan.lungs is not None:
            assert dict(scan.lungs.names) == ({1: "lung"} if name == "slices" else LUNG_LABELS)
        if scan.infiltrate is not None:
            assert dict(scan.infiltrate.names) in (INFILTRATE_LABELS, INFILTRATE_LABEL)
        if case.files is not None:
            assert (case.files.lungs is None) == (scan.lungs is None)
            assert (case.files.infiltrate is None) == (scan.infiltrate is None)


def test_right_is_right_and_the_back_is_behind(roots, name):
    """The right lung lies at greater x; in the phantoms the spine, dense and in the middle, lies behind the lungs."""
    for case in some(read_dataset(name, roots[name])):
        scan = case.load()
        if scan.lungs is None or not {1, 2} <= set(np.unique(scan.lungs.labels)):
            continue
        x, y = (scan.lungs.grid.world(np.argwhere(scan.lungs.any))[:, axis] for axis in (0, 1))
        side = scan.lungs.labels[scan.lungs.any]
        assert x[side == 1].mean() > x[side == 2].mean() + 50
        middle = scan.volume.grid.world(np.argwhere(scan.volume.hu > 120))
        spine = middle[np.abs(middle[:, 0] - x.mean()) < 25]
        assert len(spine)
        assert spine[:, 1].mean() < y.mean() - 15, case.case


def same(scan, expected, case):
    """Voxels, masks and places of a scan are those that were stored."""
    assert scan.volume.grid.shape == expected.volume.grid.shape, case
    wanted_hu = np.maximum(expected.volume.hu, -1024)
    np.testing.assert_allclose(scan.volume.hu, wanted_hu, rtol=0, atol=0.01)
    for kind in ("lungs", "infiltrate"):
        got, wanted = getattr(scan, kind), getattr(expected, kind)
        assert (got is None) == (wanted is None), kind
        if got is not None:
            np.testing.assert_array_equal(got.labels, wanted.labels, err_msg=f"{kind} of {case}")
    assert scan.volume.grid.is_same_space(expected.volume.grid), case
    assert scan.volume.native.is_same_space(expected.volume.native), case


def test_the_scan_and_its_masks_are_those_that_were_stored(roots, name):
    if name not in EXPECTED:
        pytest.skip(f"{name} has no phantom behind its cases")
    for case in some(read_dataset(name, roots[name])):
        same(case.load(), EXPECTED[name](case.case), case.case)


VARIANTS = {
    "medseg": "nii nested folders outer", "medseg-slices": "nii folders",
    "covid19ctseg": "nested kaggle sevenzip mixed folders separate", "mosmed": "beside root flat flat-bare nii main",
    "covid1920": "flat", "an2020": "ct",
}  # fmt: skip
FEW = {
    "covid19ctseg": {"cases": ("coronacases_001", "coronacases_009", "radiopaedia_4_85506_1", "radiopaedia_7_85703_0")}
}


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, some_ in VARIANTS.items() for v in some_.split()])
def test_every_way_of_unpacking_is_the_same_set(roots, name, variant, tmp_path):
    cases = read_dataset(name, TREES[name](tmp_path, variant=variant, **FEW.get(name, {})))
    plain = [case for case in read_dataset(name, roots[name]) if name not in FEW or case.case in FEW[name]["cases"]]
    assert [(c.case, c.patient, c.source) for c in cases] == [(c.case, c.patient, c.source) for c in plain]
    for case in some(cases):
        same(case.load(), EXPECTED[name](case.case), case.case)


def test_a_mask_written_back_lies_on_the_file(roots, name, tmp_path):
    """Voxel for voxel in the file's order, and by the file's own header."""
    for case in some(read_dataset(name, roots[name])):
        scan = case.load()
        mask = scan.infiltrate if scan.infiltrate is not None else scan.lungs
        if case.files is None or mask is None or case.files.image.is_dir():
            continue
        out = tmp_path / f"{case.case}.nii.gz"
        write_as_filed(mask, out, scan.volume.native, case.files)
        written, image = read_stored(out, "nifti"), read_stored(case.files.image, require_kind(case.files.image))
        raw = read_stored(case.files.infiltrate or case.files.lungs, "nifti").values()
        if case.files.part is None:
            assert written.grid == image.grid
        else:
            raw = raw[:, :, case.files.part : case.files.part + 1]
        assert written.grid.is_same_space(filed_grid(case.files))
        labels = case.files.infiltrate_labels if case.files.infiltrate else case.files.lung_labels
        np.testing.assert_array_equal(written.array > 0, np.isin(raw, list(labels)))


def test_no_scan_is_kept(roots, name):
    cases = read_dataset(name, roots[name])[:3]
    kept = []
    for case in cases:
        scan = case.load()
        kept.append(weakref.ref(scan.volume.hu))
        del scan
        gc.collect()
    assert [ref() is None for ref in kept] == [True] * len(kept)


# --- what is refused: one line that names the path ------------------------------------------------------------------


def refused(name: str, root: Path) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read_dataset(name, root)
    assert "\n" not in str(caught.value)
    assert caught.value.path
    assert str(caught.value).startswith(str(caught.value.path))
    return caught.value


def test_an_empty_folder(name, tmp_path):
    error = refused(name, tmp_path)
    assert error.path == str(tmp_path)


def test_no_folder(name, tmp_path):
    assert "no such folder" in str(refused(name, tmp_path / "nowhere"))


def test_a_folder_of_something_else(name, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "note.txt").write_text("hello")
    refused(name, tmp_path)


def test_a_file_instead_of_a_folder(roots, name, tmp_path):
    a_file = tmp_path / "data.txt"
    a_file.write_text("hello")
    assert refused(name, a_file).path == str(a_file)


def test_an_archive_is_not_opened(name, tmp_path, monkeypatch):
    """A zip given for the folder gets one line; whatever it would inflate to, nobody looks."""
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(b"PK\x03\x04" + b"\0" * 64)
    monkeypatch.setattr("zipfile.ZipFile", None)
    assert "unzip it" in str(refused(name, bomb))


def test_half_a_download(name, copied):
    """The first scan that has a mask loses it."""
    cases = [c for c in read_dataset(name, copied) if c.files is not None and c.files.infiltrate is not None]
    if not cases:
        pytest.skip(f"{name} has no masks")
    files = cases[0].files
    for mask in copied.rglob("*"):
        same = mask.name == files.infiltrate.name and "infection" in str(mask).lower()
        if mask.is_file() and (mask == files.infiltrate or same):
            mask.unlink()
    message = str(refused(name, copied))
    assert cases[0].case.rpartition("_")[2] in message or "tr_mask" in message


MA, ROOT, THREE = {"cases": ("coronacases_001",)}, {"variant": "root"}, {"cases": (1, 2, 3)}
MA_SCANS, TRAIN = "COVID-19-CT-Seg_20cases", "COVID-19-20_v2/Train"
DAMAGED = [  # a set, how its tree is made, what is added to it and what is taken away, what is said
    ("covid19ctseg", MA, "Lung_Mask/mine.nii.gz", "", r"Lung_Mask/mine\.nii\.gz: mine is no name of this set"),
    ("covid19ctseg", MA, f"{MA_SCANS}/radiopaedia_org_covid-19-pneumonia-23_86359_0-dcm.nii.gz", "",
     "radiopaedia_23_86359_0 without lung mask"),
    ("covid19ctseg", MA, "", f"{MA_SCANS}/coronacases_001.nii.gz", "masks only"),
    ("covid1920", {}, "", f"{TRAIN}/volume-covid19-A-0247_ct.nii.gz", "of volume-covid19-A-0247 without its scan"),
    ("mosmed", ROOT, "", "masks", r"study_0255\.nii\.gz: 0255 \(and 2 more\) without mask"),
    ("mosmed", ROOT, "", "CT-1/study_0304.nii.gz", r"0304_mask\.nii\.gz: mask .* of 0304 without its scan"),
    ("mosmed", ROOT, "CT-2/study_0001.nii.gz", "",
     r"study 0001 twice: CT-0/study_0001\.nii\.gz and CT-2/study_0001\.nii\.gz"),
    *(("medseg", THREE, f"{folder}.zip", folder, rf"no scan in a folder {folder}; .*unzip {folder}\.zip first")
      for folder in ("rp_im", "rp_msk", "rp_lung_msk")),
    *(("medseg", THREE, "", f"{folder}/2.nii.gz", "half a download") for folder in ("rp_im", "rp_msk", "rp_lung_msk")),
    ("medseg", THREE, "rp_im/1.nii", "", r"scan 1 twice: rp_im/1\.nii and rp_im/1\.nii\.gz|1\.nii\.gz and rp_im/1"),
    ("medseg", THREE, "images_radiopedia.npy", "", "images_radiopedia.*neither voxel size nor orientation"),
    *(("medseg-slices", {}, "", f"{stem}.nii.gz", f"holds no {stem}") for stem in ("tr_im", "tr_mask")),
    ("medseg-slices", {}, "images_medseg.npy", "", "images_medseg.*neither voxel size nor orientation"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "made", "more", "less", "words"), DAMAGED)
def test_a_damaged_tree_is_refused_in_words(tmp_path, name, made, more, less, words):
    root = TREES[name](tmp_path, **made)
    if less:
        (root / less).rename(tmp_path.parent / f"{tmp_path.name}-{Path(less).name}")
    if more:
        (root / more).touch()
    with pytest.raises(DatasetError, match=words):
        read_dataset(name, root)


def test_links_out_of_the_folder(name, copied, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    files = read_dataset(name, copied)[0].files
    image = next(p for p in sorted(copied.rglob("*")) if p.is_file()) if files is None else files.image
    shutil.move(image, outside / image.name)
    image.symlink_to(outside / image.name)
    assert "out of the dataset's folder" in str(refused(name, copied))
    image.unlink()
    image.symlink_to("nothing-here")
    assert "leads nowhere" in str(refused(name, copied))
    image.unlink()
    (copied / "more").symlink_to(outside, target_is_directory=True)
    assert refused(name, copied).path == str(copied / "more")


def test_a_root_that_is_a_link_is_followed(roots, name, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(roots[name], target_is_directory=True)
    assert len(read_dataset(name, link)) == len(read_dataset(name, roots[name]))
