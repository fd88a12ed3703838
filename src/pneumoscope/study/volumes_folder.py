"""The folder of a study on volumes: begun, refused, gone on with; the experiment of one that is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.experiments.access import describe, to_json
from pneumoscope.experiments.volumes import VolumeExperiment
from pneumoscope.io.files import jsonable, prepare_folder, write_json
from pneumoscope.study.folder import EXPERIMENT_FILE

KIND = "volumes"
OWN_PARTS = ("data", "figures", "splits", "stages")
OWN_FILES = ("per_case.csv", "folds.csv", "matrix.csv", "matrix.json", "paper.csv", "report.html", "study.json",
             "environment.json")  # fmt: skip


def begin_volumes(experiment: VolumeExperiment, out: str | Path, *, resume: bool, overwrite: bool) -> Path:
    """Make `out` a study folder of `experiment`; see `study.folder.begin`.

    Raises:
        InputError: it holds a study and neither flag is given, both are, or a resumed study has other settings.
    """
    if resume and overwrite:
        raise InputError("--resume keeps what is there and --overwrite removes it; give one of them", path=out)
    folder = prepare_folder(out, marker=EXPERIMENT_FILE, overwrite=overwrite, resume=resume)
    if overwrite and (folder / EXPERIMENT_FILE).exists():
        for part in OWN_PARTS:
            if (folder / part).is_dir() and not (folder / part).is_symlink():
                shutil.rmtree(folder / part)
        for name in OWN_FILES:
            (folder / name).unlink(missing_ok=True)
    elif (folder / EXPERIMENT_FILE).exists():
        before = {row["key"]: row["value"] for row in read_volume_study(folder)["numbers"]}
        now = {row["key"]: jsonable(row["value"]) for row in describe(experiment)}  # type: ignore[arg-type]
        changed = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in {**before, **now}
                   if before.get(key) != now.get(key)]  # fmt: skip
        if changed:
            raise InputError(
                f"holds a study with other settings ({'; '.join(changed[:4])}); resume with the settings it was begun "
                "with, use --overwrite, or another folder",
                path=folder,
            )
    plain = to_json(experiment)  # type: ignore[arg-type]
    write_json(folder / EXPERIMENT_FILE, {"kind": KIND, **plain, "numbers": describe(experiment)})  # type: ignore[arg-type]
    return folder


def is_volume_study(folder: str | Path) -> bool:
    """Whether a study on volumes lies there."""
    try:
        return bool(json.loads((Path(folder) / EXPERIMENT_FILE).read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False


def read_volume_study(folder: str | Path) -> dict[str, Any]:
    """The experiment of a study folder as plain values: recipe, title, citation, notes, numbers...

    Raises:
        InputError: none lies there.
    """
    if not is_volume_study(folder):
        raise InputError("holds no study on volumes; make one with study run", path=folder)
    content: dict[str, Any] = json.loads((Path(folder) / EXPERIMENT_FILE).read_text(encoding="utf-8"))
    return content
