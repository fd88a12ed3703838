"""MosMedData COVID19_1110: 1110 chest CTs in 8 mm slices by class CT-0 to CT-4, 50 of them with infiltrate masks.

The class of a study is its folder, else what ``dataset_registry`` says, a workbook (``.xlsx``) or ``.csv``. A workbook
is a zip of XML. The one table in it needs no spreadsheet library: cells are read in order, shared strings looked up.
Sizes are checked before anything is inflated, and document types, which could expand without end, are refused.
Headings differ between copies, so columns are known by what stands in them.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from pneumoscope.datasets.case import Case, CaseFiles, make_case
from pneumoscope.datasets.formats.labelled import load_case
from pneumoscope.datasets.formats.layout import Tree, require_pairs, walk
from pneumoscope.errors import DatasetError

STEM = "dataset_registry"
MAX_PART_BYTES = 16 * 2**20
"""The table of 1110 rows takes about 0.2 MB; a part of the workbook that claims more is not inflated."""

_CATEGORY = re.compile(r"ct[-_ ]?([0-4])", re.IGNORECASE)
_STUDY = re.compile(r"(?:.*[/\\])?study_(\d{4})(?:\.nii(?:\.gz)?)?", re.IGNORECASE)
_SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")


def find_registry(files: Iterable[Path]) -> Path | None:
    """The registry among files, the workbook before the CSV; None when there is none."""
    found = [p for p in files if p.stem.lower() == STEM and p.suffix.lower() in (".xlsx", ".csv")]
    return max(found, key=lambda p: p.suffix.lower() == ".xlsx", default=None)


def read_registry(path: Path) -> dict[str, str]:
    """Class ``CT-0`` ... ``CT-4`` by study number (four digits).

    Cells are stripped; paths may begin with ``/``. Rows without study or class (the heading, notes) are passed over.

    Raises:
        DatasetError: the file is damaged or no such table.
    """
    rows = _workbook_rows(path) if path.suffix.lower() == ".xlsx" else _csv_rows(path)
    found: dict[str, str] = {}
    for row in rows:
        cells = [cell.strip() for cell in row]
        study = next((m[1] for m in map(_STUDY.fullmatch, cells) if m), None)
        category = next((f"CT-{m[1]}" for m in map(_CATEGORY.fullmatch, cells) if m), None)
        if study and category:
            found[study] = category
    if not found:
        raise DatasetError("lists no study with a class CT-0 to CT-4; fetch it again, or remove it", path=path)
    return found


def _csv_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            text = stream.read(MAX_PART_BYTES)
        delimiter = ";" if text.count(";") > text.count(",") else ","
        return list(csv.reader(text.splitlines(), delimiter=delimiter))
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"cannot be read as a table: {error}", path=path) from None


def _workbook_rows(path: Path) -> list[list[str]]:
    try:
        with zipfile.ZipFile(path) as book:
            strings = _shared_strings(book)
            sheets = sorted(name for name in book.namelist() if _SHEET.fullmatch(name))
            return [row for name in sheets for row in _sheet_rows(_part(book, name), strings)]
    except DatasetError as error:
        raise DatasetError(error.message, path=path) from None
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DatasetError(f"is not a readable workbook ({error}); fetch it again, or remove it", path=path) from None


def _part(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if book.getinfo(name).file_size > MAX_PART_BYTES:
        raise DatasetError(f"its part {name} inflates to more than {MAX_PART_BYTES >> 20} MiB; it is hostile")
    with book.open(name) as stream:
        data = stream.read(MAX_PART_BYTES + 1)
    if len(data) > MAX_PART_BYTES or b"<!DOCTYPE" in data:
        raise DatasetError(f"its part {name} is larger than it says, or defines entities; it is hostile")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DatasetError(f"its part {name} is damaged ({error}); fetch it again, or remove it") from None


def _shared_strings(book: zipfile.ZipFile) -> list[str]:
    name = "xl/sharedStrings.xml"
    if name not in book.namelist():
        return []
    return [_text(item) for item in _part(book, name) if _tag(item) == "si"]


def _sheet_rows(sheet: ElementTree.Element, strings: list[str]) -> list[list[str]]:
    return [[_cell(c, strings) for c in row if _tag(c) == "c"] for row in sheet.iter() if _tag(row) == "row"]


def _cell(cell: ElementTree.Element, strings: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return _text(cell)
    value = next((part.text or "" for part in cell if _tag(part) == "v"), "")
    if cell.get("t") != "s":
        return value
    index = int(value)
    if not 0 <= index < len(strings):
        raise ValueError(f"cell {cell.get('r')} names string {index} of {len(strings)}")
    return strings[index]


def _text(element: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in element.iter() if _tag(part) == "t")


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


NAME = "mosmed"
EXPECTED = "studies/CT-0 to CT-4 with study_0001.nii.gz and so on, and masks"
MASKED = range(255, 305)  # Studies with a mask, all in CT-1
LAST_STUDY = (254, 938, 1063, 1108, 1110)  # Number of the last study of CT-0 ... CT-4.

_STUDY_FILE = re.compile(r"study_(\d{4})", re.IGNORECASE)
_MASK = re.compile(r"study_(\d{4})_mask", re.IGNORECASE)


def read_mosmed_cases(root: str | Path) -> list[Case]:
    """The studies as cases ``study_0001`` ..., source ``CT-0`` ... ``CT-4``; each study is a patient of its own.

    The class of a study is the name of the folder it lies in; where that says nothing, what the registry
    (``dataset_registry.xlsx`` or ``.csv``) says; where there is none, the published ranges of study numbers.

    Args:
        root: a folder that holds the studies, however deep, as ``.nii.gz`` or ``.nii``.

    Raises:
        DatasetError: no studies, a study of 0255 to 0304 without mask, a mask without study, a study twice, or a
            registry that is needed and cannot be read.
    """
    tree = walk(root, EXPECTED)
    images = tree.by_key("study", _STUDY_FILE)
    masks = tree.by_key("mask of study", _MASK)
    if not images:
        raise tree.error("holds no study_NNNN.nii.gz")
    to_be_masked = {number: path for number, path in images.items() if int(number) in MASKED or number in masks}
    require_pairs(tree, to_be_masked, masks, "mask (masks/study_NNNN_mask.nii.gz)")
    categories = _categories(tree, images)
    cases = []
    for number, image in images.items():
        case = f"study_{number}"
        files = CaseFiles(image, infiltrate=masks.get(number), lung_labels={}, infiltrate_labels={1: 1})
        cases.append(make_case(NAME, case, partial(load_case, case, files), files, source=categories[number]))
    return cases


def published_category(number: int) -> str:
    """The class of a study by the published ranges; empty for numbers beyond 1110."""
    return next((f"CT-{n}" for n, last in enumerate(LAST_STUDY) if 1 <= number <= last), "")


def _categories(tree: Tree, images: dict[str, Path]) -> dict[str, str]:
    """Class of each study; the registry is opened only when a folder does not say."""
    by_folder = {}
    for scan in tree.scans:
        named = map(_CATEGORY.fullmatch, reversed(scan.folders))
        by_folder[scan.path] = next((f"CT-{match[1]}" for match in named if match), "")
    found = {number: by_folder[path] for number, path in images.items()}
    if all(found.values()):
        return found
    table = find_registry(tree.others)
    registered = {} if table is None else read_registry(table)
    return {
        number: category or registered.get(number) or published_category(int(number))
        for number, category in found.items()
    }
