"""Full disks, quotas, limits on file size and address space: named as such, and no file of ours half exists."""

import errno
import json
import shutil
import subprocess
import sys

import pytest

from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.errors import PneumoscopeError, RunError, shortage
from pneumoscope.io.files import atomic_path
from tables import rows_of


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("no-room") / "B"
    write_phantom(folder, "B", 2, size="tiny")
    return folder / "manifest.csv"


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 400 kB, without the rights to make one: skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("no rights to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def quantify(start, table, out, *more, limit="true"):
    call = [sys.executable, "-m", "pneumoscope", "quantify", "-i", table, "-o", out, *more]
    shell = ["sh", "-c", f'{limit}; exec "$@"', "sh", *call]
    process = start(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate()
    return process.returncode, errors


def failures(out):
    return [row["error"] for row in rows_of(out / "cases.csv") if row["status"] == "failed"]


def no_half_file(out):
    assert not list(out.rglob(".*"))
    assert not list(out.rglob("done.json")), "a failed case is not done"
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    for path in out.rglob("*.html"):
        assert path.read_text().rstrip().endswith("</html>")


def test_a_full_disk_is_named_with_the_file_and_the_run_resumes(start, table, full_disk):
    code, errors = quantify(start, table, full_disk / "out")
    assert code == 1, errors
    said = failures(full_disk / "out")
    assert len(said) == 2
    assert all("the disk is full" in line and str(full_disk / "out") in line for line in said), said
    no_half_file(full_disk / "out")
    subprocess.run(["mount", "-o", "remount,size=40m", full_disk], check=True)
    assert quantify(start, table, full_disk / "out", "--resume")[0] == 0
    assert failures(full_disk / "out") == []


def test_an_evaluation_without_room_names_the_disk(start, table, full_disk):
    (full_disk / "fill").write_bytes(bytes(396 << 10))
    masks = table.parent
    call = [sys.executable, "-m", "pneumoscope", "evaluate", "-i", masks, "-r", masks, "-o", full_disk / "out"]
    process = start(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "the disk is full" in errors


def test_a_limit_on_file_size_is_named(start, table, tmp_path):
    code, errors = quantify(start, table, tmp_path / "out", limit="ulimit -f 100")
    assert code == 1, errors
    said = failures(tmp_path / "out")
    assert len(said) == 2
    assert all("ulimit -f" in line and "view.html" in line for line in said), said
    no_half_file(tmp_path / "out")


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
)
def test_a_writer_without_room_names_its_file_and_leaves_the_old_one(tmp_path, problem):
    def write():
        with atomic_path(tmp_path / "mask.nii.gz") as temporary:
            temporary.write_bytes(b"half")
            raise problem

    (tmp_path / "mask.nii.gz").write_bytes(b"old")
    with pytest.raises(RunError, match="could not be written") as caught:
        write()
    assert str(caught.value).startswith(str(tmp_path / "mask.nii.gz"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("mask.nii.gz", b"old")]


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_way_to_say_that_memory_ran_out(problem):
    assert "out of memory or address space" in str(shortage(problem))


@pytest.mark.parametrize(
    "problem", [ValueError("memory"), OSError(errno.ENOENT, "No such file"), ImportError("no name")]
)
def test_other_problems_are_no_shortage(problem):
    assert shortage(problem) is None
    assert not isinstance(problem, PneumoscopeError)
