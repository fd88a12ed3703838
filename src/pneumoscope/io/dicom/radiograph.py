"""DICOM radiographs in: parsed in processes that are kept from file to file, because starting one takes half a second.

A file that crashes, hangs or swells a decoder ends its process and is one `ReadError`; the next file gets a new one.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, ReadError
from pneumoscope.io.dicom.read import ReadLimits, _environment, _request, _scratch, _understood
from pneumoscope.io.formats.radiograph_checks import MAX_PIXELS, require_content, require_size
from pneumoscope.io.stored import Place
from pneumoscope.volume import Radiograph

_LIMITS = ReadLimits(wall_s=60, memory_mib=2048, max_voxels=MAX_PIXELS)
_LONGEST_REPLY = 2**20

_CHILD = """
import sys
sys.path.append(sys.argv[1])
from pneumoscope.processes import end_with_parent
end_with_parent(int(sys.argv[2]))
from pneumoscope.io.dicom.radiograph_worker import serve
sys.exit(serve())
"""  # with -P, so that no module of the working folder is imported


class DicomReaders:
    """Reading processes, one per thread that asks at the same time; they end with the ``with`` block."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()

    def __enter__(self) -> DicomReaders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()

    def read(self, place: Place, case: str, least_side: int | None) -> Radiograph:
        """See `io.formats.radiograph.read_radiograph`; errors name the case: the file's name may be a patient's."""
        said = Place(Path(case), place.family)
        try:
            child = self._idle.get_nowait()
        except queue.Empty:
            child = _Child()
        try:
            reply = child.ask(_request(place.path, "radiograph", _LIMITS, True, case) | {"least_side": least_side})
            pixels = child.pixels(reply["shape"])
        finally:
            if child.alive:
                self._idle.put(child)
            else:
                child.close()
        require_size(said, *reply["stored_shape"])
        if pixels is None:
            raise said.error(82, "could not be read to its end; export it again")
        require_content(said, pixels)
        return Radiograph(
            pixels,
            case,
            None if reply["spacing_mm"] is None else tuple(reply["spacing_mm"]),
            tuple(Finding(**finding) for finding in reply["findings"]),
            {k: v for k, v in reply["source"].items() if v},
        )


class _Child:
    """One process and the file in which it leaves its pictures."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._picture, self._name = self._held.enter_context(_scratch())
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, str(Path(__file__).resolve().parents[3]), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            pass_fds=[self._picture.fileno()] if os.name == "posix" else [],
        )

    @property
    def alive(self) -> bool:
        """Whether the next file may be asked for."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One file.

        Raises:
            ReadError: what the child refuses; out of time (IN-DCM-101); ended or failed (IN-DCM-102).
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
            self._process.stdin.write(json.dumps({**request, "out": self._name}).encode() + b"\n")
            self._process.stdin.flush()
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
                f"could not be read within {request['wall_s']} s; look for a damaged file",
                code="IN-DCM-101",
                path=request["where"],
                file=request["path"],
            )
        return _understood(reply, self._process.returncode or 0, request)

    def pixels(self, shape: tuple[int, int]) -> NDArray[np.float32] | None:
        """What the last reply speaks of (rows, columns); None when it is not whole."""
        rows, columns = shape
        self._picture.seek(0)
        values = np.frombuffer(self._picture.read(rows * columns * 4), "<f4")
        return values.reshape(rows, columns).astype(np.float32) if values.size == rows * columns else None

    def close(self) -> None:
        """End the process; the file goes with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what was not yet sent to a process that ended
                continue
        self._held.close()
