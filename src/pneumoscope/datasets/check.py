"""Is this folder that dataset, whole and readable? Every file read to its end, counts held against published ones."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.datasets.audit.case import read_raw
from pneumoscope.datasets.case import MASKS, SAME_LABELS, Case, in_subset
from pneumoscope.datasets.formats.layout import shown
from pneumoscope.datasets.registry import dataset_info, read_dataset
from pneumoscope.errors import DatasetError, InputError, PneumoscopeError
from pneumoscope.io.files import read_csv
from pneumoscope.io.scans import MANIFEST
from pneumoscope.jobs.machines import current
from pneumoscope.jobs.run import Job, JobRun, Outcome, Step
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import INFILTRATE_LABELS, LUNG_LABELS, present_labels

COUNTS = ("scans", "patients", "slices", "slices_with_lung", "slices_with_infiltrate")
_SIDE_FILES = {
    ".csv", ".json", ".md", ".pdf", ".txt", ".xlsx", ".xml", ".html", ".tcia", ".yml", ".yaml", ".rst", ".doc", ".docx",
}  # fmt: skip
_LISTED = 12


@dataclass(frozen=True)
class Problem:
    """Something that keeps the set from being whole."""

    case: str  # which case, empty where it is about the set
    what: str  # one sentence


@dataclass(frozen=True)
class Count:
    """One count held against the published one."""

    name: str  # key as in `DatasetInfo.expected`, e.g. ``slices@masks``
    found: int | None  # what was counted; None where the set or a quick check cannot tell
    published: int | None  # None where nothing is published
    note: str = ""  # why `found` is missing

    @property
    def differs(self) -> bool:
        """Whether both are known and not equal."""
        return self.found is not None and self.published is not None and self.found != self.published


@dataclass(frozen=True)
class DatasetCheck:
    """What a check found."""

    dataset: str  # name
    quick: bool  # whether files were only listed
    counts: tuple[Count, ...]  # scans, patients, slices, per subset
    problems: tuple[Problem, ...]  # what is missing, unreadable or off
    # what is worth knowing and no fault: cases without masks, a count that cannot be compared
    notes: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()  # files of the folder that belong to no case

    @property
    def whole(self) -> bool:
        """No problem, and no count that differs from the published one."""
        return not self.problems and not any(count.differs for count in self.counts)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "whole": self.whole}


@dataclass
class _Seen:
    """What one case adds."""

    slices: int | None = None
    slices_with_lung: int | None = None
    slices_with_infiltrate: int | None = None
    problems: list[str] = field(default_factory=list)
    labels: dict[str, set[int]] = field(default_factory=dict)

    @staticmethod
    def of(facts: Mapping[str, Any]) -> _Seen:
        """From what another process says, as JSON has it."""
        return _Seen(**{**facts, "labels": {what: set(labels) for what, labels in facts["labels"].items()}})


def check_dataset(name: str, root: str | Path, *, quick: bool = False, progress: Progress = silent) -> DatasetCheck:
    """Check a dataset on disk, one scan in memory at a time.

    Args:
        quick: check the listing only: names, pairs, empty files; nothing is opened.

    Raises:
        DatasetError: the folder is not that dataset at all.
        InputError: a table that cannot be used.
    """
    info = dataset_info(name)
    if info.kind == "xray":
        raise DatasetError(f"{name} holds radiographs; only CT sets are checked", path=root)
    start = Path(root)
    try:
        cases = read_dataset(name, start)
    except InputError:
        missing = _missing_from_table(start)
        if not missing:
            raise
        return DatasetCheck(name, quick, (), tuple(Problem("", f"{file} is missing") for file in missing))
    if not cases:
        raise DatasetError(f"holds no case of {name}; check the folder", path=root)
    seen = {case.case: _listed(case, start) for case in cases}
    if not quick:
        folder = Path.cwd() / f".tmp-{os.getpid()}-check"  # made for other machines only, which must see it
        jobs = [Job(c.case, c, folder / c.case, marked=False) for c in cases if not seen[c.case].problems]
        try:
            outcomes = JobRun(
                jobs, _open(1), lambda *_: None, opener=_open, side_by_side=current().jobs or 1, strict=True,
                what="check", progress=progress,
            ).run()  # fmt: skip
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for outcome in outcomes:
            seen[outcome.name] = _Seen.of(outcome.facts)
    problems = [Problem(case, what) for case, found in seen.items() for what in found.problems]
    pairs, notes = _pairs(cases, declared=any(key.endswith(f"@{MASKS}") for key in info.expected))
    beyond, looked = _beyond(cases, start)
    if not quick:
        notes += absent_labels(cases, [found.labels for found in seen.values()])
        for what in ("lungs", "infiltrate"):
            if blank := [case for case, found in seen.items() if found.labels.get(what) == set()]:
                notes.append(f"the {what} mask of {shown(blank)} marks nothing")
    notes += [] if looked else ["files beyond the cases were not searched: not every case names its files"]
    counts = _counts(cases, seen, info.expected, quick)
    return DatasetCheck(name, quick, counts, (*problems, *pairs), tuple(notes), tuple(beyond))


def _open(side_by_side: int) -> Step:
    def look(job: Job, progress: Progress) -> Outcome:
        found = _Seen()
        _read(job.item, found)
        labels = {what: sorted(labels) for what, labels in found.labels.items()}
        return Outcome(job.name, facts={**vars(found), "labels": labels})

    return Step("check", 1, work=look)


def leaving_link(path: Path, root: Path) -> bool:
    """Whether a path written within `root` leads out of it by a link; one written outside is somebody's choice."""
    home = root if root.is_dir() else root.parent
    written = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link that is looked for
    if not written.is_relative_to(os.path.abspath(home)):  # noqa: PTH100
        return False
    return not path.resolve().is_relative_to(home.resolve())


