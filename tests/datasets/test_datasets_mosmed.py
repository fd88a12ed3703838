"""MosMedData: its many trees, its registry, and what it lacks."""

from __future__ import annotations

import time
import zipfile

import nibabel
import numpy as np
import pytest
from trees import (
    EXPECTED,
    MOSMED,
    MOSMED_COUNTS,
    MOSMED_MASKED,
    make_mosmed,
    make_mosmed_empty,
    registry_rows,
    write_workbook,
)

from pneumoscope.datasets.case import MASKS, in_subset
from pneumoscope.datasets.public.mosmed import (
    MAX_PART_BYTES,
    find_registry,
    published_category,
    read_mosmed_cases,
    read_registry,
)
from pneumoscope.datasets.registry import DATASETS
from pneumoscope.errors import DatasetError

CATEGORY = {number: category for category, numbers in MOSMED.items() for number in numbers}


# --- trees ----------------------------------------------------------------------------------------------------------


def test_studies_classes_and_masks(tmp_path):
    cases = read_mosmed_cases(make_mosmed(tmp_path))
    assert [(case.case, case.source) for case in cases] == [(f"study_{n:04d}", name) for n, name in CATEGORY.items()]
    masked = [case.case for case in cases if in_subset(case, MASKS)]
    assert masked == [f"study_{number:04d}" for number in MOSMED_MASKED]


def test_the_studies_folder_or_one_class_alone_can_be_named(tmp_path):
    root = make_mosmed(tmp_path) / "COVID19_1110"
    (root / "masks").rename(root / "studies" / "masks")
    assert len(read_mosmed_cases(root / "studies")) == len(CATEGORY)
    only = read_mosmed_cases(root / "studies" / "CT-3")
    assert [(case.case, case.source) for case in only] == [("study_1064", "CT-3"), ("study_1108", "CT-3")]


def test_listing_1110_studies_opens_none_and_takes_seconds(tmp_path):
    """Files of no bytes: whoever opens one fails. Counts by class are the published ones."""
    root = make_mosmed_empty(tmp_path / "tree")
    began = time.process_time()
    cases = read_mosmed_cases(root)
    assert time.process_time() - began < 20  # 0.3 s on an idle machine
    expected = DATASETS["mosmed"].expected
    assert len(cases) == expected["scans"] == 1110
    for key, count in expected.items():
        what, _, subset = key.partition("@")
        if what == "scans":
            assert sum(in_subset(case, subset) for case in cases) == count, key


def test_classes_by_number_are_the_published_ranges():
    for category, (first, last) in MOSMED_COUNTS.items():
        assert published_category(first) == published_category(last) == category
    assert published_category(0) == published_category(1111) == ""


def test_what_it_lacks(tmp_path):
    """No lung masks, one kind of infiltrate; a study without a mask is not a study without findings."""
    cases = {case.case: case for case in read_mosmed_cases(make_mosmed(tmp_path))}
    scan = cases["study_0255"].load()
    assert scan.lungs is None
    assert dict(scan.infiltrate.names) == {1: "infiltrate"}
    assert cases["study_0001"].load().infiltrate is None


def test_padding_outside_the_field_of_view_is_raised_to_air(tmp_path):
    """Stored as -2048 in some studies."""
    root = make_mosmed(tmp_path, variant="root")
    path = root / "CT-4" / "study_1109.nii.gz"
    image = nibabel.load(path)
    array = np.asarray(image.dataobj).copy()
    array[array == -1024] = -2048
    nibabel.Nifti1Image(array, image.affine).to_filename(path)
    scan = next(c for c in read_mosmed_cases(root) if c.case == "study_1109").load()
    np.testing.assert_array_equal(scan.volume.hu, EXPECTED["mosmed"]("study_1109").volume.hu)
    assert [f.code for f in scan.volume.findings] == ["IN-NII-067"]


def test_masks_stored_as_reals_are_compared_with_a_half(tmp_path):
    root = make_mosmed(tmp_path)
    path = root / "COVID19_1110" / "masks" / "study_0255_mask.nii.gz"
    image = nibabel.load(path)
    drawn = np.asarray(image.dataobj)
    nibabel.Nifti1Image(np.where(drawn > 0, 0.8, 0.3), image.affine).to_filename(path)
    case = next(c for c in read_mosmed_cases(root) if c.case == "study_0255")
    np.testing.assert_array_equal(case.load().infiltrate.labels, EXPECTED["mosmed"]("study_0255").infiltrate.labels)


