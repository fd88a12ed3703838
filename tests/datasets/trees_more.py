"""Small copies of RICORD 1a and of the generic layouts, with the truth they were made from.

`trees.TREES` takes its plain trees from `TREES_MORE` here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from skimage.measure import find_contours

from pneumoscope.datasets.case import LabelledScan
from pneumoscope.datasets.phantom.folder import PhantomScan, scan_patient
from pneumoscope.geometry import Grid
from pneumoscope.io.write import write_dicom_series, write_image
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import Mask, Volume, array_to_native

SEED = 11
N_PATIENTS = 4
"""Patients 0 .. 3 of each site are used in turn; 2 and 3 carry planted annotation faults."""


def patient(site: str, number: int) -> PhantomScan:
    """A tiny phantom, the same objects all through the session; do not change its arrays."""
    return _made(site, number % N_PATIENTS)


@cache
def _made(site: str, number: int) -> PhantomScan:
    return scan_patient(site, number, seed=SEED, size="tiny")


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
    """A phantom patient as DICOM datasets with its exact infiltrate."""
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


# --- layouts of other tools -----------------------------------------------------------------------------------------

REGIONS = {
    "background": 0, "right lung": [1, 3, 4], "left lung": [2, 5, 6], "ground-glass": [3, 5, 7],
    "consolidation": [4, 6, 8],
}  # fmt: skip
KINDS = {"background": 0, "ground-glass": 1, "consolidation": 2}


def in_regions(scan: LabelledScan) -> np.ndarray:
    """Lungs and infiltrate of a scan in one array by `REGIONS`; nothing is lost."""
    code = np.zeros((3, 3), np.uint8)  # lung, infiltrate
    code[1], code[2], code[0] = (1, 3, 4), (2, 5, 6), (0, 7, 8)
    return code[scan.lungs.labels, scan.infiltrate.labels]


def combined(scan: LabelledScan) -> np.ndarray:
    """1 = left lung, 2 = right lung, 3 = infiltrate, as the combined masks of COVID-19-CT-Seg."""
    labels = np.array([0, 2, 1], np.uint8)[scan.lungs.labels]
    labels[scan.infiltrate.any] = 3
    return labels


def scan_of(case: str) -> LabelledScan:
    """The phantom behind a case ``..._<n>`` of the trees below."""
    return patient("A", int(case.rpartition("_")[2])).scan


def patient_mask(site: str, number: int) -> Mask:
    """What the reader of a phantom site drew."""
    return patient(site, number).scan.infiltrate


def save(path: Path, array: np.ndarray, native: Grid, header: Grid | None = None) -> Path:
    """Write an array (i, j, k) RAS+ in the voxel order of `native` as the suffix says; with another header if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".nrrd", ".mha"):
        write_image(array, native, path)
    else:
        image = nibabel.Nifti1Image(array_to_native(np.asarray(array), native), (header or native).affine)
        image.to_filename(path)
    return path


def make_nnunet(root: Path, *, variant: str = "plain", cases: int = 3) -> Path:
    """``Dataset501_Chest`` with `cases` training scans and one test scan.

    Variants: ``plain`` (v2, regions), ``v1`` (Task501, labels the other way round), ``nrrd``, ``nii`` (unpacked),
    ``kinds`` (infiltrate only), ``channels`` (a second channel 0000 that is no CT), ``listed`` (files listed in
    dataset.json).
    """
    folder = root / ("Task501_Chest" if variant == "v1" else "Dataset501_Chest")
    ending = {"nrrd": ".nrrd", "nii": ".nii"}.get(variant, ".nii.gz")
    number = 1 if variant == "channels" else 0
    listed = {}
    for n in range(cases + 1):
        case, part = f"chest_{n:03d}", "Tr" if n < cases else "Ts"
        scan = scan_of(case)
        native = scan.volume.native
        image = save(folder / f"images{part}" / f"{case}_{number:04d}{ending}", scan.volume.hu, native)
        if variant == "channels":
            save(folder / f"images{part}" / f"{case}_0000{ending}", scan.volume.hu * 0 + 3, native)
        if part == "Tr":
            drawn = scan.infiltrate.labels if variant in ("kinds", "v1") else in_regions(scan)
            label = save(folder / "labelsTr" / f"{case}{ending}", drawn, native)
            listed[case] = {"images": [str(image.relative_to(folder))], "label": str(label.relative_to(folder))}
    labels: dict[str, Any] = KINDS if variant in ("kinds", "v1") else REGIONS
    channels = {"0": "PET", "1": "CT"} if variant == "channels" else {"0": "CT"}
    described = {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ending}
    if variant == "nii":
        described["file_ending"] = ".nii.gz"
    if variant == "listed":
        described["dataset"] = listed
    if variant == "v1":
        described = {
            "name": "Chest", "modality": {"0": "CT"}, "labels": {str(v): k for k, v in KINDS.items()},
            "numTraining": cases, "numTest": 1, "tensorImageSize": "4D",
            "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in listed],
            "test": [f"./imagesTs/chest_{cases:03d}.nii.gz"],
        }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    return root


