"""Case folders from masks made elsewhere: the severity report and 3D of `segment`, without a network (and torch)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Unpack, get_args

import numpy as np

from pneumoscope.cases.batch import BatchResult, CaseResult, Run, case_step, require_scans, run_batch, write_measured
from pneumoscope.cases.options import QuantifyOptions
from pneumoscope.cases.outputs import PAGE, REPORT_FILE, WRITING
from pneumoscope.datasets.formats.label_names import MEANINGS, SYNONYMS, plain
from pneumoscope.errors import Finding, InputError, ReadError
from pneumoscope.io.files import read_json
from pneumoscope.io.kinds import IMAGE_SUFFIXES, kind_of, suffix_of
from pneumoscope.io.masks import CODE, in_house_order, place_mask, read_dicom_mask, series_of_mask
from pneumoscope.io.read import read_listed, read_lungs, read_mask, read_mask_or_probability
from pneumoscope.io.scans import ScanRef
from pneumoscope.jobs.run import Step
from pneumoscope.options import recorded, without_files
from pneumoscope.progress import Progress, silent
from pneumoscope.reports.case import CaseContent
from pneumoscope.severity.measure import assess
from pneumoscope.severity.regions import LUNGMASK_ORDER, TOTALSEGMENTATOR_ORDER, lobe_of, with_house_labels
from pneumoscope.volume import (
    INFILTRATE_LABEL,
    INFILTRATE_LABELS,
    LUNG_LABEL,
    LUNG_LABELS,
    Mask,
    Volume,
    is_named,
    relabelled,
)

Part = Literal["lungs", "lobes", "infiltrate"]
SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd", ".dcm")
ENDINGS = ("", "_{part}", "-{part}", "_lung", "_mask", "_seg", "-mask", "-seg", "_segmentation")
"""What may stand between a case's name and the suffix of its mask."""

INSIDE = re.compile(r"lung_(upper|middle|lower)_lobe_(right|left)|lung_(right|left)|lung")
NODULES = "lung_nodules"
_LUNGS = ("right lung", "left lung", "lung")
_KINDS = {"ground-glass": 1, "infiltrate": 1, "consolidation": 2}


@dataclass(frozen=True, eq=False)
class GivenMasks:
    """Masks on the scan's grid; None where there is none."""

    lungs: Mask | None  # 1 = right, 2 = left, or labels of its own names
    infiltrate: Mask | None  # 1 = ground-glass, 2 = consolidation, or 1 = infiltrate
    lobes: Mask | None  # five lobes
    findings: tuple[Finding, ...]  # what was done to lay them on the scan


def with_masks(scans: Sequence[ScanRef], options: object) -> list[ScanRef]:
    """The scans with the masks that the options `lungs`, `lobes` and `infiltrate` name; a manifest's own go first.

    Raises:
        InputError: a case without a mask, or one file for several scans.
    """
    scans = list(scans)
    for part in get_args(Part):
        source = getattr(options, part, None)
        if source is not None:
            find = _Finder(str(source), part, len(scans))
            scans = [s if getattr(s, part) else replace(s, **{part: find(s)}) for s in scans]  # type: ignore[arg-type]
    return scans


