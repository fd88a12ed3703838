"""DICOM CT series in: one file or folder to a `Volume`, or an error that says what is wrong with which file.

All parsing and decoding happens in a child process (`pneumoscope.io.dicom.worker`): a file that crashes, hangs or
swells a decoder ends as one `ReadError`. What is refused, mended or accepted is listed row by row in
docs/reference/input-codes.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pneumoscope.errors import Finding, ReadError, shortage
from pneumoscope.geometry import Grid
from pneumoscope.io.dicom.deidentify import case_name, has_lasting_salt
from pneumoscope.io.dicom.files import is_dicom
from pneumoscope.io.stored import machine_failure, names_failures
from pneumoscope.volume import Volume

__all__ = ["ReadLimits", "SeriesInfo", "is_dicom", "list_series", "read_dicom"]

MIN_SLICES = 3
"""The fewest slices whose distances can be compared."""

_CHILD = """
import sys
sys.path.append(sys.argv[1])
from pneumoscope.processes import end_with_parent
end_with_parent(int(sys.argv[2]))
from pneumoscope.io.dicom.worker import main
sys.exit(main())
"""  # with -P, so that no module of the working folder, which may be the scan's, is imported


@dataclass(frozen=True)
class ReadLimits:
    """What reading one scan may cost.

    Attributes:
        wall_s: seconds before the reading process is ended.
        memory_mib: its address space; voxels are written to disk as they come, so it does not grow with the scan.
        max_voxels: larger scans are refused before anything is allocated (2**30: 4096 slices of 512 x 512).
    """

    wall_s: int = 600
    memory_mib: int = 4096
    max_voxels: int = 1 << 30


@dataclass(frozen=True)
class SeriesInfo:
    """One CT series of a folder.

    Attributes:
        number: what `read_dicom(..., series=str(number))` takes.
        case: its name in outputs, a keyed hash.
        images: slices, counting the frames of multi-frame files.
        rows, columns: matrix of the first.
        kernel: convolution kernel, "" when not given.
        thickness_mm: of its slices, 0 when not known.
        first_file: the place of its first file, such as ``file 3 of 12``.
        series_uid: identifies the series in the hospital: never print it.
    """

    number: int
    case: str
    images: int
    rows: int
    columns: int
    kernel: str
    thickness_mm: float
    first_file: str
    series_uid: str


@names_failures
def read_dicom(
    path: str | Path,
    *,
    series: str | None = None,
    case: str | None = None,
    min_slices: int = MIN_SLICES,
    fill_gaps: bool = False,
    any_modality: bool = False,
    as_hu: bool = False,
    limits: ReadLimits | None = None,
) -> Volume:
    """Read one CT series.

    The native grid has columns, rows and slices as axes, slices in order of position along the normal of the image
    plane (as GDCM and SimpleITK order them), so that masks written on it fit the series in other programs. A tilted
    gantry gives a grid that is not orthogonal.

    Args:
        path: a folder (searched at any depth) or one file.
        series: number in `list_series`, or a SeriesInstanceUID; None or ``best`` takes the best of a study by the
            rules of `pneumoscope.io.dicom.choice` and says in a finding what was left.
        case: name for outputs; by default a keyed hash of the series UID.
        min_slices: fewer are refused as no volume.
        fill_gaps: take damaged files as missing slices, and interpolate single missing or uneven slices.
        any_modality: accept other images than CT (their values are then hardly HU).
        as_hu: take the values as HU where RescaleType or a missing rescale leave it open.
        limits: time, memory and size.

    Raises:
        ReadError: rows 1-50 of the catalogue, with a code ``IN-DCM-0NN``; 100-103 for missing paths, time and memory.
            It names the case and a file's place, never the path, which is in its attribute `file`.
    """
    allowed = limits or ReadLimits()
    request = _request(path, "read", allowed, any_modality, case)
    request |= {"series": series, "min_slices": max(1, min_slices), "fill_gaps": fill_gaps, "as_hu": as_hu}
    with _scratch() as (stream, name):
        reply = _exchange({**request, "out": name}, stream)
        shape = tuple(reply["shape"])
        expected = int(np.prod(shape)) * np.dtype(reply["dtype"]).itemsize
        if os.fstat(stream.fileno()).st_size != expected:
            raise ReadError(
                "the reading process ended before all slices",
                code="IN-DCM-102",
                path=request["where"],
                file=request["path"],
            )
        voxels = np.memmap(stream, reply["dtype"], "r", shape=shape)  # (k, j, i)
        findings = tuple(Finding(**finding) for finding in reply["findings"])
        if case is None and not has_lasting_salt():
            note = "the secret for case names could not be stored: the name will differ next time; set PNEUMOSCOPE_SALT"
            findings += (Finding("IN-DCM-104", note, "info"),)
        return Volume.from_native(
            voxels.transpose(2, 1, 0),
            Grid(shape[::-1], reply["affine"]),
            case=case or case_name(reply["series_uid"]),
            findings=findings,
            source=reply["source"],
        )


@names_failures
def list_series(path: str | Path, *, any_modality: bool = False, limits: ReadLimits | None = None) -> list[SeriesInfo]:
    """The CT series below a folder, in the order of their first files; [] when there is none.

    Raises:
        ReadError: nothing there, or a file that only an attacker writes.
    """
    reply = _exchange(_request(path, "list", limits or ReadLimits(), any_modality), None)
    return [SeriesInfo(case=case_name(entry["series_uid"]), **entry) for entry in reply["series"]]


def _request(
    path: str | Path, action: str, limits: ReadLimits, any_modality: bool, named: str | None = None
) -> dict[str, Any]:
    """What the child is asked; errors call the input `named`.

    Raises:
        ReadError: IN-DCM-100, nothing there.
    """
    start = Path(path)
    if not start.exists():
        raise ReadError("no such file or folder; check the path", code="IN-DCM-100", path=path)
    return {
        "action": action,
        "path": str(start.absolute()),
        "where": named or ("DICOM folder" if start.is_dir() else "DICOM file"),
        "any_modality": any_modality,
        "out": None,
        "wall_s": limits.wall_s,
        "memory_mib": limits.memory_mib,
        "max_voxels": limits.max_voxels,
    }


@contextmanager
def _scratch() -> Iterator[tuple[BinaryIO, str]]:
    """A file for voxels and the name under which the child opens it; gone whatever happens to either process."""
    if os.name == "posix":
        with tempfile.TemporaryFile() as stream:
            yield (
                stream,
                f"/dev/fd/{stream.fileno()}",
            )  # has no name on disk, so that a killed run leaves no scan behind
        return
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "voxels"
        name.touch()
        with name.open("r+b") as stream:
            yield stream, str(name)


def _exchange(request: dict[str, Any], stream: BinaryIO | None) -> dict[str, Any]:
    """Have the child answer one request.

    Raises:
        ReadError: what the child refuses; out of time (IN-DCM-101); ended or failed (IN-DCM-102).
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, str(Path(__file__).resolve().parents[3]), str(os.getpid())],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=request["wall_s"],
            env=_environment(),
            pass_fds=[stream.fileno()] if stream is not None and os.name == "posix" else [],
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ReadError(
            f"could not be read within {request['wall_s']} s; give one series only, or look for a damaged file",
            code="IN-DCM-101",
            path=request["where"],
            file=request["path"],
        ) from None
    return _understood(done.stdout, done.returncode, request, done.stderr)


