"""The study folder: begun, refused or gone on with; what it was made with; its settings' fingerprint."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.experiments.access import describe, differences, from_json, to_json
from pneumoscope.experiments.schema import Experiment
from pneumoscope.io.files import jsonable, prepare_folder, write_json

EXPERIMENT_FILE = "experiment.json"
"""Marks a folder as a study; holds the whole experiment and, for readers, every number with its source."""

OWN_PARTS = ("data", "figures", "splits", "stages", "cases", "shift")
OWN_FILES = (
    "per_case.csv",
    "untrained.csv",
    "matrix.csv",
    "matrix.json",
    "forgetting.csv",
    "report.html",
    "study.json",
    "guard.json",
    "leakage.json",
    "supplied_lungs.csv",
    "systems.csv",
)

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
    if resume and overwrite:
        raise InputError("--resume keeps what is there and --overwrite removes it; give one of them", path=out)
    folder = prepare_folder(out, marker=EXPERIMENT_FILE, overwrite=overwrite, resume=resume)
    if (folder / EXPERIMENT_FILE).exists():
        if overwrite:
            _clear(folder)
        else:
            _require_same(experiment, folder)
    write_json(folder / EXPERIMENT_FILE, {**to_json(experiment), "numbers": describe(experiment)})
    return folder


def _clear(folder: Path) -> None:
    """Remove the parts a study writes; only called on a folder that is marked as one."""
    for name in OWN_PARTS:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
    for name in OWN_FILES:
        (folder / name).unlink(missing_ok=True)


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
        InputError: no study lies there, or its `experiment.json` cannot be read.
    """
    path = Path(folder) / EXPERIMENT_FILE
    if not path.is_file():
        raise InputError(f"holds no study ({EXPERIMENT_FILE} is missing); make one with study run", path=folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("numbers", None)
    except (OSError, ValueError, AttributeError) as problem:
        raise InputError(f"cannot be read as JSON ({problem}); use --overwrite to begin anew", path=path) from problem
    return from_json(content)


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


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hex digest of plain settings, independent of the order of their keys."""
    text = json.dumps(jsonable(dict(settings)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
