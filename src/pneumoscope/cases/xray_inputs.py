"""Which radiographs are meant, once each, and what they are called in the outputs: nobody's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pneumoscope.errors import PneumoscopeError
from pneumoscope.io.formats.radiograph import SUFFIXES, find_radiographs
from pneumoscope.io.kinds import case_name


@dataclass(frozen=True)
class Listed:
    """One input.

    Attributes:
        name: its own in the outputs.
        path: where it lies.
        problem: why it cannot be used, when that is known already.
    """

    name: str
    path: Path
    problem: PneumoscopeError | None = None


def listed(inputs: Sequence[str | Path]) -> list[Listed]:
    """Every picture once, with a name of its own; inputs that are none, with what is wrong."""
    found: list[Listed] = []
    seen: set[Path] = set()
    for given in inputs:
        try:
            paths = find_radiographs(given)
        except PneumoscopeError as problem:
            found.append(Listed(_name(Path(given)) or "input", Path(given), problem))
            continue
        for path in paths:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found.append(Listed(_name(path), path))
    return _named_apart(found)


def _name(path: Path) -> str:
    """The file's stem; for DICOM a keyed hash, because its name may be a patient's."""
    from pneumoscope.io.dicom.search import single

    try:
        with path.open("rb") as stream:
            is_dicom = stream.read(132)[128:] == b"DICM"
        if is_dicom:
            return single(path, None).case.replace("ct-", "xr-", 1)
    except (OSError, PneumoscopeError):
        pass
    return case_name(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _named_apart(found: Sequence[Listed]) -> list[Listed]:
    """Names of their own, also where a file system does not tell upper from lower case."""
    taken: set[str] = set()
    result = []
    for item in found:
        name, number = item.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{item.name}-{number}"
        taken.add(name.casefold())
        result.append(replace(item, name=name))
    return result
