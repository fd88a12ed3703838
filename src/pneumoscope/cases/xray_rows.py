"""Which radiographs are meant and what they are called in outputs (nobody's name); their results, a row each."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pneumoscope.errors import Finding, PneumoscopeError
from pneumoscope.inference.radiographs import Answer
from pneumoscope.io.formats.radiograph import SUFFIXES, find_radiographs
from pneumoscope.io.kinds import case_name
from pneumoscope.jobs.run import Outcome
from pneumoscope.reports.xray import class_name

Status = Literal["answered", "abstained", "failed"]


@dataclass(frozen=True)
class XrayRow:
    """What became of one picture."""

    image: str  # its name in outputs; a keyed hash for DICOM
    status: Status  # ``answered``, ``abstained`` or ``failed``
    answer: Answer | None = None  # None when it failed
    findings: tuple[Finding, ...] = ()  # of the reader
    heatmap: str = ""  # file name, "" without one
    heat_class: str = ""  # class the heat map speaks for
    heat_in_lung_box: float | None = None  # share of the heat in the lung box; None without heat
    lung_box_area: float | None = None  # share of the picture that the box is; None without a heat map
    error: str = ""  # the one line when it failed
    exit_code: int = 0  # how a command with this picture alone ends
    thumbnail: bytes = b""  # JPEG for the contact sheet
    heat_thumbnail: bytes = b""  # likewise, of the heat map
    kept: bool = False  # whether it was resumed from an earlier run

    def outcome(self, folder: Path) -> Outcome:
        """The row as what became of a job."""
        if self.status == "failed":
            return Outcome(self.image, "failed", error=self.error, exit_code=self.exit_code)
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("image", "kept")}
        facts["answer"] = None if self.answer is None else asdict(self.answer)
        facts["findings"] = [asdict(finding) for finding in self.findings]
        facts |= {name: b64encode(facts[name]).decode() for name in _PICTURES}
        return Outcome(self.image, facts=facts, files=(folder / self.heatmap,) if self.heatmap else ())

    @classmethod
    def of(cls, outcome: Outcome) -> XrayRow:
        """The row of an outcome, of this run or an earlier one."""
        if outcome.status == "failed":
            return cls(outcome.name, "failed", error=outcome.error or "", exit_code=outcome.exit_code)
        facts = dict(outcome.facts)
        facts["answer"] = None if facts["answer"] is None else Answer(**facts["answer"])
        facts["findings"] = tuple(Finding(**finding) for finding in facts["findings"])
        facts |= {name: b64decode(facts[name]) for name in _PICTURES}
        return cls(outcome.name, **facts, kept=outcome.kept)

    def sentence(self) -> str:
        """One line for people."""
        if self.answer is None:
            return self.error
        if self.answer.reason:
            return f"{self.answer.prediction}: {self.answer.reason}"
        return f"{class_name(self.answer.prediction)} ({self.answer.probability[self.answer.prediction]:.2f})"

    def values(self) -> dict[str, Any]:
        """Cells of `predictions.csv`, absent ones left out."""
        cells: dict[str, Any] = {"image": self.image, "status": self.status, "error": self.error}
        if self.answer is not None:
            answer = self.answer
            cells |= {"prediction": answer.prediction, "reason": answer.reason}
            cells |= {"probability": answer.probability[answer.leading]}
            cells |= {f"p_{name}": value for name, value in answer.probability.items()} | answer.scores
        cells |= {"heatmap": self.heatmap, "heat_class": self.heat_class}
        cells |= {"heat_in_lung_box": self.heat_in_lung_box, "lung_box_area": self.lung_box_area}
        return cells | {"findings": "; ".join(f"{f.code} {f.message}" for f in self.findings)}


_PICTURES = ("thumbnail", "heat_thumbnail")


@dataclass(frozen=True)
class XrayBatch:
    """All pictures of a run, in their order."""

    rows: tuple[XrayRow, ...]  # one per picture, and per input that could not be used
    classes: tuple[str, ...]  # of the model
    seconds: dict[str, float]  # wall time by step
    checked: bool  # whether the model knows what is familiar to it

    def counts(self) -> dict[str, int]:
        """Pictures by status."""
        found = Counter(row.status for row in self.rows)
        return {name: found[name] for name in ("answered", "abstained", "failed")}  # type: ignore[index]

    def mean_heat(self) -> dict[str, float | None]:
        """Mean share of the heat in the lung box, and of the picture that the box is; None without heat maps."""
        pairs = [(r.heat_in_lung_box, r.lung_box_area) for r in self.rows if r.heat_in_lung_box is not None]
        if not pairs:
            return {"heat_in_lung_box": None, "lung_box_area": None}
        share, area = np.mean(np.array(pairs, np.float64), axis=0)
        return {"heat_in_lung_box": float(share), "lung_box_area": float(area)}

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "classes": list(self.classes),
            "checked_for_familiarity": self.checked,
            "counts": self.counts(),
            **self.mean_heat(),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "images": [row.values() for row in self.rows],
        }


@dataclass(frozen=True)
class Listed:
    """One input."""

    name: str  # its own in the outputs
    path: Path  # where it lies
    problem: PneumoscopeError | None = None  # why it cannot be used, when that is known already


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
