"""A dataset into the layout of other tools: nnU-Net's raw data, folders of slices, or NIfTI files with a manifest.

Scans are written as the reader gives them: in Hounsfield units, on the grid and in the voxel order of the file they
came from. Volumes of whole Hounsfield units are stored as int16, others as float32; both come back bit for bit.

Everything is made in a hidden folder inside the output folder and moved to its place at the end, the file that readers
look for last: a killed run leaves nothing that looks like a dataset.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pneumoscope._version import __version__
from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.options import ConvertOptions
from pneumoscope.datasets.registry import read_dataset
from pneumoscope.datasets.slices import TABLE, TABLE_COLUMNS, write_case_slices, write_description
from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.io.files import prepare_folder, read_json, write_csv, write_json
from pneumoscope.io.kinds import case_name
from pneumoscope.io.read import read_mask
from pneumoscope.io.scans import MANIFEST_COLUMNS
from pneumoscope.io.write import write_image, write_mask, write_volume
from pneumoscope.jobs.lock import LOCK_FILE, locks
from pneumoscope.jobs.machines import current
from pneumoscope.jobs.run import Job, JobRun, Outcome, Step
from pneumoscope.options import made_of
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, Mask, Volume

SOURCES = "sources.csv"
SOURCE_COLUMNS = ("case", "part", "dataset", "patient", "source", "date", "licence", "citation", "values", "stored")
NAMED_LABELS = ("nnunet", "decathlon", "miscnn")  # Layouts whose labels are the user's own
NOT_HU = "IN-SET-131"  # The finding of volumes that hold grey values of pictures


@dataclass
class Run:
    """One conversion under way."""

    work: Path  # the folder that is written
    # of ``sources.csv``; ``drawn`` tells whether somebody annotated it
    rows: list[dict[str, Any]] = field(default_factory=list)
    # what the layout's own tables get
    entries: list[dict[str, Any]] = field(default_factory=list)
    slices: list[list[Any]] = field(default_factory=list)
    # label files that tell ground-glass and consolidation apart, in layouts with one list of labels
    kinds: list[str] = field(default_factory=list)
    plain: bool = False  # whether some mask does not

    def facts(self) -> dict[str, Any]:
        """As JSON values, but for the folder."""
        return {name: value for name, value in vars(self).items() if name != "work"}

    def add(self, facts: Mapping[str, Any]) -> None:
        """What `facts` gave for a part of the cases."""
        for name, value in facts.items():
            setattr(self, name, getattr(self, name) + value if name != "plain" else self.plain or value)


@dataclass(frozen=True)
class Layout:
    """How one layout is written."""

    case: Callable[[Run, Case, LabelledScan, str], None]  # writes one case
    finish: Callable[[Run, Mapping[int, str]], None]  # writes what describes them all
    last: str  # the file that readers look for; moved into place after everything else


def _nnunet_case(run: Run, case: Case, scan: LabelledScan, name: str) -> None:
    part = "Tr" if scan.infiltrate is not None else "Ts"
    stored = write_values(scan.volume, run.work / f"images{part}" / f"{name}_0000.nii.gz")
    _write_masks(run, scan, {"lungs": f"lungs{part}", "infiltrate": f"labels{part}"}, name)
    _note(run, case, scan, name, stored, part)


def _nnunet_finish(run: Run, labels: Mapping[int, str]) -> None:
    grey = any(row["values"] != "HU" for row in run.rows)
    for wanted in ("imagesTr", "labelsTr"):
        (run.work / wanted).mkdir(exist_ok=True)
    described = {
        "channel_names": {"0": "grey" if grey else "CT"},
        "labels": {"background": 0, **{name: label for label, name in sorted(labels.items())}},
        "numTraining": sum(row["part"] == "Tr" for row in run.rows),
        "file_ending": ".nii.gz",
        "name": ", ".join(sorted({row["dataset"] for row in run.rows})),
        "licence": "; ".join(sorted({row["licence"] for row in run.rows})),
        "reference": "; ".join(sorted({row["citation"] for row in run.rows})),
        "converted_by": f"pneumoscope {__version__}",
    }
    write_json(run.work / "dataset.json", described)


def _slices_case(run: Run, case: Case, scan: LabelledScan, name: str) -> None:
    _require_hu(scan.volume)
    entry, rows = write_case_slices(case, scan, name, run.work)
    run.entries.append(entry)
    run.slices.extend(rows)
    if scan.infiltrate is not None:
        run.plain |= 2 not in scan.infiltrate.names
    _note(run, case, scan, name, "uint16 HU + 1024", "")


def _slices_finish(run: Run, labels: Mapping[int, str]) -> None:
    write_csv(run.work / TABLE, TABLE_COLUMNS, run.slices)
    write_description(run.work, run.entries)


def _manifest_case(run: Run, case: Case, scan: LabelledScan, name: str) -> None:
    _require_hu(scan.volume)
    stored = write_values(scan.volume, run.work / "images" / f"{name}.nii.gz")
    masks = _write_masks(run, scan, {"lungs": "lungs", "infiltrate": "infiltrate"}, name, each_its_own=True)
    about = {what: getattr(case, what) for what in ("patient", "date", "source")}
    run.entries.append({"case": name, "image": f"images/{name}.nii.gz", **masks, **about})
    _note(run, case, scan, name, stored, "")


def _manifest_finish(run: Run, labels: Mapping[int, str]) -> None:
    write_csv(run.work / "manifest.csv", MANIFEST_COLUMNS, run.entries)


LAYOUTS: Mapping[str, Layout] = {
    "nnunet": Layout(_nnunet_case, _nnunet_finish, "dataset.json"),
    "slices": Layout(_slices_case, _slices_finish, "slices.json"),
    "manifest": Layout(_manifest_case, _manifest_finish, "manifest.csv"),
}


def write_values(volume: Volume, path: Path) -> str:
    """Write a scan so that it comes back bit for bit; gives the type it is stored in."""
    planes = (volume.hu[:, :, k] for k in range(volume.grid.shape[2]))
    if all(((p == np.rint(p)) & (np.abs(p) <= 32767)).all() for p in planes):
        write_volume(volume, path)
        return "int16"
    write_image(volume.hu, volume.native, path)
    return "float32"


def _write_masks(
    run: Run, scan: LabelledScan, folders: Mapping[str, str], name: str, *, each_its_own: bool = False
) -> dict[str, str]:
    """Write the masks that there are; gives their paths below the output folder."""
    written = {}
    for what, mask in (("lungs", scan.lungs), ("infiltrate", scan.infiltrate)):
        if mask is None:
            continue
        written[what] = f"{folders[what]}/{name}.nii.gz"
        write_mask(mask, run.work / written[what], scan.volume.native)
        if what == "infiltrate":
            run.plain |= 2 not in mask.names
            if 2 in mask.names and not each_its_own:
                run.kinds.append(str(run.work / written[what]))
    return written


def one_meaning(run: Run) -> Mapping[int, str]:
    """The labels of all infiltrate masks; where some do not tell kinds apart, none does in a layout with one list."""
    if not run.plain:
        return INFILTRATE_LABELS if any(row["drawn"] for row in run.rows) else INFILTRATE_LABEL
    for path in run.kinds:
        mask = read_mask(path)
        write_mask(Mask(mask.any.astype(np.uint8), mask.grid, INFILTRATE_LABEL), path, mask.native or mask.grid)
    return INFILTRATE_LABEL


def _note(run: Run, case: Case, scan: LabelledScan, name: str, stored: str, part: str) -> None:
    about = {what: getattr(case, what) for what in SOURCE_COLUMNS[2:8]}
    values = "grey" if _is_grey(scan.volume) else "HU"
    drawn = scan.infiltrate is not None
    run.rows.append({"case": name, "part": part, **about, "values": values, "stored": stored, "drawn": drawn})


def _is_grey(volume: Volume) -> bool:
    return any(finding.code == NOT_HU for finding in volume.findings)


def _require_hu(volume: Volume) -> None:
    if _is_grey(volume):
        raise InputError(
            f"{volume.case} holds 8-bit pictures and no Hounsfield units, which this layout promises; "
            "convert it to nnunet, where the channel is called grey, or use the pictures as they are"
        )


MARKER = "convert.json"


@dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: Path  # where
    to: str  # the layout
    cases: tuple[str, ...]  # names, in order
    without_infiltrate: tuple[str, ...]  # those that nobody annotated
    # of the infiltrate masks, number -> name; plain infiltrate where some masks do not tell kinds apart
    labels: Mapping[int, str]
    failed: Mapping[str, str]  # case -> why it could not be read; the others are written

    def __repr__(self) -> str:
        return f"Converted({self.to!r}, {len(self.cases)} cases, {len(self.failed)} failed, {str(self.folder)!r})"


def convert_dataset(
    name: str, root: str | Path, out: str | Path, *, overwrite: bool = False, progress: Progress = silent,
    **options: Any,
) -> Converted:  # fmt: skip
    """Read a dataset and write it in another layout, one case in memory at a time.

    Args:
        out: the folder to write; new, empty, or one that an earlier conversion made.
        overwrite: replace an earlier conversion; nothing else in the folder is touched.
        options: fields of `pneumoscope.datasets.options.ConvertOptions`: to, labels.

    Raises:
        InputError: an unknown layout, an output folder in use or inside the dataset, a set that cannot be read, or
            one of which no case can be read.
    """
    made = made_of(ConvertOptions, options)
    if made.labels and name not in NAMED_LABELS:
        raise InputError(f"{name} has labels of its own; --label is for {', '.join(NAMED_LABELS)} only")
    if name != "manifest" and Path(out).resolve().is_relative_to(Path(root).resolve()):
        raise InputError("lies in the dataset's own folder; choose another place", path=out)
    cases = read_dataset(name, root, **({"labels": made.labels} if made.labels else {}))
    return convert_cases(cases, out, made.to, overwrite=overwrite, progress=progress)


def convert_cases(
    cases: Sequence[Case], out: str | Path, to: str, *, overwrite: bool = False, progress: Progress = silent
) -> Converted:
    """As `convert_dataset`, for cases that are there already."""
    names = file_names(cases)
    return _convert(cases, names, _prepared(Path(out), overwrite), to, progress)


@locks("folder")
def _convert(cases: Sequence[Case], names: Sequence[str], folder: Path, to: str, progress: Progress) -> Converted:
    layout = LAYOUTS[to]
    work = folder / f".tmp-{os.getpid()}-convert"
    work.mkdir()
    try:
        run, failed = Run(work), {}
        jobs = [Job(name, (case, name), work / name, marked=False) for case, name in zip(cases, names, strict=True)]
        opener = partial(_open, to, work)
        outcomes = JobRun(
            jobs, opener(1), lambda *_: None, opener=opener, side_by_side=current().jobs or 1, strict=True,
            what=f"convert to {to}", progress=progress,
        ).run()  # fmt: skip
        for outcome in outcomes:
            if why := outcome.facts.get("failed"):
                failed[outcome.name] = why
            else:
                run.add(outcome.facts)
        if not run.rows:
            raise InputError(f"no case could be read; the first: {next(iter(failed.values()), 'there is none')}")
        labels = one_meaning(run)
        layout.finish(run, labels)
        write_csv(work / SOURCES, SOURCE_COLUMNS, run.rows)
        _put_in_place(work, folder, layout.last, to)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    undrawn = tuple(row["case"] for row in run.rows if not row["drawn"])
    return Converted(folder, to, tuple(row["case"] for row in run.rows), undrawn, labels, failed)


def _open(to: str, work: Path, side_by_side: int) -> Step:
    """Write one case after the other, in any process; what each reports is merged at the end."""

    def write(job: Job, progress: Progress) -> Outcome:
        case, name = job.item
        try:
            scan = case.load()
        except PneumoscopeError as problem:
            return Outcome(job.name, facts={"failed": str(problem)})
        run = Run(work)
        LAYOUTS[to].case(run, case, scan, name)
        return Outcome(job.name, facts=run.facts())

    return Step("convert", 1, work=write)


def file_names(cases: Sequence[Case]) -> list[str]:
    """Safe, different names for the cases."""
    names = [case_name(case.case) for case in cases]
    folded = [name.casefold() for name in names]
    twice = [name for name, key in zip(names, folded, strict=True) if folded.count(key) > 1]
    if twice:
        raise InputError(f"two cases would both be written as {twice[0]!r}; rename one")
    return names


def _prepared(folder: Path, overwrite: bool) -> Path:
    """The output folder: new, empty, or an earlier conversion that may be replaced or was not finished."""
    held = _held(folder)
    if held is None and folder.is_dir():
        others = [p.name for p in folder.iterdir() if not p.name.startswith((".tmp-", LOCK_FILE))]
        if others:
            raise InputError(
                f"is not empty ({', '.join(sorted(others)[:3])}) and no conversion; choose a new folder", path=folder
            )
    unfinished = held is not None and not held.get("finished")
    for left in folder.glob(".tmp-*-convert"):
        owner = left.name.split("-")[1]
        if not owner.isdecimal() or int(owner) == os.getpid() or not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    prepare_folder(folder, marker=MARKER, overwrite=overwrite or unfinished)
    return folder


def _held(folder: Path) -> dict[str, Any] | None:
    try:
        held: dict[str, Any] = read_json(folder / MARKER)
    except InputError:
        return None
    return held if isinstance(held.get("entries"), list) else None


def _put_in_place(work: Path, folder: Path, last: str, to: str) -> None:
    """Move everything out of the hidden folder; what an earlier conversion left goes first."""
    made = sorted(p.name for p in work.iterdir())
    earlier = [str(name) for name in (_held(folder) or {}).get("entries", [])]
    mine = sorted({name for name in (*made, *earlier) if Path(name).name == name and name not in ("", ".", "..")})
    write_json(folder / MARKER, {"to": to, "finished": False, "entries": mine})
    for name in sorted(mine, key=lambda name: name != last):  # the description first: no reader takes what is going
        _remove(folder / name)
    for name in sorted(made, key=lambda name: name == last):
        (work / name).replace(folder / name)
    write_json(folder / MARKER, {"to": to, "finished": True, "entries": made})


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
