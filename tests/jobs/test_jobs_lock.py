"""One run per output folder."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from pneumoscope.errors import InputError
from pneumoscope.jobs.lock import LOCK_FILE, locked, locks

HOLD = """
import sys
from pneumoscope.jobs.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder's lock."""
    call = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_run_is_refused_while_the_first_lives(other, tmp_path):
    with (
        pytest.raises(InputError, match=rf"in use by another run \(process {other.pid}, for \d+ s\)"),
        locked(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out" / LOCK_FILE).exists()
    other.stdin.close()
    other.wait(30)
    assert not (tmp_path / "out").exists(), "nothing was written into it"
    with locked(tmp_path / "out"):
        (tmp_path / "out" / "result").touch()
    assert os.listdir(tmp_path / "out") == ["result"]  # noqa: PTH208


def test_the_lock_of_a_killed_process_is_taken_over_and_that_is_said(other, tmp_path, caplog):
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead, but its parent has not taken note yet
    with locked(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert f"took over the lock of process {other.pid}" in caplog.text


def test_a_clock_that_is_set_frees_no_lock(other, tmp_path, monkeypatch):
    """Linux tells when a process started by the time since the start of the machine, and that by the clock of now."""
    for module in ("psutil", "psutil._pslinux"):
        monkeypatch.setattr(f"{module}.boot_time", lambda: 3600.0)
    with pytest.raises(InputError, match=f"in use by another run .process {other.pid}"), locked(tmp_path / "out"):
        pass


def test_a_process_number_that_is_used_again_is_not_the_owner(tmp_path, caplog):
    owner = {"pid": os.getpid(), "started": 1e9, "host": socket.gethostname()}
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner))
    with locked(tmp_path):
        pass
    assert "took over" in caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({"pid": 1, "started": 0, "host": "elsewhere"}), "process 1 on the host elsewhere, 3 h ago"),
        ("", r"cannot be read \(3 h old\)"),
        ("[" * 10_000, r"cannot be read \(3 h old\)"),
        *(
            (json.dumps({"pid": -1, "started": 0, "host": socket.gethostname()}).replace("-1", pid), "cannot be read")
            for pid in ("-1", "0", "1e999")
        ),
    ],
)
def test_a_lock_that_cannot_be_judged_is_left_to_a_person(tmp_path, content, words):
    lock = tmp_path / LOCK_FILE
    lock.write_text(content)
    old = lock.stat().st_mtime - 3 * 3600 - 60
    os.utime(lock, (old, old))
    with pytest.raises(InputError, match=words) as caught, locked(tmp_path):
        pass
    assert f"remove {lock}" in str(caught.value)
    assert lock.read_text() == content


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_a_lock_that_cannot_be_read(tmp_path, make):
    make(tmp_path / LOCK_FILE)
    with pytest.raises(InputError, match="no regular file"), locked(tmp_path):
        pass


def test_a_run_within_a_run_shares_the_lock_but_another_thread_does_not(tmp_path):
    refused = []

    def second():
        try:
            with locked(tmp_path):
                pass
        except InputError as problem:
            refused.append(problem)

    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).exists()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_the_decorator_locks_folders_and_leaves_none_behind(tmp_path):
    @locks("out", "more")
    def verb(out, more=None):
        assert (out / LOCK_FILE).exists()
        raise InputError("no scan")

    with pytest.raises(InputError, match="no scan"):
        verb(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
