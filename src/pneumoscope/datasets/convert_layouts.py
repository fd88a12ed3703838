"""The layouts that a data set can be converted to: how a case is written, and what describes them all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import write_json, write_text
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, Mask, Volume

SOURCES = "sources.csv"
SOURCE_COLUMNS = (
    "case", "part", "dataset", "patient", "source", "date", "licence", "citation", "values", "stored",
)  # fmt: skip
MANIFEST_COLUMNS = ("case", "image", "lungs", "infiltrate", "patient", "date", "source")
NOT_HU = "IN-SET-131"
"""The finding of volumes that hold grey values of pictures."""


@dataclass
class Run:
    """One conversion under way.

    Attributes:
        work: the folder that is written.
        rows: of ``sources.csv``; ``drawn`` tells whether somebody drew.
        entries, slices: what the layout's own tables get.
        kinds: label files that tell ground-glass and consolidation apart, in layouts with one list of labels.
        plain: whether some mask does not.
    """

    work: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    slices: list[list[Any]] = field(default_factory=list)
    kinds: list[tuple[Path, Grid]] = field(default_factory=list)
    plain: bool = False


@dataclass(frozen=True)
class Layout:
    """How one layout is written.

    Attributes:
        case: writes one case.
        finish: writes what describes them all.
        last: the file that readers look for; moved into place after everything else.
    """

    case: Callable[[Run, Case, LabelledScan, str], None]
    finish: Callable[[Run, Mapping[int, str]], None]
    last: str


def _nnunet_case(run: Run, case: Case, scan: LabelledScan, name: str) -> None:
    part = "Tr" if scan.infiltrate is not None else "Ts"
    stored = write_values(scan.volume, run.work / f"images{part}" / f"{name}_0000.nii.gz")
    _write_masks(run, scan, {"lungs": f"lungs{part}", "infiltrate": f"labels{part}"}, name)
    _note(run, case, scan, name, stored, part)


def _nnunet_finish(run: Run, labels: Mapping[int, str]) -> None:
    grey = any(row["values"] != "HU" for row in run.rows)
    for wanted in ("imagesTr", "labelsTr"):
        (run.work / wanted).mkdir(exist_ok=True)
    from pneumoscope._version import __version__

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
    from pneumoscope.datasets.formats.slice_files import write_case_slices

    _require_hu(scan.volume)
    entry, rows = write_case_slices(case, scan, name, run.work)
    run.entries.append(entry)
    run.slices.extend(rows)
    if scan.infiltrate is not None:
        run.plain |= 2 not in scan.infiltrate.names
    _note(run, case, scan, name, "uint16 HU + 1024", "")


def _slices_finish(run: Run, labels: Mapping[int, str]) -> None:
    from pneumoscope.datasets.formats.slice_files import TABLE, TABLE_COLUMNS, write_description

    write_text(run.work / TABLE, table(TABLE_COLUMNS, run.slices))
    write_description(run.work, run.entries)


def _manifest_case(run: Run, case: Case, scan: LabelledScan, name: str) -> None:
    _require_hu(scan.volume)
    stored = write_values(scan.volume, run.work / "images" / f"{name}.nii.gz")
    masks = _write_masks(run, scan, {"lungs": "lungs", "infiltrate": "infiltrate"}, name, each_its_own=True)
    run.entries.append({"case": name, "image": f"images/{name}.nii.gz", **masks, "patient": case.patient,
                        "date": case.date, "source": case.source})  # fmt: skip
    _note(run, case, scan, name, stored, "")


def _manifest_finish(run: Run, labels: Mapping[int, str]) -> None:
    rows = [[entry.get(column, "") for column in MANIFEST_COLUMNS] for entry in run.entries]
    write_text(run.work / "manifest.csv", table(MANIFEST_COLUMNS, rows))


LAYOUTS: Mapping[str, Layout] = {
    "nnunet": Layout(_nnunet_case, _nnunet_finish, "dataset.json"),
    "slices": Layout(_slices_case, _slices_finish, "slices.json"),
    "manifest": Layout(_manifest_case, _manifest_finish, "manifest.csv"),
}


def write_values(volume: Volume, path: Path) -> str:
    """Write a scan so that it comes back bit for bit; gives the type it is stored in."""
    from pneumoscope.io.write import write_image, write_volume

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
    from pneumoscope.io.write import write_mask

    written = {}
    for what, mask in (("lungs", scan.lungs), ("infiltrate", scan.infiltrate)):
        if mask is None:
            continue
        written[what] = f"{folders[what]}/{name}.nii.gz"
        write_mask(mask, run.work / written[what], scan.volume.native)
        if what == "infiltrate":
            run.plain |= 2 not in mask.names
            if 2 in mask.names and not each_its_own:
                run.kinds.append((run.work / written[what], scan.volume.native))
    return written


def one_meaning(run: Run) -> Mapping[int, str]:
    """The labels of all infiltrate masks; where some do not tell kinds apart, none does in a layout with one list."""
    if not run.plain:
        return INFILTRATE_LABELS if any(row["drawn"] for row in run.rows) else INFILTRATE_LABEL
    from pneumoscope.io.read import read_mask
    from pneumoscope.io.write import write_mask

    for path, native in run.kinds:
        mask = read_mask(path)
        write_mask(Mask(mask.any.astype(np.uint8), mask.grid, INFILTRATE_LABEL), path, native)
    return INFILTRATE_LABEL


def _note(run: Run, case: Case, scan: LabelledScan, name: str, stored: str, part: str) -> None:
    run.rows.append(
        {
            "case": name, "part": part, "dataset": case.dataset, "patient": case.patient, "source": case.source,
            "date": case.date, "licence": case.licence, "citation": case.citation,
            "values": "grey" if _is_grey(scan.volume) else "HU", "stored": stored,
            "drawn": scan.infiltrate is not None,
        }
    )  # fmt: skip


def _is_grey(volume: Volume) -> bool:
    return any(finding.code == NOT_HU for finding in volume.findings)


def _require_hu(volume: Volume) -> None:
    if _is_grey(volume):
        raise InputError(
            f"{volume.case} holds 8-bit pictures and no Hounsfield units, which this layout promises; "
            "convert it to nnunet, where the channel is called grey, or use the pictures as they are"
        )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A CSV table with a heading."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