class _Finder:
    """Where the mask of a case lies in a file, a folder or a pattern (``{case}``, or ``*`` for the case's name)."""

    def __init__(self, source: str, part: Part, scans: int, option: str = "") -> None:
        self.source, self.part, self.option = source, part, option or f"--{part}"
        self.is_pattern = "{case}" in source or "*" in source
        path = Path(source)
        if not self.is_pattern and not path.exists():
            raise InputError(f"{self.option}: no such file or folder; give a mask, a folder or a pattern", path=source)
        self.single = not self.is_pattern and (path.is_file() or _is_structures(path, part))
        if self.single and scans > 1:
            raise InputError(
                f"{self.option} is one mask, but there are {scans} scans; give a folder with a mask per case, or a "
                "pattern such as masks/{case}.nii.gz",
                path=source,
            )
        self._by_series: dict[str, Path] | None = None

    def __call__(self, scan: ScanRef) -> Path:
        if self.single:
            return Path(self.source)
        tried = dict.fromkeys([scan.case, re.sub(r"_0000$", "", scan.case)])
        there = [path for name in tried for path in self._candidates(name) if path.exists()]
        found = there[0] if there else None
        if found is not None and suffix_of(found) != ".seg.nrrd":  # Slicer puts it beside the scan
            stem = found.name.removesuffix(suffix_of(found))
            other = next((p for p in there[1:] if p.name.removesuffix(suffix_of(p)) == stem), None)
            if other is not None:
                raise InputError(
                    f"{self.option}: there are two masks of {scan.case}, {found.name} and {other.name}; keep one",
                    path=self.source,
                )
        found = found or self._of_series(scan)
        if found is None:
            raise InputError(
                f"{self.option}: there is no mask of {scan.case}; looked for {self._said(scan.case)}", path=self.source
            )
        return found

    def _candidates(self, case: str) -> Iterator[Path]:
        if self.is_pattern:
            yield Path(
                self.source.replace("{case}", case) if "{case}" in self.source else self.source.replace("*", case)
            )
            return
        root = Path(self.source)
        for ending in ENDINGS:
            for suffix in SUFFIXES:
                yield root / f"{case}{ending.format(part=self.part)}{suffix}"
        if _is_structures(root / case, self.part):
            yield root / case
        for suffix in SUFFIXES:
            yield root / case / f"{self.part}{suffix}"

    def _of_series(self, scan: ScanRef) -> Path | None:
        """In a folder, the SEG or RTSTRUCT that refers to the scan's series."""
        if self.is_pattern or not scan.identity.series_uid:
            return None
        if self._by_series is None:
            files = sorted(path for path in Path(self.source).rglob("*") if path.is_file())
            self._by_series = {
                uid: path for path in files if suffix_of(path) not in IMAGE_SUFFIXES for uid in series_of_mask(path)
            }
        return self._by_series.get(scan.identity.series_uid)

    def _said(self, case: str) -> str:
        if self.is_pattern:
            return str(next(self._candidates(case)))
        return f"{case}.nii.gz, {case}_{self.part}.nii.gz, {case}/ with one file per structure, and the like"


def _is_structures(folder: Path, part: Part) -> bool:
    """Whether a folder holds one file per structure, as TotalSegmentator writes them, or is a case folder of ours."""
    return folder.is_dir() and any(True for _ in _structures(folder, part))


def _structures(folder: Path, part: Part) -> Iterator[tuple[str, Path]]:
    """Name and file of each structure of this part; of infiltrates, nodules only where there is nothing else."""
    files = {
        path.name[: -len(suffix_of(path))]: path
        for path in sorted(folder.iterdir())
        if suffix_of(path) in IMAGE_SUFFIXES
    }
    if part == "infiltrate":
        known = [n for n in files if n != "infiltrate" and SYNONYMS.get(plain(n)) in _KINDS]
        names = known or [n for n in (NODULES,) if n in files]
    else:
        lobes = [n for n in files if lobe_of(n)]
        lungs = [n for n in files if INSIDE.fullmatch(n) and not lobe_of(n)]
        names = lobes if part == "lobes" or lobes else [n for n in lungs if n != "lung"] or lungs
    yield from ((name, files[name]) for name in names)


def mask_file(case: str, folder: str | Path) -> Path:
    """Where the infiltrate mask of a case lies in a folder.

    Raises:
        InputError: there is none, or there are two.
    """
    return _Finder(str(folder), "infiltrate", 1, "--predictions")(ScanRef(case, Path(case)))


