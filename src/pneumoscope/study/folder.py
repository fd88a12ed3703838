"""The study folder, of all kinds of studies: opened, refused or resumed; what it was made with; its JSON files."""

from __future__ import annotations

import csv
import platform
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from pneumoscope.errors import InputError, ModelError
from pneumoscope.io.files import prepare_folder, read_json, require_no_other_run, write_csv, write_json
from pneumoscope.models.cards import read_card
from pneumoscope.processes import peak_bytes
from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.settings import describe, differences, from_json
from pneumoscope.recipes.volumes import VolumeExperiment
from pneumoscope.recipes.xray import XrayExperiment

EXPERIMENT_FILE = "experiment.json"
"""Marks a folder as a study; holds the whole experiment and, for readers, every number with its source."""

OWN_PARTS = ("data", "figures", "splits", "stages", "cases", "shift")
OWN_FILES = (
    "per_case.csv", "untrained.csv", "matrix.csv", "matrix.json", "forgetting.csv", "folds.csv", "paper.csv",
    "remedies.csv", "probes.csv", "report.html", "study.json", "run.json", "environment.json", "guard.json",
    "leakage.json", "supplied_lungs.csv", "systems.csv", "systems.json", "scores.csv", "intervals.csv",
    "calibration.csv",
)  # fmt: skip
"""What studies of any kind write beside `EXPERIMENT_FILE`."""

AnyExperiment = Experiment | VolumeExperiment | XrayExperiment

EXPERIMENTS: Mapping[str, type[AnyExperiment]] = {
    "slices": Experiment,
    "volumes": VolumeExperiment,
    "xray": XrayExperiment,
}
"""The class of an experiment by what `experiment.json` calls it."""

GUARD_FILE = "guard.json"  # The verdict on retrained models, where a limit on forgetting was given

PACKAGES = ("pneumoscope", "torch", "lightning-fabric", "numpy", "scipy", "pandas", "matplotlib")


