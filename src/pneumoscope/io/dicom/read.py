"""DICOM CT series in: one file or folder to a `Volume`, or an error that says what is wrong with which file.

All parsing and decoding happens in a process of its own (`pneumoscope.io.dicom.read`): a file that crashes, hangs or
swells a decoder ends as one `ReadError`. What is refused, repaired or accepted is listed row by row in
docs/reference/input-codes.md.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, ReadError, shortage
from pneumoscope.geometry import Grid
from pneumoscope.io.dicom.deidentify import case_name, has_lasting_salt
from pneumoscope.io.kinds import is_dicom
from pneumoscope.io.stored import machine_failure, names_failures
from pneumoscope.volume import Volume

_LONGEST_REPLY = 2**28

_PROGRAM = """
import sys
sys.path.append(sys.argv[1])
from pneumoscope.processes import end_with_parent
end_with_parent(int(sys.argv[2]))
from pneumoscope.io.dicom.worker import main
sys.exit(main())
"""  # with -P, so that no module of the working folder, which may be the scan's, is imported


@dataclass(frozen=True)
class ReadLimits:
    """What reading one scan may cost."""

    wall_s: int = 600  # seconds before the reading process is ended
    # its address space; voxels are written to disk as they come, so it does not grow with the scan
    memory_mib: int = 4096
    max_voxels: int = 1 << 30  # larger scans are refused before anything is allocated (2**30: 4096 slices of 512 x 512)


def request_for(
    path: str | Path, action: str, limits: ReadLimits, any_modality: bool, named: str | None = None
) -> dict[str, Any]:
    """What the process is asked; errors call the input `named`.

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
def scratch() -> Iterator[tuple[BinaryIO, str]]:
    """A file for voxels and the name under which the child opens it; gone whatever happens to either process."""
    if os.name == "posix":
        with tempfile.TemporaryFile() as stream:
            yield stream, f"/dev/fd/{stream.fileno()}"  # has no name on disk: a killed run leaves no scan behind
        return
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "voxels"
        name.touch()
        with name.open("r+b") as stream:
            yield stream, str(name)


class ReadingProcess:
    """One process that answers requests one after the other; it ends with the ``with`` block.

    Args:
        stream: the file of `scratch` that requests name as ``out``.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).resolve().parents[3]), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(),
            pass_fds=[stream.fileno()] if stream is not None and os.name == "posix" else [],
        )

    def __enter__(self) -> ReadingProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether another request may be made."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], *, last: bool = False) -> dict[str, Any]:
        """The reply to one request; after the `last` one the process ends by itself.

        Raises:
            ReadError: what the process refuses; out of time (IN-DCM-101); ended or failed (IN-DCM-102).
            RunError: a failure of the machine.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late: list[bool] = []

        def end() -> None:
            late.append(True)
            self._process.kill()

        clock = Timer(request["wall_s"], end)
        clock.start()
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            if last:
                self._process.stdin.close()
            reply = self._process.stdout.readline(_LONGEST_REPLY)
        except OSError:  # the process has ended and takes no request
            reply = b""
        finally:
            clock.cancel()
        if not reply.endswith(b"\n"):
            self._process.kill()
            self._process.wait()
        if late:
            raise ReadError(
                f"could not be read within {request['wall_s']} s; give one series only, or look for a damaged file",
                code="IN-DCM-101",
                path=request["where"],
                file=request["path"],
            )
        self._stderr.seek(0)
        return understood(reply, self._process.returncode or 0, request, self._stderr.read())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            assert pipe is not None
            with suppress(OSError):  # what was not yet sent to a process that ended
                pipe.close()


def exchange(request: dict[str, Any], stream: BinaryIO | None = None) -> dict[str, Any]:
    """The reply of a process of its own to one request; see `ReadingProcess.ask`."""
    with ReadingProcess(stream) as process:
        return process.ask(request, last=True)