def mask_of_case(volume: Volume, folder: str | Path, meanings: Sequence[str] = ()) -> Mask:
    """The infiltrate mask of `volume.case` in a folder, on the scan's grid.

    Args:
        folder: see `mask_file`.
        meanings: ``LABEL=MEANING``, the label by number or name; without any, labels go by their names.

    Raises:
        InputError: as `mask_file`, or a meaning is none.
        ReadError: as `read_given`.
    """
    path = mask_file(volume.case, folder)
    given = {plain(name): meaning for name, _, meaning in (pair.rpartition("=") for pair in meanings)}
    wrong = sorted(set(given.values()) - set(MEANINGS))
    if wrong:
        raise InputError(f"--label: a label cannot mean {wrong[0]!r}; expected one of {', '.join(MEANINGS)}")
    return _read(path, "infiltrate", volume, None, [], given)


def read_given(volume: Volume, scan: ScanRef, threshold: float | None = None) -> GivenMasks:
    """The masks that came with a scan, on its grid.

    Masks of probabilities are cut at the `threshold`, see `io.read.read_mask_or_probability`; crops of the scan's own
    lattice are pasted.

    Raises:
        ReadError: a mask cannot be read, does not lie on its scan, or has no label of its part.
    """
    findings: list[Finding] = []
    read: dict[str, Mask | None] = {}
    for part in get_args(Part):
        path = getattr(scan, part)
        read[part] = None if path is None else _read(Path(path), part, volume, threshold, findings)
    lungs, infiltrate = read["lungs"], read["infiltrate"]
    if lungs is not None:
        lungs = in_house_order(with_house_labels(lungs), LUNG_LABELS, LUNG_LABEL)
    if infiltrate is not None:
        infiltrate = in_house_order(infiltrate, INFILTRATE_LABELS, INFILTRATE_LABEL)
    return GivenMasks(lungs, infiltrate, read["lobes"], tuple(findings))


def _read(
    path: Path, part: Part, volume: Volume, threshold: float | None, findings: list[Finding],
    meanings: Mapping[str, str] = MappingProxyType({}),
) -> Mask:  # fmt: skip
    grid, what = volume.grid, f"the {part.removesuffix('s') if part != 'infiltrate' else part} mask"

    def one(file: Path) -> Mask:
        if kind_of(file) == "dicom":
            mask = read_dicom_mask(file, grid, threshold)
        else:
            read = read_lungs if part == "lungs" else read_mask
            mask = read_mask_or_probability(file, threshold, read, scan=grid)
        if not mask.grid.is_same_space(grid):
            shape = " x ".join(map(str, mask.grid.shape))
            findings.append(
                Finding("IN-MSK-072", f"{what} is a crop of {shape} voxels and was laid onto the scan", "info")
            )
        return place_mask(mask, grid, what=what, path=file)

    if not path.is_dir():
        return _selected(one(path), part, path, meanings)
    labels, names = np.zeros(grid.shape, np.uint8), dict[int, str]()
    for number, (name, file) in enumerate(_structures(path, part), start=1):
        labels[one(file).any] = number
        names[number] = name
    return _selected(Mask(labels, grid, names), part, path, meanings)


def _selected(mask: Mask, part: Part, path: Path, given: Mapping[str, str]) -> Mask:
    """The labels of a part, by their names; a mask without names is taken as it is, with the orders of known programs.

    Raises:
        ReadError: the labels have names, several of them, and none belongs to the part.
    """
    names = _names_of(mask, path)
    if given:
        names = {n: given.get(str(n), given.get(plain(name), name)) for n, name in (names or mask.names).items()}
    if part == "lobes" or names is None:
        return mask if names is None else Mask(mask.labels, mask.grid, names)
    if part == "lungs":
        kept = [n for n, name in names.items() if lobe_of(name) or SYNONYMS.get(plain(name)) in _LUNGS]
        numbers = {n: n for n in kept}
        called = {n: names[n] if lobe_of(names[n]) else str(SYNONYMS[plain(names[n])]) for n in kept}
    else:
        meanings = {n: str(SYNONYMS.get(plain(name), "infiltrate" if plain(name) == "lung nodules" else ""))
                    for n, name in names.items()}  # fmt: skip
        kept = [n for n, meaning in meanings.items() if meaning in _KINDS]
        apart = all(meanings[n] != "infiltrate" for n in kept)
        numbers = {n: _KINDS[meanings[n]] if apart else 1 for n in kept}
        called = dict(INFILTRATE_LABELS if apart else INFILTRATE_LABEL)
    if not kept:
        if len(names) == 1 and not given:
            return mask
        raise ReadError(
            f"has the labels {', '.join(names.values())}, none of which is known as {part}; rename them or keep one",
            code=CODE,
            path=path,
        )
    return Mask(relabelled(mask.labels, numbers), mask.grid, called)


