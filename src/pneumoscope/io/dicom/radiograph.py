"""DICOM radiographs in: parsed in processes that are kept from file to file, because starting one takes half a second.

A file that crashes, hangs or swells a decoder ends its process and is one `ReadError`; the next file gets a new one.
"""

from __future__ import annotations

import queue
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.io.dicom.process import ReadingProcess, ReadLimits, request_for, scratch

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
