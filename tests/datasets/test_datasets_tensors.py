from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.registry import require_unique
from pneumoscope.datasets.tensors import TABLE_COLUMNS, SliceRecipe, SliceSet, build_slice_set, concatenate, slices_of
from pneumoscope.errors import DatasetError, GeometryError
from pneumoscope.geometry import Grid
from pneumoscope.preprocess.slices import HuWindow
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

WINDOWS = (HuWindow(-970, -150), HuWindow(-700, -450))


def scan(shape=(4, 5, 6), *, lungs=True, infiltrate=True) -> LabelledScan:
    """Lung in slices 1 to 4, infiltrate in slices 2 and 5; each voxel has its own HU."""
    grid = Grid.from_spacing(shape, (0.5, 0.8, 1.2))
    hu = np.linspace(-1000, 0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    lung, drawn = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    lung[2:, 1:4, 1:5], lung[:2, 1:4, 1:5] = 1, 2
    drawn[3, 3, 2] = drawn[0, 0, 5] = 1
    return LabelledScan(
        Volume(hu, grid, grid, "c"),
        Mask(lung, grid, LUNG_LABELS) if lungs else None,
        Mask(drawn, grid, INFILTRATE_LABEL) if infiltrate else None,
    )


def case_of(made: LabelledScan, name: str = "c") -> Case:
    return Case("manifest", name, f"patient of {name}", "s", "l", "", lambda: made)


def test_slices_are_in_the_house_view_and_say_where_they_come_from():
    made = scan()
    got = build_slice_set([case_of(made)], SliceRecipe(windows=WINDOWS, size=None))
    assert got.images.shape == (4, 3, 5, 4)
    assert got.table["slice"].tolist() == [1, 2, 3, 4]
    assert got.table["has_infiltrate"].tolist() == [False, True, False, False]
    assert tuple(got.table.columns) == TABLE_COLUMNS
    step_i, step_j, step_k = made.volume.spacing_mm
    assert got.table[["row_mm", "column_mm", "slice_mm"]].iloc[0].tolist() == pytest.approx([step_j, step_i, step_k])
    k, i, j = 2, 3, 1  # RAS index (3, 1, 2) lies at row 5-1-1, column 4-1-3
    expected = np.clip((made.volume.hu[i, j, k] + 970) / 820, 0, 1)
    np.testing.assert_allclose(got.as_float32()[1, 0, 5 - 1 - j, 4 - 1 - i], expected, atol=3e-4)
    assert got.target[1].sum() == 1
    assert got.target[1, 1, 0] == 1
    assert got.lungs[0, 2, 0] == 1  # right lung at the left edge of the picture
    assert got.lungs[0, 2, 3] == 2


def test_all_slices_are_kept_on_request():
    got = build_slice_set([case_of(scan())], SliceRecipe(windows=WINDOWS, size=8, only_lung_slices=False))
    assert len(got) == 6
    assert got.table["has_lung"].tolist() == [False, True, True, True, True, False]
    assert got.table["has_infiltrate"].tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize(("store", "tolerance"), [("float16", 2.5e-4), ("uint8", 2.0e-3)])
def test_what_is_stored_is_within_the_documented_rounding(store, tolerance):
    made = scan((7, 6, 6))
    hu = made.volume.hu[::-1, ::-1, :].transpose(2, 1, 0)[1:5]
    got = build_slice_set([case_of(made)], SliceRecipe(windows=WINDOWS, size=(6, 7), store=store))
    assert got.images.dtype == store
    floats = got.as_float32()
    assert floats.dtype == np.float32
    for channel, window in enumerate(WINDOWS):
        assert np.abs(floats[:, channel] - window.scale(hu)).max() <= tolerance
    assert set(np.unique(floats[:, -1])) == {0.0, 1.0}
    assert got.images.shape == (4, 3, 6, 7)


def test_missing_lung_masks_come_from_the_finder():
    made = scan(lungs=False)
    with pytest.raises(DatasetError, match="stores no lung mask"):
        build_slice_set([case_of(made)], SliceRecipe(windows=WINDOWS, size=None))
    found = build_slice_set([case_of(made)], SliceRecipe(windows=WINDOWS, size=None), lungs_for=lambda v: scan().lungs)
    assert len(found) == 4


def test_a_finder_that_answers_on_another_grid_is_refused():
    made = scan(lungs=False)
    with pytest.raises(GeometryError, match="another grid"):
        build_slice_set([case_of(made)], SliceRecipe(windows=WINDOWS), lungs_for=lambda v: scan((5, 5, 6)).lungs)


def test_a_case_without_reference_is_refused():
    with pytest.raises(DatasetError, match="no reference infiltrate"):
        build_slice_set([case_of(scan(infiltrate=False))], SliceRecipe(windows=WINDOWS))


def test_no_cases_and_no_lung_are_refused():
    with pytest.raises(DatasetError, match="0 cases"):
        build_slice_set([], SliceRecipe(windows=WINDOWS))
    made = scan()
    empty = LabelledScan(made.volume, Mask.empty(made.volume.grid, LUNG_LABELS), made.infiltrate)
    assert len(slices_of(case_of(empty), empty, SliceRecipe(windows=WINDOWS))) == 0
    with pytest.raises(DatasetError, match="no slice left"):
        build_slice_set([case_of(empty)], SliceRecipe(windows=WINDOWS))


def test_sets_join_and_split():
    seen = []
    both = build_slice_set(
        [case_of(scan(), "a"), case_of(scan(), "b")],
        SliceRecipe(windows=WINDOWS, size=5),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    assert both.table["case"].tolist() == ["a"] * 4 + ["b"] * 4
    second = both.select(both.table["case"].to_numpy() == "b")
    np.testing.assert_array_equal(second.images, both.images[4:])
    split = both.table.assign(part=["train", "test"] * 4)
    rows = both.indices_of(split, "test")
    assert rows.tolist() == [1, 3, 5, 7]
    assert both.select(rows[::-1]).table["slice"].tolist() == [4, 2, 4, 2]
    with pytest.raises(DatasetError, match="slice 1 of case 'a'"):
        second.indices_of(split, "train")


def test_slices_of_different_sizes_do_not_join():
    with pytest.raises(DatasetError, match="differ in shape"):
        build_slice_set([case_of(scan(), "a"), case_of(scan((5, 5, 6)), "b")], SliceRecipe(windows=WINDOWS, size=None))
    with pytest.raises(DatasetError, match="nothing to concatenate"):
        concatenate([])


def test_arrays_and_table_must_agree():
    with pytest.raises(DatasetError, match="equally many"):
        SliceSet(np.zeros((2, 1, 3, 3), np.float16), np.zeros((1, 3, 3), np.uint8), np.zeros((2, 3, 3), np.uint8),
                 pd.DataFrame({"case": ["a", "b"]}))  # fmt: skip


def test_masks_of_a_scan_must_lie_on_its_grid():
    with pytest.raises(GeometryError, match="infiltrate mask of c"):
        LabelledScan(scan().volume, None, scan((5, 5, 6)).infiltrate)


def test_case_names_are_unique():
    with pytest.raises(DatasetError, match="'c' twice"):
        require_unique([case_of(scan()), case_of(scan())], "here")
