"""What a stage cost: time, and the most memory while it was made and while it answered; kept as `cost.json`.

Memory is looked at every 20 ms by a thread, because the system's own peak is that of the whole process so far. The
process holds the slices of all sets and the libraries beside what a stage needs, so what was held at the beginning
stands beside the peak. Pages of mapped cache files count as held while they are looked at. Where the system does not
say what is held (no ``/proc``), the peak is that of the process so far, and ``held_gigabytes`` is 0.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pneumoscope.io.files import write_json
from pneumoscope.study.folder import read_if_there
from pneumoscope.study.forecast import peak_gigabytes

COST_FILE = "cost.json"
"""In the folder of a stage: ``training`` and, by set number, ``prediction``."""

LOOK_EVERY_S = 0.02


class Meter:
    """Measures what happens inside ``with Meter() as meter``.

    Attributes:
        seconds: wall time.
        cpu_seconds: of all threads of the process together; what a busy machine makes slower, it does not make more.
        held_gigabytes: of the process at the beginning.
        peak_gigabytes: of the process, the most seen.
        device_gigabytes: the most that tensors took on a CUDA device; 0 without one.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = self.held_gigabytes = self.peak_gigabytes = self.device_gigabytes = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Meter:
        self._begun, self._begun_cpu = time.perf_counter(), time.process_time()
        self.held_gigabytes = self.peak_gigabytes = resident_gigabytes()
        _cuda("reset_peak_memory_stats")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._begun
        self.cpu_seconds = time.process_time() - self._begun_cpu
        self.peak_gigabytes = max(self.peak_gigabytes, resident_gigabytes()) or peak_gigabytes()
        self.device_gigabytes = (_cuda("max_memory_allocated") or 0) / 1e9

    def _look(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            self.peak_gigabytes = max(self.peak_gigabytes, resident_gigabytes())

    def as_dict(self) -> dict[str, float]:
        """Plain JSON values."""
        names = ("seconds", "cpu_seconds", "held_gigabytes", "peak_gigabytes", "device_gigabytes")
        return {name: round(getattr(self, name), 3) for name in names}


def resident_gigabytes() -> float:
    """What the process holds in memory now; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0.0
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e9


def _cuda(question: str) -> Any:
    """Ask torch about the CUDA device; None where torch has not been loaded or has none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return getattr(torch.cuda, question)()


def note_cost(stage_folder: Path, part: str, cost: dict[str, Any]) -> None:
    """Add to `cost.json` of a stage; entries of the same part are replaced one by one."""
    known = read_cost(stage_folder)
    write_json(stage_folder / COST_FILE, {**known, part: {**known.get(part, {}), **cost}})


def read_cost(stage_folder: Path) -> dict[str, Any]:
    """What stands in `cost.json`; empty where there is none."""
    return read_if_there(stage_folder / COST_FILE)
