"""Failures of the machine while a sound scan is read: named with their place, never taken for a damaged file."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dicom_making as making
import pytest
from border_files import scan_file
from PIL import Image

from pneumoscope.errors import RunError
from pneumoscope.io.formats.radiograph import read_radiograph
from pneumoscope.io.read import read_mask, read_volume


def series(folder: Path) -> Path:
    return making.save(making.make_series(), folder / "series")


def zip_of(folder: Path) -> Path:
    path = folder / "scan.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(scan_file(folder, "scan.nii"), "scan.nii")
    return path


def picture(folder: Path) -> Path:
    Image.linear_gradient("L").save(folder / "a.png")
    return folder / "a.png"


SCANS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "NIfTI": (lambda folder: scan_file(folder, "scan.nii"), read_volume), "gzip": (scan_file, read_volume),
    "mask": (scan_file, read_mask), "zip": (zip_of, read_volume), "DICOM": (series, read_volume),
    "picture": (picture, read_radiograph),
}  # fmt: skip


class Failing(io.FileIO):
    """A file whose reads fail once its start has been seen."""

    code = errno.EIO

    def readinto(self, buffer: Any) -> int:
        if self.tell() > 0 or len(buffer) > 5000:
            raise OSError(self.code, os.strerror(self.code))
        return super().readinto(buffer)

    def readall(self) -> bytes:
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name", [name for name in SCANS if name != "DICOM"])
def test_a_disk_that_fails(name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, read = SCANS[name]
    path = make(tmp_path)
    monkeypatch.setattr(Failing, "code", code)
    monkeypatch.setattr(os, "fdopen", lambda handle, mode: io.BufferedReader(Failing(handle, "rb"), 4096))
    with pytest.raises(RunError) as caught:
        read(path)
    assert os.strerror(code) in str(caught.value)
    assert str(path) in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_a_disk_that_fails_under_dicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumoscope.io.dicom import header as dicom_header

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(dicom_header, "_parse", fail)
    with pytest.raises(RunError, match="Input/output error"):
        read_volume(series(tmp_path))


LIMITED = """
import resource, sys
from pathlib import Path
from pneumoscope.errors import PneumoscopeError
from pneumoscope.io.read import read_volume
from pneumoscope.io.formats.radiograph import read_radiograph
which, value, read = sys.argv[1:4]
resource.setrlimit(getattr(resource, which), (int(value), int(value)))
try:
    (read_volume if read == "scan" else read_radiograph)(sys.argv[4])
    print("read")
except PneumoscopeError as error:
    print(error.exit_code, error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize(
    ("name", "limit", "value", "words"),
    [
        ("DICOM", "RLIMIT_FSIZE", 1000, "temporary files takes no more"),
        ("zip", "RLIMIT_FSIZE", 1000, "temporary files takes no more"),
        ("DICOM", "RLIMIT_NOFILE", 4, "Too many open files"),
        ("NIfTI", "RLIMIT_NOFILE", 3, "Too many open files"),
    ],
)
def test_limits_of_the_process(name: str, limit: str, value: int, words: str, tmp_path: Path) -> None:
    path = SCANS[name][0](tmp_path)
    if name == "DICOM" and limit == "RLIMIT_FSIZE":
        value = 3000  # less than the voxels of the series
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, str(value), "scan", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("1 "), done
    assert words in done.stdout
    assert "damaged" not in done.stdout


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    with pytest.raises(RunError, match="TMPDIR"):
        read_volume(path)