def _files(case: Case) -> list[tuple[str, Path]]:
    if case.files is None:
        return []
    return [(what, path) for what in ("image", "lungs", "infiltrate") if (path := getattr(case.files, what))]


def _listed(case: Case, root: Path) -> _Seen:
    """What the listing alone says of a case."""
    found = _Seen()
    for what, path in _files(case):
        inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        if not path.exists():
            found.problems.append(f"{what} {path.name} is missing")
        elif leaving_link(path, root) or any(leaving_link(p, root) for p in inside if p.is_symlink()):
            found.problems.append(f"{what} {path.name} is a link that leads out of the dataset")
        elif not inside or any(p.stat().st_size == 0 for p in inside):
            found.problems.append(f"{what} {path.name} is empty")
    return found


def _read(case: Case, found: _Seen) -> None:
    """Read every file of a case to its end; what is wrong becomes a problem."""
    try:
        raw = read_raw(case)
    except PneumoscopeError as problem:
        found.problems.append(str(problem))
        return
    found.slices = raw.volume.grid.shape[2]
    found.problems.extend(text for _, text in raw.problems)
    for what, mask in (("lungs", raw.lungs), ("infiltrate", raw.infiltrate)):
        if mask is None:
            continue
        try:
            mask.on(raw.volume.grid, what)
        except PneumoscopeError as problem:
            found.problems.append(problem.message)
            continue
        found.labels[what] = set(present_labels(mask.labels))
        marked = int(np.count_nonzero(mask.house().any(axis=(0, 1))))
        setattr(found, f"slices_with_{what.removesuffix('s')}", marked)


def absent_labels(cases: Iterable[Case], present: Iterable[Mapping[str, set[int]]]) -> list[str]:
    """Sentences about labels that the set declares and no case holds; a network cannot learn them.

    Args:
        cases: all of them; only label maps that the set itself states are compared, not the default of own tables.
        present: of each case read, ``lungs`` and ``infiltrate`` -> labels on disk.
    """
    held: dict[str, set[int]] = {}
    for one in present:
        for what, found in one.items():
            held.setdefault(what, set()).update(found)
    absent: set[tuple[int, str]] = set()
    for files in (case.files for case in cases if case.files is not None):
        kinds = (("lungs", files.lung_labels, LUNG_LABELS), ("infiltrate", files.infiltrate_labels, INFILTRATE_LABELS))
        stated = [(what, labels, names) for what, labels, names in kinds if what in held and labels is not SAME_LABELS]
        for what, labels, names in stated:
            apart = set(labels.values()) != {1}
            named = {n: names[here] if apart else what.removesuffix("s") for n, here in labels.items()}
            absent |= {(n, name) for n, name in named.items() if n not in held[what]}
        if stated:
            meant = {0, *files.lung_labels, *files.infiltrate_labels, *set().union(*held.values())}
            absent |= {(n, "neither lung nor infiltrate") for n in files.ignored_labels - meant}
    return [f"label {number} ({name}) is declared and no case holds it" for number, name in sorted(absent)]


