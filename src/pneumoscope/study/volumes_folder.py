"""The folder of a study on volumes: begun, refused, gone on with; the experiment of one that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.experiments.access import describe, to_json
from pneumoscope.experiments.volumes import VolumeExperiment
from pneumoscope.io.files import jsonable, write_json
from pneumoscope.study.folder import EXPERIMENT_FILE, open_folder, require_kind

KIND = "volumes"


def begin_volumes(experiment: VolumeExperiment, out: str | Path, *, resume: bool, overwrite: bool) -> Path:
    """Make `out` a study folder of `experiment`; see `study.folder.begin`.

    Raises:
        InputError: it holds a study and neither flag is given, both are, or a resumed study has other settings.
    """
    folder, kept = open_folder(out, resume=resume, overwrite=overwrite)
    if kept:
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


def read_volume_study(folder: str | Path) -> dict[str, Any]:
    """The experiment of a study folder as plain values: recipe, title, citation, notes, numbers...

    Raises:
        InputError: none lies there, or it cannot be read.
    """
    content = require_kind(folder, KIND)
    numbers = content.get("numbers")
    rows = numbers if isinstance(numbers, list) else []
    texts = [content.get(name) for name in ("recipe", "title", "citation")]
    if (
        not rows
        or not all(isinstance(row, dict) and {"key", "value"} <= set(row) for row in rows)
        or not all(isinstance(text, str) for text in texts)
    ):
        raise InputError("is no experiment of this program; use --overwrite to start again",
                         path=Path(folder) / EXPERIMENT_FILE)  # fmt: skip
    return content
