"""Batches that are killed, terminated and interrupted: they resume, end with the same bytes, and leave no process."""

import logging
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.io.write import write_mask, write_volume
from tables import rows_of

SCANS = 20
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A manifest of small scans, each a little denser than the one before."""
    root = tmp_path_factory.mktemp("killed")
    made = scan_patient("B", 0, size="tiny")
    native = made.scan.volume.native
    write_mask(made.lungs, root / "lungs.nii.gz", native)
    write_mask(made.scan.truth, root / "infiltrate.nii.gz", native)
    lines = ["case,image,lungs,infiltrate"]
    for number in range(SCANS):
        volume = made.scan.volume
        write_volume(replace(volume, hu=volume.hu + np.float32(number)), root / f"s{number:02}.nii.gz")
        lines.append(f"s{number:02},s{number:02}.nii.gz,lungs.nii.gz,infiltrate.nii.gz")
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    return root / "cases.csv"


def call(table, out, *more):
    return [
        sys.executable, "-m", "pneumoscope", "quantify", "-i", table, "-o", out, "--fast", "--resume",
        *" ".join(map(str, more)).split(),
    ]  # fmt: skip


def contents(folder):
    """Bytes of all files but those that hold times, and leftovers that the next run removes."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    kept = {n: p for n, p in names.items() if n not in ("run.json", ".lock") and ".tmp-" not in n}
    return {name: path.read_bytes() for name, path in sorted(kept.items())}


def marks(out):
    """Which cases are done, and the files that say so: a case done again has another."""
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("*/done.json")}


def rows(out):
    return [row["case"] for row in rows_of(out / "cases.csv")]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("jobs", "kills"), [(1, 30), (2, 10)])
def test_killed_at_random_instants_and_resumed(table, tmp_path, start, group_ends, jobs, kills):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begun = time.monotonic()
    assert start(call(table, tmp_path / "whole"), **quiet).wait() == 0
    whole = time.monotonic() - begun
    expected, random, out = contents(tmp_path / "whole"), np.random.default_rng(jobs), tmp_path / "out"
    assert len(marks(tmp_path / "whole")) == SCANS
    killed = finished = 0
    done = {}
    while killed < kills or not finished:
        process = start(call(table, out, "--jobs", jobs), **quiet)
        seconds = float(random.uniform(0.1, 0.9)) * whole if killed < kills else 600.0
        try:
            assert process.wait(seconds) == 0
            ended = "finished"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed, ended = killed + 1, f"killed after {seconds:.2f} s"
        group_ends(process.pid)
        now = marks(out)
        assert done.items() <= now.items(), "a case that was done was done again"
        log.info("%d of %d kills: %s, %d cases done before, %d now", killed, kills, ended, len(done), len(now))
        done = now
        for name, data in contents(out).items():
            assert name == "cases.csv" or data == expected[name], f"other bytes: {name}"
        if ended == "finished":
            assert contents(out) == expected
            assert not list(out.rglob(".*"))
            finished, done = finished + 1, {}
            shutil.rmtree(out)  # and once more


@pytest.mark.parametrize(
    ("number", "jobs", "code", "word"),
    [
        (signal.SIGTERM, 2, 143, "terminated"),
        (signal.SIGTERM, 1, 143, "terminated"),
        pytest.param(signal.SIGINT, 2, 130, "interrupted", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "2 --on dask", 143, "terminated", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_batch_in_order(table, tmp_path, start, until, group_ends, number, jobs, code, word):
    out = tmp_path / "out"
    process = start(call(table, out, "--jobs", jobs), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until((out / "cases.csv").exists, process)
    process.send_signal(number)
    printed, errors = process.communicate()
    assert process.returncode == code, errors
    assert printed == ""
    assert errors.splitlines()[-1] == f"error: {word}; finished files are whole, the rest was not written"
    assert "dask" in str(jobs) or errors.count("\n") == 1
    group_ends(process.pid)
    before = marks(out)
    assert set(rows(out)) == set(before)
    assert 0 < len(before) < SCANS
    assert not list(out.rglob(".*"))
    again = start(call(table, out, "--jobs", jobs), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert f"resumed: {len(before)} of {SCANS} done before are kept" in again.communicate()[1]
    assert again.returncode == 0
    assert rows(out) == [f"s{n:02}" for n in range(SCANS)], "in the order of the input"
    assert before.items() <= marks(out).items()


def test_workers_end_when_their_parent_is_killed(table, tmp_path, start, until, group_ends):
    out = tmp_path / "out"
    process = start(call(table, out, "--jobs", 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until((out / "cases.csv").exists, process)
    process.kill()
    process.wait()
    group_ends(process.pid)