def _pairs(cases: Sequence[Case], *, declared: bool) -> tuple[list[Problem], list[str]]:
    """Cases without a mask that others of their source have: a fault, unless the set says how many have one."""
    problems, notes = [], []
    by_source: dict[str, list[Case]] = {}
    for case in cases:
        if case.files is not None:
            by_source.setdefault(case.source, []).append(case)
    for source, members in by_source.items():
        for what in ("lungs", "infiltrate"):
            without = [c.case for c in members if getattr(c.files, what) is None]
            where = f" of {source}" if source else ""
            if without and len(without) < len(members) and not declared:
                problems += [Problem(case, f"no {what} mask, though other cases{where} have one") for case in without]
            elif without:
                notes.append(f"{len(without)} of {len(members)} cases{where} have no {what} mask")
    return problems, notes


def _counts(cases: Sequence[Case], seen: dict[str, _Seen], expected: Any, quick: bool) -> tuple[Count, ...]:
    names = list(expected) + [name for name in COUNTS if name not in expected]
    out = []
    for name in names:
        what, _, subset = name.partition("@")
        some = [case for case in cases if in_subset(case, subset)]
        found, note = _count(what, some, [seen[case.case] for case in some], quick)
        out.append(Count(name, found, expected.get(name), note))
    return tuple(out)


def _count(what: str, cases: Sequence[Case], seen: Sequence[_Seen], quick: bool) -> tuple[int | None, str]:
    """One count, or why it cannot be made."""
    if what == "scans":
        return len(cases), ""
    if what == "patients":
        return len({case.patient for case in cases}), ""
    if quick:
        return None, "not counted in a quick check"
    known = [value for one in seen if (value := getattr(one, what, None)) is not None]
    if not known:
        return None, "no such masks" if what in ("slices_with_lung", "slices_with_infiltrate") else "not known"
    return sum(known), "" if len(known) == len(seen) else f"of {len(known)} of {len(seen)} cases"


def _beyond(cases: Iterable[Case], root: Path) -> tuple[list[str], bool]:
    """Files of the folder that belong to no case, relative to it; tables and notes are taken for granted."""
    members = list(cases)
    if not root.is_dir() or any(case.files is None for case in members):
        return [], root.is_file()
    known = {path for case in members for _, path in _files(case)}
    folders = {path for path in known if path.is_dir()}
    out = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        taken = path in known or any(folder in path.parents for folder in folders)
        if not (hidden or taken or path.suffix.lower() in _SIDE_FILES or path.stem.upper() in ("LICENSE", "LICENCE")):
            out.append(path.relative_to(root).as_posix())
    return out, True


def _missing_from_table(root: Path) -> list[str]:
    """Files that a manifest lists and that are not there; empty where there is no such table."""
    table = root / MANIFEST if root.is_dir() else root
    try:
        rows = read_csv(table)
    except InputError:
        return []
    cells = [row[column] for row in rows for column in ("image", "lungs", "infiltrate") if row.get(column)]
    return [cell for cell in cells if not (table.parent / cell).exists()]


def listed(names: Sequence[str]) -> list[str]:
    """The first few names, and how many more there are; folders with many files are summed up."""
    if len(names) <= _LISTED:
        return list(names)
    folders = Counter(str(Path(name).parent) for name in names)
    return [f"{count} files in {folder}" for folder, count in folders.most_common(_LISTED)]
