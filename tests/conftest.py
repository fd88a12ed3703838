"""Awkward fixtures shared by all rooms: 4 x 5 x 6 voxels of 0.5 x 0.8 x 1.2 mm, tilted, flipped, one bright corner."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

from grids import bright_corner, build_grid
from pneumoscope.geometry import Grid
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

# Property tests must not fail because the machine was busy, and must do the same on every run: Hypothesis would also
# draw constants of all modules that happen to be imported, so that any edit elsewhere changed their examples.
providers._get_local_constants = lambda: providers._local_constants  # type: ignore[attr-defined]
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")


@pytest.fixture
def grid() -> Grid:
    """Upright RAS+, three different spacings."""
    return build_grid()


@pytest.fixture
def tilted_grid() -> Grid:
    """RAS+, turned by up to 12 degrees and sheared."""
    return build_grid(tilt_degrees=(12.0, -7.0, 5.0), shear=0.1)


@pytest.fixture
def flipped_grid() -> Grid:
    """As many scanners store: columns to the left, rows to the back, slices to the feet, and a small tilt."""
    return build_grid(("L", "P", "I"), tilt_degrees=(6.0, 2.0, -3.0))


@pytest.fixture
def permuted_grid() -> Grid:
    """Sagittal storage: no voxel axis stands where RAS+ would have it."""
    return build_grid(("P", "I", "R"), tilt_degrees=(-4.0, 8.0, 3.0))


@pytest.fixture
def volume(flipped_grid: Grid) -> Volume:
    """A scan stored flipped and tilted, bright in the last voxel as stored."""
    return Volume.from_native(bright_corner(), flipped_grid, case="awkward")


@pytest.fixture
def lungs(volume: Volume) -> Mask:
    """Two lungs on the scan's grid: right in i >= 2, left in i < 1, none at the lowest slice."""
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[2:, 1:4, 1:] = 1
    labels[:1, 1:4, 1:] = 2
    return Mask(labels, volume.grid, LUNG_LABELS)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(5)


@pytest.fixture
def tilted() -> Grid:
    """4 x 5 x 6 voxels of 0.5 x 0.8 x 1.2 mm, turned by 10 degrees about two axes, RAS+ still nearest."""
    c, s = np.cos(0.17), np.sin(0.17)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 0.8, 1.2])
    affine[:3, 3] = (-12.3456, 200.0, -98.7)
    return Grid((4, 5, 6), affine)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """DICOM is read and written by the same code and the same JSON in this process: a second faster per call."""
    from pneumoscope.io.dicom import read as reading
    from pneumoscope.io.dicom import worker

    def exchange(asked: dict[str, Any], stream: BinaryIO | None = None) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reply = json.dumps(worker.answer(json.loads(json.dumps(asked)), stream))
        return reading.understood(reply.encode(), 0, asked)

    def read(_: object, path: Path, case: str, least_side: int | None) -> tuple[Any, dict[str, Any]]:
        asked = reading.request_for(path, "radiograph", reading._LIMITS, True, case) | {"least_side": least_side}
        with reading.scratch() as (stream, name):
            reply = exchange(asked | {"out": name}, stream)
            stream.seek(0)
            return np.frombuffer(stream.read(), "<f4").reshape(reply["shape"]).astype(np.float32), reply

    monkeypatch.setenv("PNEUMOSCOPE_SALT", "only for tests")
    monkeypatch.setattr(reading, "exchange", exchange)
    monkeypatch.setattr(reading.DicomReaders, "read", read)


@pytest.fixture
def vtk_stills() -> None:
    """Asked for by tests that want VTK's own still pictures."""


@pytest.fixture(autouse=True)
def quick_stills(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No graphics process for each case that a test writes: seconds on a busy machine. Matplotlib draws instead."""
    if "vtk_stills" not in request.fixturenames:
        monkeypatch.setattr("pneumoscope.surfaces.still._by_vtk", lambda *_: (None, "left out in tests"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans, for tests marked `real`; skips, saying why, where it is not there."""
    root = Path(os.environ.get("PNEUMOSCOPE_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set PNEUMOSCOPE_DATA to the folder that holds ct-volumes and ct-slices")
    return root


Start = Callable[..., "subprocess.Popen[Any]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that end with the test, whatever happens, and so do theirs: each has a group of its own.

    SIGINT and SIGTERM do what they do in a terminal, also where the tests run under nohup or in the background.
    """
    started: list[subprocess.Popen[Any]] = []

    def begin(argv: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
        call = [str(part) for part in argv]
        process = subprocess.Popen(call, start_new_session=True, preexec_fn=_terminal_signals, **options)
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _terminal_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait until a condition holds, as long as a busy machine needs; at once an error where `process` ends first."""

    def wait(holds: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
        deadline = time.monotonic() + 240
        while not holds():
            assert process is None or process.poll() is None, f"ended with {process.returncode} before that"
            assert time.monotonic() < deadline, "never came true"
            time.sleep(0.02)

    return wait


@pytest.fixture
def group_ends(until: Callable[..., None]) -> Callable[[int], None]:
    """Wait until no process is left of a group that `start` began."""
    return lambda group: until(lambda: not [p for p in psutil.process_iter() if _group_of(p) == group])


def _group_of(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.Error, ProcessLookupError):
        return None
