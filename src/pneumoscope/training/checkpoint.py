"""Checkpoints that survive a kill and notice bit rot.

A file is ``PNEUMOSCOPE-CKPT 1``, a newline, the hex SHA-256 of the rest, a newline; then one line of JSON with the
plain values, and the tensors as safetensors. No pickle, and equal states give equal bytes. `last.ckpt` is replaced by
rename; the one before stays as `previous.ckpt` and is used, with a word, when the last is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pneumoscope.errors import CheckpointError, ModelError
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
    """Write `last.ckpt`, keeping the one before as `previous.ckpt`. At every moment at least one whole file exists.

    Args:
        state: nested dicts and lists of tensors, numbers, strings, booleans and None.
    """
    from safetensors.torch import save

    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_pack(state, tensors)).encode()
    payload = plain + b"\n" + save(tensors)
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
        CheckpointError: checkpoints are there and none is whole; a run is never silently started again.
    """
    folder = Path(folder)
    problems = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = _read(path)
        except (ValueError, OSError) as problem:
            problems.append(f"{name} is damaged ({problem})")
            continue
        return Loaded(state, f"{problems[0]}; went back to {name}" if problems else "")
    if problems:
        raise CheckpointError(
            f"{' and '.join(problems)}; copy the run from a backup or start again with --overwrite", path=folder
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    from pneumoscope.models.weights import read_tensors

    data = path.read_bytes()
    head = len(_MAGIC)
    digest, newline, payload = data[head : head + 64], data[head + 64 : head + 65], data[head + 65 :]
    if data[:head] != _MAGIC or newline != b"\n":
        raise ValueError("not a checkpoint of this program")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise ValueError("its SHA-256 does not match")
    plain, _, tensors = payload.partition(b"\n")
    try:
        state = _unpack(json.loads(plain), read_tensors(tensors))
    except (ModelError, KeyError, TypeError, ValueError, RecursionError) as problem:
        raise ValueError(f"its sum is right and its content is not: {str(problem)[:200]}") from problem
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`: tensors move into `tensors` and leave their name, dicts become lists of pairs."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs: an optimiser's keys are numbers, JSON's are not
        return {"pairs": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(item, tensors) for key, item in value["pairs"]}
    return value