def _environment() -> dict[str, str]:
    """Of the child: without the secret for case names, and with one thread for arithmetic."""
    kept = {name: value for name, value in os.environ.items() if name != "PNEUMOSCOPE_SALT"}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _understood(output: bytes, status: int, request: dict[str, Any], stderr: bytes = b"") -> dict[str, Any]:
    """The reply of the child, or what it says went wrong.

    Raises:
        ReadError: what the child refuses, or that it ended without a reply.
        RunError: a failure of the machine.
    """
    where, file = request["where"], request["path"]
    try:
        reply: dict[str, Any] = json.loads(output)
    except ValueError:
        last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
        short = shortage(MemoryError() if last.startswith("MemoryError") else RuntimeError(last))
        if short is not None:
            raise short from None
        raise ReadError(
            f"a damaged or hostile file ended the reading process (status {status}); find it by halving the folder",
            code="IN-DCM-102",
            path=where,
            file=file,
        ) from None
    if "failure" in reply:
        raise machine_failure(OSError(*reply["failure"]), where)
    if "error" in reply:
        raise ReadError(**reply["error"])
    if "crash" in reply:
        raise ReadError(
            f"could not be read ({reply['crash']}); find the damaged file by halving the folder",
            code="IN-DCM-102",
            path=where,
            file=file,
        )
    return reply
