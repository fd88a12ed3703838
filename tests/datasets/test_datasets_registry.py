from __future__ import annotations

import subprocess
import sys

import pytest

from pneumoscope.datasets.radiographs import READERS as XRAY_READERS
from pneumoscope.datasets.registry import DATASETS, READERS, dataset_info, read_dataset
from pneumoscope.errors import DatasetError

NAMES = [
    "medseg", "medseg-slices", "covid19ctseg", "mosmed", "ricord", "covid1920", "an2020", "nnunet", "decathlon",
    "miscnn", "manifest", "slices", "phantom", "kermany", "cohen", "hannover", "nih", "radiographs",
]  # fmt: skip


def test_every_name_of_the_interface_is_there():
    assert list(DATASETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_complete(name):
    info = dataset_info(name)
    assert info.title
    assert info.licence
    assert info.citation
    assert info.home
    assert info.kind in ("ct", "slices", "xray")
    assert all(isinstance(count, int) and count > 0 for count in info.expected.values())


def test_published_counts():
    """Slices, slices with lung, slices with infiltrate: Maganaris 2022b, Table 1."""
    counts = ("slices", "slices_with_lung", "slices_with_infiltrate")
    assert [DATASETS["medseg"].expected[key] for key in counts] == [829, 713, 373]
    assert [DATASETS["covid19ctseg"].expected[f"{key}@coronacases"] for key in counts] == [2581, 2156, 1351]
    assert [DATASETS["mosmed"].expected[f"{key}@masks"] for key in counts] == [2049, 1748, 785]
    assert sum(DATASETS["mosmed"].expected[f"scans@CT-{n}"] for n in range(5)) == DATASETS["mosmed"].expected["scans"]


def test_counts_have_the_names_that_checks_know():
    known = {"scans", "patients", "slices", "slices_with_lung", "slices_with_infiltrate", "images"}
    for name, info in DATASETS.items():
        assert {key.partition("@")[0] for key in info.expected} <= known, name


def test_unknown_names_list_the_known():
    with pytest.raises(DatasetError, match=r"there is no dataset 'mosmet'.*mosmed"):
        read_dataset("mosmet", ".")


def test_every_set_has_its_reader():
    radiographs = {name for name, info in DATASETS.items() if info.kind == "xray"}
    assert radiographs == set(XRAY_READERS)
    assert {name for name, info in DATASETS.items() if info.readable} == {*READERS, "phantom", *radiographs}


@pytest.mark.parametrize("name", XRAY_READERS)
def test_radiographs_are_pointed_to_their_own_reader(name, tmp_path):
    with pytest.raises(DatasetError, match=r"read_radiographs.*katsamenis-2020 --data"):
        read_dataset(name, tmp_path)


def test_listing_needs_neither_torch_nor_pandas():
    code = "import sys, pneumoscope.datasets.registry; print({'torch', 'pandas', 'scipy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