# --- registry -------------------------------------------------------------------------------------------------------


def test_the_workbook_says_the_class_where_folders_do_not(tmp_path):
    """Paths begin with a slash, cells carry blanks, a study stands in another class than its number says."""
    root = make_mosmed(tmp_path, variant="flat")
    rows = registry_rows()
    rows[1][1] = " CT-3 "
    write_workbook(root / "dataset_registry.xlsx", rows)
    assert read_mosmed_cases(root)[0].source == "CT-3"
    (root / "dataset_registry.xlsx").unlink()
    assert read_mosmed_cases(root)[0].source == "CT-0"


def test_the_folder_goes_before_the_workbook(tmp_path):
    """Where folders say the class the workbook is not even opened."""
    root = make_mosmed(tmp_path)
    (root / "COVID19_1110" / "dataset_registry.xlsx").write_bytes(b"damaged")
    assert read_mosmed_cases(root)[0].source == "CT-0"


@pytest.mark.parametrize("suffix", ["xlsx", "csv", "semicolons"])
def test_registry_rows(tmp_path, suffix):
    path = tmp_path / f"dataset_registry.{'xlsx' if suffix == 'xlsx' else 'csv'}"
    if suffix == "xlsx":
        write_workbook(path, registry_rows())
    else:
        mark = "," if suffix == "csv" else ";"
        path.write_text("\n".join(mark.join(row) for row in registry_rows()), encoding="utf-8-sig")
    assert read_registry(path) == {f"{number:04d}": category for number, category in CATEGORY.items()}


def test_columns_may_stand_in_any_order_and_under_any_heading(tmp_path):
    rows = [[row[3], row[2], row[1]] for row in registry_rows()]
    rows[0] = ["a", "b", "c"]
    assert read_registry(write_workbook(tmp_path / "dataset_registry.xlsx", rows))["1109"] == "CT-4"


def test_inline_strings_are_read(tmp_path):
    sheet = (
        '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData><row r="1">'
        '<c t="inlineStr"><is><t>study_0007</t></is></c><c t="inlineStr"><is><r><t>CT</t></r><r><t>-2</t></r></is></c>'
        "</row></sheetData></worksheet>"
    )
    path = tmp_path / "dataset_registry.xlsx"
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", sheet)
    assert read_registry(path) == {"0007": "CT-2"}


def test_the_workbook_goes_before_the_csv(tmp_path):
    a, b = tmp_path / "dataset_registry.csv", tmp_path / "Dataset_Registry.XLSX"
    assert find_registry([a, b, tmp_path / "other.xlsx"]) == b
    assert find_registry([a]) == a
    assert find_registry([tmp_path / "other.csv"]) is None


def packed(path, **parts):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, data in parts.items():
            book.writestr({"sheet": "xl/worksheets/sheet1.xml", "strings": "xl/sharedStrings.xml"}[name], data)
    return path


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda p: p.write_bytes(b"PK\x03\x04 cut off"), "not a readable workbook"),
        (lambda p: packed(p, sheet="<worksheet><row>"), "damaged"),
        (lambda p: packed(p, sheet="<worksheet/>"), "lists no study"),
        (lambda p: packed(p, sheet='<!DOCTYPE x [<!ENTITY a "b">]><worksheet/>'), "hostile"),
        (lambda p: packed(p, sheet=b" " * (MAX_PART_BYTES + 1)), "more than 16 MiB"),
        (lambda p: packed(p, sheet='<w><row><c t="s"><v>4</v></c></row></w>', strings="<sst/>"), "names string 4 of 0"),
        (
            lambda p: packed(p, sheet='<w><row><c t="s"><v>x</v></c></row></w>', strings="<sst/>"),
            "not a readable workbook",
        ),
        (lambda p: p.mkdir(), "not a readable workbook"),
    ],
)
def test_workbooks_that_are_not_read(tmp_path, write, match):
    path = tmp_path / "dataset_registry.xlsx"
    write(path)
    with pytest.raises(DatasetError, match=match) as caught:
        read_registry(path)
    assert str(caught.value).startswith(str(path))


def test_a_csv_that_is_no_text(tmp_path):
    path = tmp_path / "dataset_registry.csv"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DatasetError, match="cannot be read as a table"):
        read_registry(path)


def test_a_damaged_registry_matters_where_it_is_needed(tmp_path):
    root = make_mosmed(tmp_path, variant="flat")
    (root / "dataset_registry.xlsx").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"dataset_registry\.xlsx: is not a readable workbook"):
        read_mosmed_cases(root)