def _environment() -> dict[str, str]:
    """Of the child: without the secret for case names, and with one thread for arithmetic."""
    kept = {name: value for name, value in os.environ.items() if name != "PNEUMOSCOPE_SALT"}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def understood(output: bytes, status: int, request: dict[str, Any], stderr: bytes = b"") -> dict[str, Any]:
    """The reply of the process, or what it says went wrong.

    Raises:
        ReadError: what the process refuses, or that it ended without a reply.
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


_LIMITS = ReadLimits(wall_s=60, memory_mib=2048, max_voxels=2**26)


class DicomReaders:
    """Reading processes, one per thread that asks at the same time; they end with the ``with`` block."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()

    def __enter__(self) -> DicomReaders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def read(self, path: Path, case: str, least_side: int | None) -> tuple[NDArray[np.float32] | None, dict[str, Any]]:
        """The picture (None when it is not whole) and the reply that describes it; errors name the case."""
        try:
            child = self._idle.get_nowait()
        except queue.Empty:
            child = _Child()
        try:
            reply = child.ask(request_for(path, "radiograph", _LIMITS, True, case) | {"least_side": least_side})
            pixels = child.pixels(reply["shape"])
        finally:
            if child.alive:
                self._idle.put(child)
            else:
                child.close()
        return pixels, reply


class _Child(ReadingProcess):
    """One process and the file in which it leaves its pictures."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._picture, self._name = self._held.enter_context(scratch())
        super().__init__(self._picture)

    def ask(self, request: dict[str, Any], *, last: bool = False) -> dict[str, Any]:
        """One file; see `ReadingProcess.ask`."""
        self._picture.truncate(0)
        return super().ask({**request, "out": self._name}, last=last)

    def pixels(self, shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """What the last reply speaks of (rows, columns); None when it is not whole."""
        rows, columns = shape
        self._picture.seek(0)
        values = np.frombuffer(self._picture.read(rows * columns * 4), "<f4")
        return values.reshape(rows, columns).astype(np.float32) if values.size == rows * columns else None

    def close(self) -> None:
        """End the process; the file goes with it."""
        super().close()
        self._held.close()


__all__ = ["ReadLimits", "SeriesInfo", "is_dicom", "list_series", "read_dicom"]

MIN_SLICES = 3  # The fewest slices whose distances can be compared


@dataclass(frozen=True)
class SeriesInfo:
    """One CT series of a folder."""

    number: int  # what `read_dicom(..., series=str(number))` takes
    case: str  # its name in outputs, a keyed hash
    images: int  # slices, counting the frames of multi-frame files
    # matrix of the first
    rows: int
    columns: int
    kernel: str  # convolution kernel, "" when not given
    thickness_mm: float  # of its slices, 0 when not known
    first_file: str  # the place of its first file, such as ``file 3 of 12``
    series_uid: str  # identifies the series in the hospital: never print it


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

    Raises:
        ReadError: rows 1-50 of the catalogue, with a code ``IN-DCM-0NN``; 100-103 for missing paths, time and memory.
            It names the case and a file's place, never the path, which is in its attribute `file`.
    """
    allowed = limits or ReadLimits()
    request = request_for(path, "read", allowed, any_modality, case)
    request |= {"series": series, "min_slices": max(1, min_slices), "fill_gaps": fill_gaps, "as_hu": as_hu}
    with scratch() as (stream, name):
        reply = exchange({**request, "out": name}, stream)
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
            series=reply["series"],
        )


@names_failures
def list_series(path: str | Path, *, any_modality: bool = False, limits: ReadLimits | None = None) -> list[SeriesInfo]:
    """The CT series below a folder, in the order of their first files; [] when there is none.

    Raises:
        ReadError: nothing there, or a file that only an attacker writes.
    """
    reply = exchange(request_for(path, "list", limits or ReadLimits(), any_modality))
    return [SeriesInfo(case=case_name(entry["series_uid"]), **entry) for entry in reply["series"]]
