from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.datasets.slices import SOURCES, read_slice_folder
from pneumoscope.errors import DatasetError


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def picture(value: int = 0) -> np.ndarray:
    """4 x 5, all different."""
    return np.arange(20).reshape(4, 5) * 10 + value


def write_scan(root: Path, name: str, numbers: list[str], *, lungs: bool = True, infection: bool = True) -> None:
    for offset, number in enumerate(numbers):
        save(root / name / "ct" / f"{number}.png", picture(offset))
        if lungs:
            save(root / name / "lung" / f"{number}.png", np.where(picture() > 50, 255, 0))
        if infection:
            save(root / name / "infection" / f"{number}.png", np.where(picture() > 150, 255, 0))


def test_coronacases_are_taken_as_they_lie(tmp_path):
    write_scan(tmp_path / "coronacases", "coronacases_010", ["000", "001"])
    write_scan(tmp_path / "coronacases", "coronacases_002", ["10", "9"])
    two, ten = read_slice_folder(tmp_path, "coronacases")
    assert (two.case, ten.patient, two.source) == ("coronacases_002", "coronacases_010", "coronacases")
    assert two.slices == ("9", "10")
    np.testing.assert_array_equal(ten.images, [picture(0), picture(1)])
    np.testing.assert_array_equal(ten.lungs, [picture() > 50] * 2)
    np.testing.assert_array_equal(ten.infiltrate, [picture() > 150] * 2)


def test_radiopaedia_is_turned_over_and_scans_share_patients(tmp_path):
    for name in ("radiopaedia_10_85902_1", "radiopaedia_10_85902_3", "radiopaedia_4_85506_1"):
        write_scan(tmp_path, name, ["000"])
    stacks = read_slice_folder(tmp_path, "radiopaedia")
    assert [s.patient for s in stacks] == ["radiopaedia_4", "radiopaedia_10", "radiopaedia_10"]
    np.testing.assert_array_equal(stacks[0].images[0], picture()[::-1])
    np.testing.assert_array_equal(stacks[0].lungs[0], (picture() > 50)[::-1])
    np.testing.assert_array_equal(stacks[0].infiltrate[0], (picture() > 150)[::-1])


def test_two_drawings_of_one_picture_are_one_patient(tmp_path):
    for stem in ("9", "10", "43"):
        save(tmp_path / "medseg" / "ct" / f"{stem}.png", picture())
        save(tmp_path / "medseg" / "infection" / f"{stem}.png", np.where(picture() > 100, 255, 0))
        save(tmp_path / "medseg" / "classes" / f"{stem}.png", (picture() > 100) * 1)
    stacks = {stack.case: stack.patient for stack in read_slice_folder(tmp_path, "medseg")}
    assert stacks == {"medseg-9": "medseg-9", "medseg-10": "medseg-10", "medseg-43": "medseg-10"}


def test_medseg_is_transposed_and_keeps_kinds(tmp_path):
    save(tmp_path / "medseg" / "ct" / "7.png", picture())
    save(tmp_path / "medseg" / "infection" / "7.png", np.where(picture() > 100, 255, 0))
    save(tmp_path / "medseg" / "classes" / "7.png", (picture() > 100) * 1 + (picture() > 150))
    (stack,) = read_slice_folder(tmp_path, "medseg")
    assert (stack.case, stack.patient, stack.lungs) == ("medseg-7", "medseg-7", None)
    np.testing.assert_array_equal(stack.images[0], picture().T)
    np.testing.assert_array_equal(stack.infiltrate[0], ((picture() > 100) * 1 + (picture() > 150)).T)


