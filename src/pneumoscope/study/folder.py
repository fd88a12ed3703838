"""The study folder, of all kinds of studies: opened, refused or resumed; what it was made with; its JSON files."""

from __future__ import annotations

import csv
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.experiments.access import describe, differences, sheet_from_json, to_json
from pneumoscope.experiments.schema import Experiment
from pneumoscope.experiments.sheet import SheetT
from pneumoscope.io.files import prepare_folder, read_json, write_csv, write_json

EXPERIMENT_FILE = "experiment.json"
"""Marks a folder as a study; holds the whole experiment and, for readers, every number with its source."""

OWN_PARTS = ("data", "figures", "splits", "stages", "cases", "shift")
OWN_FILES = (
    "per_case.csv", "untrained.csv", "matrix.csv", "matrix.json", "forgetting.csv", "folds.csv", "paper.csv",
    "remedies.csv", "probes.csv", "report.html", "study.json", "run.json", "environment.json", "guard.json",
    "leakage.json", "supplied_lungs.csv", "systems.csv", "systems.json",
)  # fmt: skip
"""What studies of any kind write beside `EXPERIMENT_FILE`."""

GROWING = ("data.sites.", "stages.chain.", "systems.", "paper.")
"""Parts of an experiment that a resumed study may add to: new cells are computed, the others are taken as they are."""

PACKAGES = ("pneumoscope", "torch", "lightning-fabric", "numpy", "scipy", "pandas", "matplotlib")


def begin(experiment: Experiment, out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Make `out` a study folder of `experiment`.

    Args:
        experiment: written to `experiment.json`.
        out: the folder.
        resume: go on with the study that lies there; it must be the same experiment, or one with further sets and
            stages. An empty folder is begun.
        overwrite: remove what an earlier study wrote there and begin anew; other files are left alone.

    Raises:
        InputError: the folder holds a study and neither flag is given, both are, or a resumed study has other settings.
    """
    folder, kept = open_folder(out, resume=resume, overwrite=overwrite)
    if kept:
        _require_same(experiment, folder)
    write_json(folder / EXPERIMENT_FILE, {**to_json(experiment), "numbers": describe(experiment)})
    return folder


def open_folder(out: str | Path, *, resume: bool, overwrite: bool) -> tuple[Path, bool]:
    """Make `out` a study folder, whatever the kind of study; with `overwrite` all that an earlier one wrote is removed.

    Returns:
        The folder, and whether a study lies there that is resumed.

    Raises:
        InputError: the folder holds a study and neither flag is given, or both are.
    """
    if resume and overwrite:
        raise InputError("--resume keeps what is there and --overwrite removes it; give one of them", path=out)
    folder = prepare_folder(out, marker=EXPERIMENT_FILE, overwrite=overwrite, resume=resume)
    there = (folder / EXPERIMENT_FILE).exists()
    if there and overwrite:
        for name in OWN_PARTS:
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                shutil.rmtree(folder / name)
        for name in (*OWN_FILES, EXPERIMENT_FILE):
            (folder / name).unlink(missing_ok=True)
    return folder, there and not overwrite


def kind_of(folder: str | Path) -> str:
    """``slices``, ``volumes`` or ``xray``: the kind of study in a folder.

    Raises:
        InputError: no study lies there, or its `experiment.json` cannot be read.
    """
    content = read_content(folder)
    return "volumes" if content.get("kind") == "volumes" else "xray" if "honest" in content else "slices"


def read_content(folder: str | Path) -> dict[str, Any]:
    """The values of `experiment.json`.

    Raises:
        InputError: no study lies there, or it cannot be read.
    """
    path = Path(folder) / EXPERIMENT_FILE
    if not path.is_file():
        raise InputError(f"holds no study ({EXPERIMENT_FILE} is missing); make one with study run", path=folder)
    content: dict[str, Any] = read_json(path, remedy="use --overwrite to start again")
    return content


def require_kind(folder: str | Path, kind: str) -> dict[str, Any]:
    """`read_content` of a study of that kind.

    Raises:
        InputError: as `read_content`, or the study is of another kind.
    """
    found = kind_of(folder)
    if found != kind:
        raise InputError(
            f"holds a study of {KINDS[found]}, expected one of {KINDS[kind]}; use --overwrite, or another folder",
            path=folder,
        )
    return read_content(folder)


SYNTHETIC, PARTLY_SYNTHETIC = "synthetic", "partly synthetic"
KINDS = {"slices": "slices of CT", "volumes": "volumes", "xray": "radiographs"}


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


def mark_of(datasets: Iterable[str]) -> str:
    """What tables and figures of a study say of its data, by the data set of each scan; empty for real ones."""
    made_up = {name == "phantom" for name in datasets}
    return PARTLY_SYNTHETIC if len(made_up) == 2 else SYNTHETIC if True in made_up else ""


def mark_tables(folder: Path, word: str) -> None:
    """Give every table of a scored study a last column ``data``: ``real``, `SYNTHETIC` or `PARTLY_SYNTHETIC`."""
    for path in (*sorted(folder.glob("*.csv")), *sorted((folder / "shift").glob("*.csv"))):
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
        if rows and "data" not in rows[0]:
            write_csv(path, [*rows[0], "data"], [[*row, word] for row in rows[1:]])
    write_json(folder / "matrix.json", {**read_result(folder, "matrix.json"), "data": word})


def write_run(folder: Path, notes: Sequence[str], *, resumed: bool, synthetic: bool) -> None:
    """Write `run.json`: what a reader should know of the last run, e.g. what was made anew and why."""
    write_json(folder / "run.json", {"resumed": resumed, "synthetic": synthetic, "notes": list(notes)})


def _require_same(experiment: Experiment, folder: Path) -> None:
    before = read_experiment(folder)
    changed = [] if _only_grown(before, experiment) else differences(before, experiment)
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise InputError(
            f"holds a study with other settings ({'; '.join(changed[:4])}{more}); resume with the settings it was "
            "begun with, use --overwrite, or another folder",
            path=folder,
        )


def _only_grown(before: Experiment, now: Experiment) -> bool:
    """Whether `now` is `before` with further sets, stages or rows of the paper, and nothing else."""
    old, new = ({row["key"]: row["value"] for row in describe(e)} for e in (before, now))
    added = [key for key in new if key not in old]
    return all(new.get(key, ...) == value for key, value in old.items()) and all(k.startswith(GROWING) for k in added)


def read_experiment(folder: str | Path) -> Experiment:
    """The experiment of a study folder.

    Raises:
        InputError: no study lies there, it is of another kind, or its `experiment.json` cannot be read.
    """
    return experiment_from(Experiment, require_kind(folder, "slices"), folder)


def experiment_from(kind: type[SheetT], content: dict[str, Any], folder: str | Path) -> SheetT:
    """The experiment of what `read_content` gave.

    Raises:
        InputError: entries are missing, unknown, of another type or out of bounds.
    """
    try:
        return sheet_from_json(kind, {key: value for key, value in content.items() if key not in ("numbers", "kind")})
    except InputError as problem:
        raise InputError(problem.message, path=Path(folder) / EXPERIMENT_FILE) from problem
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as problem:
        raise InputError(
            f"holds a value of the wrong kind ({problem}); use --overwrite to start again",
            path=Path(folder) / EXPERIMENT_FILE,
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
