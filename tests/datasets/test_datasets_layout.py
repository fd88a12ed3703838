from __future__ import annotations

import os
import zipfile

import pytest

from pneumoscope.datasets.formats import layout
from pneumoscope.datasets.formats.layout import natural, require_pairs, stem_of, walk
from pneumoscope.errors import DatasetError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def stems(root):
    return [scan.stem for scan in walk(root, "scans").scans]


def test_files_at_any_depth_with_the_folders_they_lie_in(tmp_path):
    tree = walk(touch(tmp_path, "Outer/RP_im/rp_im/1.nii.gz", "readme.txt"), "scans")
    (scan,) = tree.scans
    assert (scan.stem, scan.folders[-3:]) == ("1", ("outer", "rp_im", "rp_im"))
    assert scan.below(("rp_im", "outer")) == "rp_im"
    assert scan.below(("rp_msk",)) is None
    assert [p.name for p in tree.others] == ["readme.txt"]


def test_numbers_are_sorted_as_numbers(tmp_path):
    assert stems(touch(tmp_path, "10.nii", "9.nii", "1.nii.gz", "2.nii")) == ["1", "2", "9", "10"]
    assert sorted(["a10", "a9", "b", "a"], key=natural) == ["a", "a9", "a10", "b"]


@pytest.mark.parametrize("folder", ["x.nii", "x.nii.gz", "X.NII.GZ"])
def test_a_folder_called_like_a_scan_counts_as_the_scan(tmp_path, folder):
    (scan,) = walk(touch(tmp_path, f"{folder}/other.nii", f"{folder}/note.txt"), "scans").scans
    assert scan.stem.lower() == "x"
    assert scan.path == tmp_path / folder / "other.nii"


@pytest.mark.parametrize("inside", [(), ("a.nii", "b.nii")])
def test_a_folder_called_like_a_scan_with_none_or_several(tmp_path, inside):
    (tmp_path / "x.nii").mkdir()
    touch(tmp_path, *(f"x.nii/{name}" for name in inside))
    with pytest.raises(DatasetError, match=rf"x\.nii: .*{len(inside)} NIfTI files, expected one"):
        walk(tmp_path, "scans")


def test_hidden_files_and_what_macos_leaves_are_passed_over(tmp_path):
    touch(tmp_path, "1.nii", "._1.nii", ".DS_Store", "__MACOSX/rp_im/._1.nii.gz", "__MACOSX/2.nii.gz", ".git/3.nii")
    assert stems(tmp_path) == ["1"]


def test_stems_lose_every_suffix():
    assert [stem_of(n) for n in ("a.nii", "A.NII.GZ", "a.b.nii.gz", "d/a.nii.nii.gz", "a")] == [
        "a", "A", "a.b", "a", "a",
    ]  # fmt: skip


def test_two_files_with_one_name_are_refused_with_both_paths(tmp_path):
    tree = walk(touch(tmp_path, "a/1.nii", "b/1.nii.gz"), "scans")
    with pytest.raises(DatasetError, match=r"scan 1 twice: a/1\.nii and b/1\.nii\.gz"):
        tree.by_key("scan", lambda scan: scan.stem)


def test_archives_beside_are_named_and_not_opened(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "rp_im.zip", "w") as packed:
        packed.writestr("rp_im/1.nii.gz", "")
    monkeypatch.setattr("zipfile.ZipFile", None)
    with pytest.raises(DatasetError, match=r"holds no NIfTI file.*unzip rp_im\.zip first"):
        walk(tmp_path, "scans")


@pytest.mark.parametrize("name", ["a.zip", "a.7z", "a.tar", "a.tar.gz", "A.ZIP"])
def test_an_archive_for_the_folder(tmp_path, name):
    touch(tmp_path, name)
    with pytest.raises(DatasetError, match=r"is an archive; unzip it"):
        walk(tmp_path / name, "scans")


def test_a_pipe_for_the_folder_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="expected a folder"):
        walk(tmp_path / "pipe", "scans")


def test_links_inside_are_read_and_loops_end(tmp_path):
    touch(tmp_path, "real/1.nii")
    (tmp_path / "2.nii").symlink_to("real/1.nii")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "real" / "self").symlink_to("self")
    with pytest.raises(DatasetError, match=r"self: is a link that leads nowhere"):
        walk(tmp_path, "scans")
    (tmp_path / "real" / "self").unlink()
    assert stems(tmp_path) == ["2", "1"]


def test_a_link_inside_a_folder_called_like_a_scan(tmp_path):
    root = touch(tmp_path / "root", "ok.nii")
    touch(tmp_path, "outside.nii")
    (root / "x.nii").mkdir()
    (root / "x.nii" / "x.nii").symlink_to("../../outside.nii")
    with pytest.raises(DatasetError, match="out of the dataset's folder"):
        walk(root, "scans")


def test_a_sibling_whose_name_begins_alike_is_outside(tmp_path):
    """/data/set-2 is not inside /data/set."""
    root = touch(tmp_path / "set", "1.nii")
    touch(tmp_path, "set-2/2.nii")
    (root / "2.nii").symlink_to("../set-2/2.nii")
    with pytest.raises(DatasetError, match="out of"):
        walk(root, "scans")


def test_a_folder_far_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "MAX_ENTRIES", 5)
    touch(tmp_path, *(f"{n}.txt" for n in range(7)))
    with pytest.raises(DatasetError, match="more than 5 files"):
        walk(tmp_path, "scans")


def test_folders_nested_too_deep_are_not_entered(tmp_path):
    touch(tmp_path, "/".join("abcdef") + "/1.nii", "/".join("abcdefg") + "/2.nii")
    assert stems(tmp_path) == ["1"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open any folder")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DatasetError, match="cannot be opened"):
        walk(tmp_path, "scans")


def test_pairs(tmp_path):
    tree = walk(touch(tmp_path, "1.nii"), "pairs")
    one, two = {"a": tmp_path / "a"}, {"a": tmp_path / "a", "b": tmp_path / "b", "c": tmp_path / "c"}
    require_pairs(tree, one, one, "mask")
    with pytest.raises(DatasetError, match=r"/b: b \(and 1 more\) without mask: half a download"):
        require_pairs(tree, two, one, "mask")
    with pytest.raises(DatasetError, match=r"mask of b \(and 1 more\) without its scan"):
        require_pairs(tree, one, two, "mask")
    require_pairs(tree, one, two, "mask", both=False)