def test_masks_that_are_not_there_are_none(tmp_path):
    write_scan(tmp_path, "coronacases_001", ["0"], lungs=False, infection=False)
    (stack,) = read_slice_folder(tmp_path, "coronacases")
    assert stack.lungs is None
    assert stack.infiltrate is None


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="unknown slice source"):
        read_slice_folder(tmp_path, "corona")
    with pytest.raises(DatasetError, match="not a folder"):
        read_slice_folder(tmp_path / "none", "medseg")
    with pytest.raises(DatasetError, match="no <patient>/ct"):
        read_slice_folder(tmp_path, "coronacases")
    (tmp_path / "x" / "ct").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no \.png"):
        read_slice_folder(tmp_path, "coronacases")
    with pytest.raises(DatasetError, match="is missing"):
        read_slice_folder(tmp_path, "medseg")


def test_pictures_and_masks_must_pair(tmp_path):
    write_scan(tmp_path, "coronacases_001", ["0", "1"])
    (tmp_path / "coronacases_001" / "lung" / "1.png").unlink()
    with pytest.raises(DatasetError, match="no picture '1'"):
        read_slice_folder(tmp_path, "coronacases")
    for number in ("0", "1"):
        save(tmp_path / "coronacases_001" / "lung" / f"{number}.png", np.zeros((5, 5)))
    with pytest.raises(DatasetError, match="masks measure"):
        read_slice_folder(tmp_path, "coronacases")


def test_masks_of_zero_and_one_are_not_taken_for_empty(tmp_path):
    write_scan(tmp_path, "coronacases_001", ["0"])
    save(tmp_path / "coronacases_001" / "infection" / "0.png", picture() > 100)
    with pytest.raises(DatasetError, match="values up to 1"):
        read_slice_folder(tmp_path, "coronacases")


def test_damaged_and_uneven_pictures_are_refused(tmp_path):
    write_scan(tmp_path, "coronacases_001", ["0", "1"], lungs=False)
    save(tmp_path / "coronacases_001" / "ct" / "1.png", np.zeros((3, 3)))
    with pytest.raises(DatasetError, match="different sizes"):
        read_slice_folder(tmp_path, "coronacases")
    (tmp_path / "coronacases_001" / "ct" / "1.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(DatasetError, match="not a readable picture"):
        read_slice_folder(tmp_path, "coronacases")


def test_unknown_classes_are_refused(tmp_path):
    save(tmp_path / "ct" / "7.png", picture())
    save(tmp_path / "classes" / "7.png", np.full((4, 5), 3))
    with pytest.raises(DatasetError, match="classes above 2"):
        read_slice_folder(tmp_path, "medseg")


@pytest.mark.real
@pytest.mark.parametrize(
    ("source", "scans", "slices"), [("coronacases", 7, 789), ("radiopaedia", 5, 219), ("medseg", 45, 45)]
)
def test_real_slices(source, scans, slices):
    """Counts, and the view: bone in the middle (the spine) and infiltrates lie low; left mirrors right, not up down."""
    root = Path(os.environ.get("PNEUMOSCOPE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ct-slices"
    if not root.is_dir():
        pytest.skip(f"no real slices at {root}; set PNEUMOSCOPE_DATA")
    stacks = read_slice_folder(root, source)
    assert len(stacks) == scans
    assert sum(len(s.images) for s in stacks) == slices
    assert SOURCES[source].licence
    signs = []
    for stack in stacks:
        picture, drawn = stack.images.mean(axis=0), (stack.infiltrate > 0).sum(axis=0)
        height, width = picture.shape
        down = np.arange(height)[:, None] / height
        middle = picture[:, int(0.4 * width) : int(0.6 * width)]
        bone = middle >= np.quantile(middle, 0.95)
        sideways, upright = np.abs(picture - picture[:, ::-1]).mean(), np.abs(picture - picture[::-1]).mean()
        signs.append(
            (
                (bone * down).sum() / bone.sum() > 0.5,
                (drawn * down).sum() / max(drawn.sum(), 1) > 0.5,
                sideways < upright,
            )
        )
    assert (np.mean(signs, axis=0) > (0.7, 0.7, 0.6)).all()