def start(experiment: AnyExperiment, out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Make `out` a study folder of `experiment`.

    Args:
        experiment: written to `experiment.json`.
        resume: continue the study that lies there; it must be the same experiment, but for what its class lets grow
            (`may_grow`) or change (`may_change`). An empty folder is started.
        overwrite: remove what an earlier study wrote there and start again; other files are left alone.

    Raises:
        InputError: the folder holds a study and neither flag is given, both are, or a resumed study has other settings.
    """
    folder, kept = open_folder(out, resume=resume, overwrite=overwrite)
    if kept:
        _require_same(experiment, folder)
    kind = next(name for name, known in EXPERIMENTS.items() if known is type(experiment))
    content = {"kind": kind, **asdict(experiment), "numbers": describe(experiment)}
    write_json(folder / EXPERIMENT_FILE, content)
    return folder


def open_folder(
    out: str | Path, *, resume: bool, overwrite: bool, markers: Sequence[str] = (EXPERIMENT_FILE,),
    written: Sequence[str] = (*OWN_PARTS, *OWN_FILES),
) -> tuple[Path, bool]:  # fmt: skip
    """Make `out` the folder of a study or training; with `overwrite` all that an earlier one wrote is removed.

    Args:
        resume, overwrite: see `start`.
        markers: files by which such a run is known.
        written: names of its other files and folders.

    Returns:
        The folder, and whether a run lies there that is resumed.

    Raises:
        InputError: the folder holds a run and neither flag is given, both are, or it holds a run of another kind.
    """
    if resume and overwrite:
        raise InputError("--resume keeps what is there and --overwrite removes it; give one of them", path=out)
    require_no_other_run(out, *markers)
    folder = Path(out)
    for marker in markers:
        folder = prepare_folder(out, marker=marker, overwrite=overwrite, resume=resume)
    there = any((folder / marker).exists() for marker in markers)
    for name in (*written, *markers) if there and overwrite else ():
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
        elif not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)
    return folder, there and not overwrite


def kind_of(folder: str | Path) -> str:
    """The kind of study in a folder, a key of `EXPERIMENTS`.

    Raises:
        InputError: no study lies there, or its `experiment.json` cannot be read.
    """
    path = Path(folder) / EXPERIMENT_FILE
    if not path.is_file() and (Path(folder) / "plan.json").is_file():
        raise InputError(
            "holds a training on own scans, which has no page: its scores are in validation.csv, test.csv or "
            "per_case.csv, and `pneumoscope model info` shows its card",
            path=folder,
        )
    if not path.is_file():
        raise InputError(f"holds no study ({EXPERIMENT_FILE} is missing); make one with study run", path=folder)
    kind = read_json(path, remedy="use --overwrite to start again").get("kind")
    if not isinstance(kind, str) or kind not in EXPERIMENTS:
        raise InputError("is not an experiment of pneumoscope; use --overwrite to start again", path=path)
    return kind


SYNTHETIC, PARTLY_SYNTHETIC = "synthetic", "partly synthetic"


def read_result(folder: Path, name: str, *, expected: type = dict) -> Any:
    """A JSON file that a finished study holds.

    Raises:
        InputError: it is absent or damaged.
    """
    if not (folder / name).is_file():
        raise InputError(f"holds a study that is not finished ({name} is missing); use study run --resume", path=folder)
    return read_json(folder / name, expected=expected, remedy="make it again with study run --resume")


@contextmanager
def usable_results(folder: Path) -> Iterator[None]:
    """Turn what hand-edited or damaged results do to their reader into an error that names the folder.

    Raises:
        InputError: values of the wrong kind, missing entries, a table that cannot be read.
    """
    from jinja2 import TemplateError

    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError, TemplateError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        raise InputError(
            f"study.json, matrix.json or a table beside them cannot be used ({type(error).__name__}: {error}); make "
            "them again with study run --resume",
            path=folder,
        ) from error


def read_if_there(path: Path) -> dict[str, Any]:
    """An optional JSON file of a study; empty where there is none, or a damaged one."""
    try:
        content: dict[str, Any] = read_json(path)
    except InputError:
        return {}
    return content


def stage_cards(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """The cards of stages; those of stages without one, or moved away, are left out: the tables stand without them."""
    cards = []
    for name in names:
        with suppress(ModelError):
            cards.append(read_card(folder / "stages" / name))
    return cards


def mark_of(datasets: Iterable[str]) -> str:
    """What tables and figures of a study say of its data, by the dataset of each scan; empty for real ones."""
    made_up = {name == "phantom" for name in datasets}
    return PARTLY_SYNTHETIC if len(made_up) == 2 else SYNTHETIC if True in made_up else ""


def mark_tables(folder: Path, word: str) -> None:
    """Give every table of a scored study a last column ``data``: ``real``, `SYNTHETIC` or `PARTLY_SYNTHETIC`."""
    for path in (*sorted(folder.glob("*.csv")), *sorted((folder / "shift").glob("*.csv"))):
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
        if rows and "data" not in rows[0]:
            write_csv(path, [*rows[0], "data"], [[*row, word] for row in rows[1:]])
    if (folder / "matrix.json").is_file():
        write_json(folder / "matrix.json", {**read_result(folder, "matrix.json"), "data": word})


def write_run(folder: Path, notes: Sequence[str], *, resumed: bool, synthetic: bool, **facts: Any) -> None:
    """Write `run.json`: what a reader should know of the last run, e.g. what was made again and why."""
    write_json(folder / "run.json", {"resumed": resumed, "synthetic": synthetic, "notes": list(notes), **facts})


def _require_same(experiment: AnyExperiment, folder: Path) -> None:
    before = read_experiment(folder)
    if type(before) is not type(experiment):
        raise InputError(
            f"holds a study of another kind ({before.recipe}); use --overwrite, or another folder", path=folder
        )
    old = {row["key"] for row in describe(before)}
    changed = [
        line
        for line in differences(before, experiment)
        if not line.startswith(experiment.may_change)
        and not (line.startswith(experiment.may_grow) and line.partition(": ")[0] not in old)
    ]
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise InputError(
            f"holds a study with other settings ({'; '.join(changed[:4])}{more}); resume with the settings it was "
            "started with, use --overwrite, or another folder",
            path=folder,
        )


def read_experiment(folder: str | Path, expected: type[Any] | None = None) -> Any:
    """The experiment of a study folder.

    Args:
        expected: the class of experiment that is wanted; any by default.

    Raises:
        InputError: no (such) study lies there, or its `experiment.json` cannot be read.
    """
    found = kind_of(folder)
    if expected is not None and EXPERIMENTS[found] is not expected:
        raise InputError(f"holds a study of {found}; name a folder of another study", path=folder)
    path = Path(folder) / EXPERIMENT_FILE
    content = {key: value for key, value in read_json(path).items() if key not in ("numbers", "kind")}
    try:
        return from_json(EXPERIMENTS[found], content)
    except InputError as problem:
        raise InputError(problem.message, path=path) from problem
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as problem:
        raise InputError(
            f"holds a value of the wrong kind ({problem}); use --overwrite to start again", path=path
        ) from problem


def write_environment(folder: Path, *, device: str, precision: str, threads: int) -> dict[str, Any]:
    """Write `environment.json`: versions, processor, threads, precision. No host, user or folder names."""
    environment = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": threads,
        "device": device,
        "precision": precision,
        "packages": {name: _version(name) for name in PACKAGES},
    }
    write_json(folder / "environment.json", environment)
    return environment


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's model name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


COST_FILE = "cost.json"  # In the folder of a stage: ``training`` and, by set number, ``prediction``

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
        self._started, self._started_cpu = time.perf_counter(), time.process_time()
        self.held_gigabytes = self.peak_gigabytes = resident_gigabytes()
        _cuda("reset_peak_memory_stats")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = time.process_time() - self._started_cpu
        self.peak_gigabytes = max(self.peak_gigabytes, resident_gigabytes()) or peak_bytes() / 1e9
        self.device_gigabytes = (_cuda("max_memory_allocated") or 0) / 1e9

    def _look(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            self.peak_gigabytes = max(self.peak_gigabytes, resident_gigabytes())

    def as_dict(self) -> dict[str, float]:
        """Plain JSON values."""
        names = ("seconds", "cpu_seconds", "held_gigabytes", "peak_gigabytes", "device_gigabytes")
        return {name: round(getattr(self, name), 3) for name in names}


def resident_gigabytes() -> float:
    """What the process holds in memory now."""
    return psutil.Process().memory_info().rss / 1e9


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
