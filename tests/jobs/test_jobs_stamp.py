"""A stamp changes with whatever shapes a result, and with nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pneumoscope.jobs.stamp import (
    content_of_arrays,
    content_of_files,
    content_of_table,
    is_done,
    mark_done,
    mark_started,
    read_done,
    stamp,
)


def test_settings_in_any_order_give_one_stamp() -> None:
    assert stamp("train", revision=1, a=1, b={"c": (1, 2)}) == stamp("train", revision=1, b={"c": [1, 2]}, a=1)


@pytest.mark.parametrize("other", [{"kind": "predict"}, {"revision": 2}, {"a": 2}, {"a": "1"}, {"more": None}])
def test_every_part_counts(other: dict) -> None:
    parts = {"kind": "train", "revision": 1, "a": 1}
    assert stamp(**parts) != stamp(**{**parts, **other})


def test_what_has_no_lasting_form_is_refused() -> None:
    with pytest.raises(TypeError):
        stamp("train", revision=1, model=object())


def test_content_of_a_folder_is_names_and_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").write_bytes(b"one")
    assert content_of_files([tmp_path / "a"]) == content_of_files([tmp_path / "b"])
    (tmp_path / "b" / "1.dcm").rename(tmp_path / "b" / "2.dcm")
    assert content_of_files([tmp_path / "a"]) != content_of_files([tmp_path / "b"])
    (tmp_path / "b" / "2.dcm").rename(tmp_path / "b" / "1.dcm")
    (tmp_path / "b" / "1.dcm").write_bytes(b"two")
    assert content_of_files([tmp_path / "a"]) != content_of_files([tmp_path / "b"])


def test_content_of_arrays_sees_type_shape_values_and_absence() -> None:
    a = np.arange(6, dtype=np.int16)
    assert content_of_arrays(a) == content_of_arrays(np.ascontiguousarray(a[::-1])[::-1])
    others = [(a.astype(np.int32),), (a.reshape(2, 3),), (a + 1,), (a, None), (None, a), ()]
    assert len({content_of_arrays(a), *(content_of_arrays(*o) for o in others)}) == 1 + len(others)
    assert content_of_arrays(np.zeros((0, 4))) != content_of_arrays(np.zeros((0, 5)))
    assert content_of_arrays(np.array(["a", "b"], object)) == content_of_arrays(np.array(["a", "b"], object))


def test_a_job_is_done_from_its_mark_on(tmp_path) -> None:
    assert not is_done(tmp_path, "s")
    mark_done(tmp_path, "s", row={"lung_ml": 3.5})
    assert is_done(tmp_path, "s")
    assert not is_done(tmp_path, "t")
    assert read_done(tmp_path)["row"] == {"lung_ml": 3.5}
    mark_started(tmp_path)
    assert not is_done(tmp_path, "s")


@pytest.mark.parametrize("damaged", ["", "{", "[]", "[" * 100_000, '"s"'])
def test_a_damaged_mark_marks_nothing(tmp_path, damaged: str) -> None:
    (tmp_path / "done.json").write_text(damaged)
    assert not is_done(tmp_path, "s")


def test_the_content_of_a_table_is_its_names_and_values() -> None:
    table = pd.DataFrame({"case": ["a", "b"], "slice": [3, 4], "row_mm": [0.7, float("nan")], "lung": [True, False]})
    content = content_of_table(table)
    assert content_of_table(table.set_index(pd.Index([9, 8]))) == content
    changed = [
        table.assign(case=["a", "c"]),
        table.assign(row_mm=[0.71, float("nan")]),
        table.assign(lung=[True, True]),
        table.rename(columns={"row_mm": "column_mm"}),
        table[["slice", "case", "row_mm", "lung"]],
        table.iloc[::-1],
    ]
    assert len({content, *map(content_of_table, changed)}) == 7
