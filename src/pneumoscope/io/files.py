"""Files that are whole or absent: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    The temporary name keeps the suffixes (writers choose a format by them) and starts with a dot. The file is synced
    before and its folder after the rename, so that a killed or powered-off machine leaves the old file or the
    new one, never a part.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".tmp-{os.getpid()}-{final.name}"
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(final)
        _sync(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():  # folders cannot be synced on every file system; files must be
            raise
    finally:
        os.close(handle)


def clear_temporary(folder: str | Path) -> None:
    """Remove temporary files that a killed process left anywhere below `folder`; those of living processes stay."""
    for path in Path(folder).rglob(".tmp-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not _is_alive(int(owner)):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and not ours
        return True
    return True


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON in the order given; NaN and infinity become null (they are not JSON)."""
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def jsonable(value: Any) -> Any:
    """`value` with NumPy scalars, arrays, paths and non-finite floats turned into plain JSON values."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def prepare_folder(path: str | Path, *, marker: str, overwrite: bool = False, resume: bool = False) -> Path:
    """Make an output folder; refuse one that holds another run.

    Args:
        path: the folder.
        marker: a file name that tells a finished or started run of this kind, e.g. ``run.json``.
        overwrite: write over what is there (files are replaced one by one, nothing else is deleted).
        resume: go on with what is there.

    Raises:
        InputError: the path is a file, cannot be made, or holds a run and neither flag is given.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, expected an output folder; choose another name", path=folder)
    if (folder / marker).exists() and not (overwrite or resume):
        raise InputError(f"already holds a run ({marker}); use --overwrite or another folder", path=folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot be made an output folder ({reason}); choose another place", path=folder) from error
    clear_temporary(folder)
    return folder
