"""Damaged or hand-edited files of a study end as errors of ours that name them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.study.analysis.comparison import read_runs
from pneumoscope.study.engine import run_study
from pneumoscope.study.folder import kind_of, read_experiment, start
from pneumoscope.study.report import write_report

HOSTILE = {
    "nothing": b"", "half": b'{"recipe": "mag', "list": b"[]", "text": b'"x"',
    "nested": b'{"a":' * 9000 + b"0" + b"}" * 9000,
    "deep": b'{"rows":' + b"[" * 200 + b"]" * 200 + b"}", "nan": b'{"rows": NaN}',
    "huge": b'{"rows": ' + b"8" * 400 + b"}",
    "empty object": b"{}", "binary": bytes(range(256)), "half a character": b'{"recipe": "\\ud83d"}',
}  # fmt: skip

VALUES: tuple[Any, ...] = (None, 5, -1, 1e300, True, "x", [], {}, [[[]]], [None], {"a": {}})


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """The study without its networks."""
    left_out = shutil.ignore_patterns("*.ckpt", "*.safetensors")
    return Path(shutil.copytree(whole.folder, tmp_path / "study", ignore=left_out))


@pytest.mark.parametrize("name", ["experiment.json", "study.json", "matrix.json", "environment.json"])
@pytest.mark.parametrize("content", HOSTILE)
def test_a_damaged_file_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(HOSTILE[content])
    with pytest.raises(InputError) as caught:
        write_report(folder)
    said = str(caught.value)
    assert name in said or "study.json, matrix.json" in said
    assert len(said) < 700
    if name == "experiment.json":
        for use in (read_experiment, lambda f: read_runs([f])):
            with pytest.raises(InputError, match=r"experiment\.json"):
                use(folder)


@pytest.mark.parametrize("content", HOSTILE)
def test_a_study_with_a_damaged_description_is_not_resumed(whole, folder: Path, content: str) -> None:
    (folder / "experiment.json").write_bytes(HOSTILE[content])
    with pytest.raises(InputError, match=r"experiment\.json"):
        start(whole.experiment, folder, resume=True)
    start(whole.experiment, folder, overwrite=True)
    assert kind_of(folder) == "slices"
    assert not (folder / "matrix.csv").exists()


def edits(value: Any, source: random.Random) -> Iterator[Any]:
    """The document with one entry replaced, over and over."""
    while True:
        copy = json.loads(json.dumps(value))
        place, depth = copy, source.randint(1, 4)
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = source.choice(keys)
            inner = place[key]
            if depth == 1 or not isinstance(inner, (dict, list)) or not inner:
                place[key] = source.choice(VALUES)
                break
            place, depth = inner, depth - 1
        yield copy


@pytest.mark.parametrize(("name", "many"), [("experiment.json", 150), ("study.json", 25), ("matrix.json", 25)])
def test_hand_edited_entries_give_errors_of_ours_only(folder: Path, name: str, many: int) -> None:
    value = json.loads((folder / name).read_text())
    value.pop("numbers", None)
    documents, refused = edits(value, random.Random(7)), []
    for _ in range(many):
        (folder / name).write_text(json.dumps(next(documents)))
        try:
            if name == "experiment.json":
                read_experiment(folder)
            else:
                write_report(folder)
        except PneumoscopeError as problem:
            refused.append(str(problem))
    assert len(refused) > many / 10
    assert max(map(len, refused)) < 3000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"case,slice\n",
        b"\x00\xff\n" * 9,
        b'case,slice,patient,part\na,"1',
        b"case,slice,patient,part\na,x,b,test\n",
    ],
)
def test_a_damaged_split_is_named(small, hospitals, tmp_path: Path, content: bytes) -> None:
    from test_study_grows import part_of

    plan = part_of(small, 1, 1)
    start(plan, tmp_path)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "phantom-A.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"phantom-A\.csv"):
        run_study(plan, tmp_path, synthetic=True, device="cpu", resume=True)