def _names_of(mask: Mask, path: Path) -> Mapping[int, str] | None:
    """Names of the file itself, of nnU-Net's dataset.json beside it, or the order of lungmask or TotalSegmentator."""
    if is_named(mask.names):
        return mask.names
    beside = path.parent / "dataset.json"
    if beside.is_file():
        given = read_json(beside).get("labels")
        if isinstance(given, dict) and all(isinstance(value, int) for value in given.values()):
            named = {value: str(name) for name, value in given.items() if value}
            if set(mask.names) <= set(named):
                return named
    if set(TOTALSEGMENTATOR_ORDER) <= set(mask.names):
        return {n: TOTALSEGMENTATOR_ORDER.get(n, f"label {n}") for n in mask.names}
    return dict(LUNGMASK_ORDER) if set(mask.names) == set(LUNGMASK_ORDER) else None


def quantify_cases(
    scans: Sequence[ScanRef], out: str | Path, options: QuantifyOptions | None = None, **run: Unpack[Run]
) -> BatchResult:
    """Measure scans with masks made elsewhere into `out/<case>/`; files and endings as `segment_cases`.

    `run` is that of `run_batch`; scans of a manifest bring their masks.

    Raises:
        InputError: nothing to do, a scan without masks, two cases of one name, or `out` is in use.
    """
    options = options or QuantifyOptions()
    require_scans(scans, "quantify")
    scans = with_masks(scans, options)
    for scan in scans:
        missing = [what for what in ("lungs", "infiltrate") if not getattr(scan, what)]
        if missing:
            raise InputError(
                f"{scan.case} comes without a mask of {' and of '.join(missing)}; give --lungs and --infiltrate, or a "
                "manifest with the columns lungs and infiltrate"
            )
    return run_batch(scans, out, partial(_open, options), recorded(options), **run)


def _open(options: QuantifyOptions, jobs: int) -> Step:
    return case_step(
        "quantify",
        lambda scan, folder, progress: quantify_case(scan, folder, options, progress=progress),
        lambda scan: {"masks": [scan.lungs, scan.infiltrate, scan.lobes]},
        shares={"reading": 30, "measuring": 10, WRITING: 50, PAGE: 10},
        options=without_files(options),
    )


def quantify_case(
    scan: ScanRef, folder: Path, options: QuantifyOptions | None = None, *, progress: Progress = silent
) -> CaseResult:
    """Read a scan and its masks, measure and write; `report.json` comes last.

    Raises:
        PneumoscopeError: as readers and writers say; `InputError` when a mask is missing.
    """
    options = options or QuantifyOptions()
    started = time.perf_counter()
    (folder / REPORT_FILE).unlink(missing_ok=True)
    progress("reading", 0, 1)
    volume = read_listed(scan, options.intensity)
    given = read_given(volume, with_masks([scan], options)[0], options.threshold)
    lungs, infiltrate, lobes = given.lungs, given.infiltrate, given.lobes
    if lungs is None or infiltrate is None:
        raise InputError(f"{scan.case} needs a lung mask and an infiltrate mask; give both")
    seconds = {"read": time.perf_counter() - started}
    started = time.perf_counter()
    progress("measuring", 0, 1)
    severity = assess(volume, lungs, infiltrate, lobes=lobes)
    seconds["measure"] = time.perf_counter() - started
    findings = (*scan.findings, *given.findings)
    content = CaseContent(volume=volume, lungs=lungs, infiltrate=infiltrate, severity=severity, findings=findings)
    return write_measured(scan, folder, content, options, seconds, progress)