def make_decathlon(root: Path, *, cases: int = 3) -> Path:
    """``Task01_Chest`` as the Decathlon's tars unpack on a Mac: with ``._`` files, one of them in the list."""
    folder = root / "Task01_Chest"
    training = []
    for n in range(cases):
        case = f"chest_{n:03d}"
        scan = scan_of(case)
        save(folder / "imagesTr" / f"{case}.nii.gz", scan.volume.hu, scan.volume.native)
        save(folder / "labelsTr" / f"{case}.nii.gz", scan.infiltrate.labels, scan.volume.native)
        (folder / "imagesTr" / f"._{case}.nii.gz").write_bytes(b"Mac OS X")
        training.append({"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"})
    training.append({"image": "./imagesTr/._chest_000.nii.gz", "label": "./labelsTr/._chest_000.nii.gz"})
    test = scan_of(f"chest_{cases:03d}").volume
    save(folder / "imagesTs" / f"chest_{cases:03d}.nii.gz", test.hu, test.native)
    described = {
        "name": "Chest", "modality": {"0": "CT"}, "labels": {str(v): k for k, v in KINDS.items()},
        "numTraining": cases, "numTest": 1, "training": training, "test": [f"./imagesTs/chest_{cases:03d}.nii.gz"],
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    return root


def make_miscnn(root: Path, *, cases: int = 3, style: str = "nii.gz") -> Path:
    """``chest_NNN/imaging.nii.gz`` and ``segmentation.nii.gz`` with the labels of covid19.MIScnn."""
    for n in range(cases):
        folder = root / f"chest_{n:03d}"
        scan = scan_of(folder.name)
        for name, array in (("imaging", scan.volume.hu), ("segmentation", combined(scan))):
            path = folder / f"{name}.nii.gz" / f"{name}.nii" if style == "folder" else folder / f"{name}.{style}"
            save(path, array, scan.volume.native)
    return root


def make_ricord(root: Path) -> Path:
    """The plain RICORD tree, for the contract of all readers."""
    ricord(root / "data")
    return root / "data"


# --- 8-bit slices ---------------------------------------------------------------------------------------------------


def make_slices(root: Path) -> Path:
    """``coronacases``, ``radiopaedia`` (upside down) and ``medseg`` (transposed, two sizes, kinds, no lungs)."""
    for source, case, number in (
        ("coronacases", "coronacases_001", 0), ("coronacases", "coronacases_002", 1),
        ("radiopaedia", "radiopaedia_10_85902_1", 2), ("radiopaedia", "radiopaedia_10_85902_3", 3),
    ):  # fmt: skip
        ct, lungs, drawn = pictures(patient("B", number).scan)
        turn = -1 if source == "radiopaedia" else 1
        for k in range(len(ct)):
            for kind, plane in (("ct", ct[k]), ("lung", 255 * (lungs[k] > 0)), ("infection", 255 * (drawn[k] > 0))):
                save_picture(plane[::turn], root / source / case / kind / f"{k:03d}.png")
    for number in range(2):
        ct, _, drawn = pictures(patient("A", number).scan)
        k = len(ct) // 2
        cut = slice(number, None)
        save_picture(ct[k][cut].T, root / "medseg" / "ct" / f"{number}.png")
        save_picture(255 * (drawn[k] > 0)[cut].T, root / "medseg" / "infection" / f"{number}.png")
        save_picture(drawn[k][cut].T, root / "medseg" / "classes" / f"{number}.png")
    return root


def pictures(scan: LabelledScan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey values, lungs and infiltrate in the house view, (k, h, w)."""
    ct = np.clip((to_slices(scan.volume.hu) + 1000) / 1400 * 255, 0, 255).astype(np.uint8)
    return ct, to_slices(scan.lungs.labels), to_slices(scan.infiltrate.labels)


def save_picture(plane: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(plane).astype(np.uint8)).save(path)


TREES_MORE: dict[str, Callable[[Path], Path]] = {
    "ricord": make_ricord, "nnunet": make_nnunet, "decathlon": make_decathlon, "miscnn": make_miscnn,
    "slices": make_slices,
}  # fmt: skip


def _expected_nnunet(case: str) -> LabelledScan:
    scan = scan_of(case)
    return LabelledScan(scan.volume) if case.endswith("3") else scan


def _expected_decathlon(case: str) -> LabelledScan:
    scan = scan_of(case)
    return LabelledScan(scan.volume, None, None if case.endswith("3") else scan.infiltrate)


EXPECTED_MORE: dict[str, Callable[[str], LabelledScan]] = {"nnunet": _expected_nnunet, "decathlon": _expected_decathlon}
