import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.errors import InputError, ModelError
from pneumoscope.io.files import (
    atomic_path,
    jsonable,
    prepare_folder,
    read_json,
    sha256,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def fail_halfway(target, error):
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_appears_whole_under_its_name(tmp_path):
    target = tmp_path / "deep" / "mask.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz"), "writers choose the format by the suffixes"
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert names(target.parent) == ["mask.nii.gz"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "report.json"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError):
        fail_halfway(target, ZeroDivisionError)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_a_writer_that_wrote_nothing_is_found_out(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "nothing.csv"):
        pass
    assert names(tmp_path) == []


def test_an_interrupt_cleans_up(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail_halfway(tmp_path / "a.csv", KeyboardInterrupt)
    assert names(tmp_path) == []


KILLED = """
import sys
from pathlib import Path
from pneumoscope.io.files import write_bytes
target = Path(sys.argv[1])
round = 0
while True:
    round += 1
    write_bytes(target, bytes([round % 251]) * 400_000)
    if round == 3:
        print("ready", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_leaves_a_whole_file(tmp_path, start):
    target = tmp_path / "weights.bin"
    random = np.random.default_rng(0)
    for _ in range(5):
        writer = start([sys.executable, "-c", KILLED, target], stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0, 0.02))
        writer.kill()
        writer.wait()
        data = target.read_bytes()
        assert len(data) == 400_000
        assert len(set(data)) == 1, "bytes of two writes are mixed"


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_text(tmp_path / "a.txt", "Θ µ\n")
    assert (tmp_path / "a.txt").read_bytes() == "Θ µ\n".encode()
    write_bytes(tmp_path / "a.bin", b"\r\n\x00")
    assert (tmp_path / "a.bin").read_bytes() == b"\r\n\x00"


def test_json_holds_only_json(tmp_path):
    value = {
        "nan": float("nan"), "inf": -np.inf, "float32": np.float32(0.5), "not a number": np.float64("nan"),
        "array": np.array([[1, 2], [3, 4]], np.uint8), "holes": np.array([1.0, np.nan]), "flag": np.bool_(True),
        "path": Path("a") / "b", "set": {3}, "tuple": (1, "zwei", None), 5: "a number as key",
    }  # fmt: skip
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert "NaN" not in text
    assert json.loads(text) == {
        "nan": None, "inf": None, "float32": 0.5, "not a number": None, "array": [[1, 2], [3, 4]],
        "holes": [1.0, None], "flag": True, "path": str(Path("a") / "b"), "set": [3], "tuple": [1, "zwei", None],
        "5": "a number as key",
    }  # fmt: skip


def test_json_keeps_the_order_and_foreign_letters(tmp_path):
    write_json(tmp_path / "a.json", {"z": 1, "a": "Müller"})
    assert (tmp_path / "a.json").read_text() == '{\n  "z": 1,\n  "a": "Müller"\n}\n'


def test_what_is_no_json_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"object": object()})
    assert names(tmp_path) == []


def test_jsonable_leaves_plain_values_alone():
    assert jsonable({"a": [1, 2.5, "x", None, True]}) == {"a": [1, 2.5, "x", None, True]}


def test_the_sum_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# --- Output folders ---------------------------------------------------------------------------------------------------


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    folder = prepare_folder(tmp_path / "a" / "b", marker="run.json")
    assert folder.is_dir()
    assert prepare_folder(folder, marker="run.json") == folder, "an empty folder is nobody's run"


def test_a_folder_with_another_run_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"already holds a run \(run.json\); use --overwrite"):
        prepare_folder(tmp_path, marker="run.json")
    (tmp_path / "mine.txt").write_text("keep")
    assert prepare_folder(tmp_path, marker="run.json", overwrite=True) == tmp_path
    assert prepare_folder(tmp_path, marker="run.json", resume=True) == tmp_path
    assert names(tmp_path) == ["mine.txt", "run.json"], "nothing is deleted"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_text("text")
    with pytest.raises(InputError, match="is a file, expected an output folder"):
        prepare_folder(tmp_path / "a", marker="run.json")
    with pytest.raises(InputError, match=r"cannot be made an output folder .*choose another"):
        prepare_folder(tmp_path / "a" / "b", marker="run.json")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_may_not_be_made_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be made an output folder"):
        prepare_folder(tmp_path / "a", marker="run.json")


def test_leftovers_of_a_dead_process_are_cleared_and_those_of_a_living_one_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f".tmp-{dead.pid}-mask.nii.gz", tmp_path / "case" / f".tmp-{dead.pid}-report.json"]
    kept = [tmp_path / f".tmp-{os.getpid()}-run.json", tmp_path / ".tmp-notes", tmp_path / "mask.nii.gz"]
    (tmp_path / "case").mkdir()
    for path in (*left, *kept):
        path.write_text("x")
    prepare_folder(tmp_path, marker="run.json")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


HOSTILE_JSON = {
    "nothing": b"", "half": b'{"a": [1, 2', "list": b"[1, 2]", "null": b"null",
    "nested for the parser": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "nested for its readers": b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "nan": b'{"dice": NaN}',
    "infinity": b'{"dice": -Infinity}', "infinite by exponent": b'{"dice": 1e999}',
    "400 digits": b'{"n": ' + b"7" * 400 + b"}", "5000 digits": b'{"n": ' + b"7" * 5000 + b"}",
    "half a character": b'{"case": "\\ud800"}', "latin": '{"case": "Jürgen"}'.encode("latin-1"),
    "binary": bytes(range(256)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_damaged_json_is_our_error_with_the_files_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "study.json"
    path.write_bytes(HOSTILE_JSON[name])
    with pytest.raises(ModelError, match="use --overwrite") as caught:
        read_json(path, error=ModelError, remedy="use --overwrite")
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_json_of_an_absent_file_or_a_folder_is_our_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(InputError, match="cannot be read"):
            read_json(path)


def test_sound_json_comes_back(tmp_path: Path) -> None:
    value = {"n": 2**64 - 1, "low": -(2**63), "x": [1.5, None, True, "Ü \U0001f600"], "deep": [[[[1]]]]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "bom.json", expected=list) == [1]
    (tmp_path / "pair.json").write_bytes(b'["\\ud83d\\ude00"]')
    assert read_json(tmp_path / "pair.json", expected=list) == ["\U0001f600"]


def test_csv_cells_with_commas_quotes_and_line_ends_come_back(tmp_path: Path) -> None:
    rows = [("Doe, Jane", 'a "b"', None), ("two\nlines", "Ü", 1.5)]
    write_csv(tmp_path / "a.csv", ("patient", "case", "n"), rows)
    write_csv(tmp_path / "b.csv", ("patient", "n"), [{"n": 1, "patient": "Doe, Jane", "other": 2}])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream)) == [
            ["patient", "case", "n"], ["Doe, Jane", 'a "b"', ""], ["two\nlines", "Ü", "1.5"],
        ]  # fmt: skip
    assert (tmp_path / "b.csv").read_text() == 'patient,n\n"Doe, Jane",1\n'


def test_sets_have_one_order_in_every_process() -> None:
    assert jsonable({"a": {"b", "c", "a"}, "n": frozenset({3, 1})}) == {"a": ["a", "b", "c"], "n": [1, 3]}
