"""Small copies of RICORD 1a and of the generic layouts, with the truth they were made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from skimage.measure import find_contours

from pneumoscope.datasets.phantom import scan_patient
from pneumoscope.io.dicom_write import write_dicom_series
from pneumoscope.volume import Mask, Volume

SUBJECT = "MIDRC-RICORD-1A-660042-{:06d}"
ANNOTATIONS = "MIDRC-RICORD-1a_annotations_labelgroup_all_2020-Dec-8.json"
LABELS = (
    "Infectious opacity", "Infectious TIB/micronodules", "Infectious cavity", "Noninfectious nodule/mass",
    "Atelectasis", "Other noninfectious opacity",
)  # fmt: skip


@dataclass
class MadeSeries:
    """One series as made, before it is written: files in order from the feet to the head."""

    subject: str
    volume: Volume
    truth: np.ndarray  # (rows, columns, slices) as DICOM has them
    slices: list[Any]
    study: str
    series: str
    uids: list[str] = field(default_factory=list)


def made_series(number: int, scratch: Path, *, site: str = "A") -> MadeSeries:
    """A phantom patient as DICOM data sets with its exact infiltrate."""
    scan = scan_patient(site, number, seed=3, size="tiny").scan
    volume = Volume(scan.volume.hu, scan.volume.grid, scan.volume.native, f"r{number}")
    subject = SUBJECT.format(100 + number)
    files = write_dicom_series(volume, scratch / f"s{number}", seed=number, patient=subject, kernel="B31F")
    slices = [pydicom.dcmread(path) for path in files]
    shutil.rmtree(scratch)
    native = volume.grid.reorient(("L", "P", "S"))
    truth = np.transpose(Mask(scan.truth.labels, volume.grid, scan.truth.names).to_native(native) > 0, (1, 0, 2))
    uids = [str(data.SOPInstanceUID) for data in slices]
    return MadeSeries(
        subject, volume, truth, slices, str(slices[0].StudyInstanceUID), str(slices[0].SeriesInstanceUID), uids
    )


def contours(mask: np.ndarray) -> list[list[list[float]]]:
    """Outlines of a (rows, columns) mask as [x, y] pairs counted from the outer corner of the first pixel."""
    found = find_contours(np.pad(mask, 1).astype(float), 0.5)
    return [(outline[:-1, ::-1] - 0.5).tolist() for outline in found]


def annotation(made: MadeSeries, k: int | None, label: str, data: Any, **more: Any) -> dict[str, Any]:
    """One annotation as MD.ai exports it."""
    entry = {
        "id": f"A_{k}", "parentId": None, "isImported": False, "isInterpolated": False, "createdById": "U_one",
        "StudyInstanceUID": made.study, "SeriesInstanceUID": made.series,
        "SOPInstanceUID": None if k is None else made.uids[k], "frameNumber": None, "labelId": label,
        "annotationNumber": None, "height": made.truth.shape[0], "width": made.truth.shape[1], "data": data,
        "note": None, "radlexTagIds": [], "reviews": [], "groupId": "G_1",
    }  # fmt: skip
    return entry | more


def truth_annotations(made: MadeSeries, label: str = "L_10") -> list[dict[str, Any]]:
    """The exact infiltrate as contours, slice by slice, from the head down."""
    return [
        annotation(made, k, label, {"vertices": outline})
        for k in reversed(range(made.truth.shape[2]))
        for outline in contours(made.truth[:, :, k])
    ]


def export(annotations: list[dict[str, Any]], studies: list[str]) -> dict[str, Any]:
    """A whole export; every name stands in two label groups with different ids: L_1<n> and L_2<n>, exams L_90."""

    def group(number: int) -> dict[str, Any]:
        labels = [
            {
                "id": f"L_{number}{n}", "name": name, "shortName": name[:3], "color": "#ff0000", "type": "local",
                "scope": "INSTANCE", "annotationMode": "freeform", "radlexTagIds": [], "description": None,
            }
            for n, name in enumerate(LABELS)
        ]  # fmt: skip
        return {"id": f"G_{number}", "name": f"Team {number}", "type": "all", "labels": labels}

    exams = {"id": "L_90", "name": "Typical appearance", "scope": "STUDY", "annotationMode": None}
    return {
        "id": "project", "name": "RICORD", "isPrivate": False,
        "labelGroups": [group(1), group(2), {"id": "G_9", "name": "Exam", "labels": [exams]}],
        "datasets": [
            {
                "id": "D_1", "name": "1a", "studies": [{"StudyInstanceUID": uid, "number": 1} for uid in studies],
                "annotations": annotations,
            }
        ],
    }  # fmt: skip


def write_series(
    made: MadeSeries, root: Path, *, layout: str = "tcia", names: Callable[[int], str] | None = None
) -> Path:
    """The files of a series as TCIA (``1-001.dcm`` from the head down) or MD.ai lays them out; gives their folder."""
    if layout == "tcia":
        exam = f"11-20-2008-NA-NA-{made.study[-5:]}"
        folder = root / "MIDRC-RICORD-1A" / made.subject / exam / f"4.000000-NA-{made.series[-5:]}"
    else:
        folder = root / made.study / made.series
    folder.mkdir(parents=True, exist_ok=True)
    count = len(made.slices)
    for k, data in enumerate(made.slices):
        name = made.uids[k] if layout == "mdai" else f"1-{count - k:03d}"
        data.save_as(folder / f"{names(k) if names else name}.dcm", enforce_file_format=True)
    return folder


def ricord(root: Path, *, layout: str = "tcia", patients: int = 2) -> list[MadeSeries]:
    """A copy with the exact infiltrate of each patient drawn by one reader, and an exam-level label."""
    all_made = []
    annotations = []
    scratch = root.parent / ".ricord-scratch"
    top = root / "manifest-1612365584013" if layout == "tcia" else root
    for number in range(patients):
        made = made_series(number, scratch)
        write_series(made, top, layout=layout)
        annotations += truth_annotations(made, "L_10" if number % 2 else "L_20")
        annotations.append(
            annotation(made, None, "L_90", None, SeriesInstanceUID=None, height=float("nan"), width=None)
        )
        all_made.append(made)
    write_export(top / ANNOTATIONS, annotations, all_made)
    return all_made


def write_export(path: Path, annotations: list[dict[str, Any]], all_made: list[MadeSeries]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(export(annotations, [made.study for made in all_made])), encoding="utf-8")
