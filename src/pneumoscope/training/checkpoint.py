"""Checkpoints that survive a kill and notice bit rot.

A file is ``PNEUMOSCOPE-CKPT 1``, a newline, the hex SHA-256 of the rest, a newline, and a torch archive of tensors and
plain values (loaded with ``weights_only=True``: nothing in it is executed). `last.ckpt` is replaced by rename; the one
before stays as `previous.ckpt` and is used, with a word, when the last is damaged.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pneumoscope.errors import CheckpointError
from pneumoscope.io.files import write_bytes

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
_MAGIC = b"PNEUMOSCOPE-CKPT 1\n"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint and what to tell about it: `note` is empty when the last one was whole."""

    state: dict[str, Any]
    note: str = ""


def save_checkpoint(folder: str | Path, state: dict[str, Any]) -> None:
    """Write `last.ckpt`, keeping the one before as `previous.ckpt`. At every moment at least one whole file exists."""
    folder = Path(folder)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    last = folder / LAST
    if last.exists():
        link = folder / f".tmp-{os.getpid()}-{PREVIOUS}"
        link.unlink(missing_ok=True)
        os.link(last, link)
        link.replace(folder / PREVIOUS)
    write_bytes(last, _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load_checkpoint(folder: str | Path) -> Loaded | None:
    """The newest whole checkpoint of a folder; None when none was ever written.

    Raises:
        CheckpointError: checkpoints are there and none is whole; a run is never silently begun anew.
    """
    folder = Path(folder)
    problems = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = _read(path)
        except ValueError as problem:
            problems.append(f"{name} is damaged ({problem})")
            continue
        return Loaded(state, f"{problems[0]}; went back to {name}" if problems else "")
    if problems:
        raise CheckpointError(
            f"{' and '.join(problems)}; copy the run from a backup or start anew with --overwrite", path=folder
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    head = len(_MAGIC)
    digest, newline, payload = data[head : head + 64], data[head + 64 : head + 65], data[head + 65 :]
    if data[:head] != _MAGIC or newline != b"\n":
        raise ValueError("not a checkpoint of this program")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ValueError("its SHA-256 does not match")
    return torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
