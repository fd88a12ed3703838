"""MIDRC-RICORD-1a: 120 COVID-19 chest CTs as DICOM, and the contours that readers drew on them (MD.ai's JSON)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, LabelledScan, make_case
from pneumoscope.datasets.formats.layout import refuse_links_out, require_folder
from pneumoscope.datasets.formats.mdai import Drawing, Export, read_mdai
from pneumoscope.errors import DatasetError, Finding
from pneumoscope.geometry import Grid
from pneumoscope.io.dicom.search import ImageInfo, list_images
from pneumoscope.volume import INFILTRATE_LABEL, Mask, Volume

SUBJECT = re.compile(r"MIDRC-RICORD-1A-(\d+)-\d+", re.IGNORECASE)
ANNOTATIONS = re.compile(r"MIDRC-RICORD-1a.*annotation.*\.json", re.IGNORECASE)
_ROOT_NAMES = re.compile(r"MIDRC-RICORD-1A.*|manifest-\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """One CT series on disk."""

    # identify it; never printed
    uid: str
    study_uid: str
    patient: str  # ``MIDRC-RICORD-1A-<site>-<number>``, or a hash of the exam where neither folder nor header tells
    site: str  # the number of the site, or ``site unknown``
    images: tuple[ImageInfo, ...]  # its images, in order of file name

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all its files."""
        return Path(os.path.commonpath([image.file.parent for image in self.images]))


@dataclass(frozen=True)
class Survey:
    """What a copy holds of the set."""

    annotations: Path  # the file of the drawings
    export: Export  # what it says
    series: Mapping[str, Series]  # CT series on disk, by UID

    @property
    def missing(self) -> tuple[str, ...]:
        """Series with drawings that are not on disk: what a half download lacks."""
        return tuple(uid for uid in self.export.drawings if uid not in self.series)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What a case of this copy should say of the whole."""
        missing, known = len(self.missing), len(self.export.drawings)
        if not missing:
            return ()
        text = f"{missing} of the {known} annotated series of this dataset are not in the folder"
        return (Finding("IN-SET-117", text, "info"),)


def survey(root: str | Path, annotations: str | Path | None = None) -> Survey:
    """Look through a copy without opening a pixel; tens of seconds for the whole set.

    Raises:
        DatasetError: no folder, no CT, no annotations, or several that differ.
    """
    folder = Path(root)
    require_folder(folder, "MIDRC-RICORD-1A as TCIA gives it, with its annotations")
    refuse_links_out(folder)
    file = Path(annotations) if annotations is not None else find_annotations(folder)
    export = read_mdai(file)
    index = list_images(folder, subjects=SUBJECT.pattern)
    by_series: dict[str, list[ImageInfo]] = {}
    for image in index.images:
        by_series.setdefault(image.series_uid, []).append(image)
    by_series.pop("", None)
    if not by_series:
        raise DatasetError(
            f"holds no CT image ({index.damaged} damaged, {index.other} other files; links to folders are not "
            "followed); expected MIDRC-RICORD-1A as TCIA gives it",
            path=folder,
        )
    series = {uid: _series(uid, images) for uid, images in by_series.items()}
    return Survey(file, export, series)


def find_annotations(folder: Path) -> Path:
    """The annotation file in the folder, two levels below it, or beside it.

    Raises:
        DatasetError: none, or several that say different things.
    """
    places = [folder, *sorted(p for p in folder.glob("*") if p.is_dir())]
    above = folder
    while _ROOT_NAMES.fullmatch(above.name) and above.parent != above:
        above = above.parent
        places.append(above)
    found = [p for place in places for p in sorted(place.glob("*.json")) if ANNOTATIONS.fullmatch(p.name)]
    if not found:
        raise DatasetError(
            "has no annotations: expected MIDRC-RICORD-1a_annotations_labelgroup_all_2020-Dec-8.json in it or beside "
            "it; fetch it from the dataset's page",
            path=folder,
        )
    if len({p.read_bytes() for p in found}) > 1:
        names = ", ".join(sorted(p.name for p in found))
        raise DatasetError(f"has annotation files that differ ({names}); keep the one to be used", path=folder)
    return min(found, key=lambda p: (len(p.name), p.name))


def _series(uid: str, images: list[ImageInfo]) -> Series:
    study = images[0].study_uid
    subject = next((part for part in reversed(images[0].file.parts) if SUBJECT.fullmatch(part)), images[0].subject)
    match = SUBJECT.fullmatch(subject.upper())
    if match:
        return Series(uid, study, match[0], match[1], tuple(images))
    from pneumoscope.io.dicom.deidentify import case_name

    return Series(uid, study, case_name(study or uid), "site unknown", tuple(images))


INFILTRATE_NAMES = frozenset({"infectious opacity", "infectious tib/micronodules"})
"""Labels that mean infiltrate, in lower case."""

UNION, MAJORITY = "union", "majority"
OFF_PLACE = 0.25  # A drawing belongs to a slice whose place differs by less than this share of a slice distance


def read_ricord_cases(
    root: str | Path,
    *,
    readers: str = UNION,
    annotations: str | Path | None = None,
    unannotated: bool = False,
    fill_gaps: bool = False,
) -> list[Case]:
    """The annotated series as cases, by patient and series.

    Args:
        root: the folder as TCIA or MD.ai lays it out, or any folder above.
        readers: ``union`` of all readers of a series, ``majority`` (pixels drawn by more than half of them), or the id
            of one reader; series on which that one did not draw are left out.
        annotations: the JSON, when it does not lie in or beside `root`.
        unannotated: list series without drawings as well; they have no infiltrate mask.
        fill_gaps: interpolate single missing slices (see `pneumoscope.io.dicom.read.read_dicom`); series with
            such gaps are refused otherwise, when they are loaded.

    Raises:
        DatasetError: no CT, no annotations, several that differ, an unknown reader, or none of the annotated series.
    """
    found = survey(root, annotations)
    if readers not in (UNION, MAJORITY, *found.export.readers):
        known = ", ".join(reader for reader in found.export.readers if reader) or "none"
        raise DatasetError(f"has no reader {readers!r}; expected union, majority or one of {known}", path=root)
    names = _case_names(list(found.series.values()))
    cases = []
    for uid, series in found.series.items():
        drawn = found.export.drawings.get(uid, ())
        if readers not in (UNION, MAJORITY):
            drawn = tuple(drawing for drawing in drawn if drawing.reader == readers)
        if drawn or unannotated:
            load = partial(
                load_series,
                series,
                drawn,
                names[uid],
                majority=readers == MAJORITY,
                fill_gaps=fill_gaps,
                notes=found.notes,
            )
            cases.append(make_case("ricord", names[uid], load, patient=series.patient, source=series.site))
    if not cases:
        raise DatasetError(
            f"holds {len(found.series)} CT series and none of the {len(found.export.drawings)} that are annotated; "
            "fetch the images and the annotations of RICORD 1a together",
            path=root,
        )
    return sorted(cases, key=lambda case: case.case)


def load_series(
    series: Series,
    drawings: Sequence[Drawing],
    case: str,
    *,
    majority: bool = False,
    fill_gaps: bool = False,
    notes: tuple[Finding, ...] = (),
) -> LabelledScan:
    """The scan with the infiltrate drawn on it; without drawings it has no mask (nobody looked).

    `notes` are added to its findings; for the others see `read_ricord_cases`.

    Raises:
        ReadError: the series must not be read as a chest CT (missing or uneven slices, not in HU, damaged).
    """
    from pneumoscope.io.dicom.read import read_dicom
    from pneumoscope.io.intensity import require_hu

    volume = read_dicom(series.folder, series=series.uid, case=case, fill_gaps=fill_gaps)
    require_hu(volume.hu, family="IN-DCM", path=case)
    volume = volume.with_findings(*notes, *_axial(series))
    if not drawings:
        return LabelledScan(volume)
    labels, findings = draw(volume, series, drawings, majority=majority)
    return LabelledScan(volume.with_findings(*findings), None, labels)


def draw(
    volume: Volume, series: Series, drawings: Sequence[Drawing], *, majority: bool = False
) -> tuple[Mask, list[Finding]]:
    """Drawings as a mask on the grid of their series.

    Each drawing goes to the slice at the place its image has, so that the order of files does not matter and an image
    that is there twice counts once. Overlapping drawings of one reader are joined.

    Returns:
        The mask, and what could not be used.
    """
    places = _places(volume.native, series.images)
    columns, rows, slices = volume.native.shape
    wanted = [drawing for drawing in drawings if drawing.label.lower() in INFILTRATE_NAMES]
    problems: Counter[str] = Counter()
    by_slice: dict[int, dict[str, NDArray[np.bool_]]] = {}
    for drawing in wanted:
        k = places.get(drawing.image_uid)
        if k is None:
            problems["on images that the series does not hold"] += 1
            continue
        made = drawing.mask((rows, columns))
        if isinstance(made, str):
            problems[made] += 1
            continue
        mine = by_slice.setdefault(k, {})
        mine[drawing.reader] = mine[drawing.reader] | made if drawing.reader in mine else made
    needed = len({drawing.reader for drawing in drawings}) // 2 + 1 if majority else 1
    labels = np.zeros((columns, rows, slices), np.uint8)
    for k, masks in by_slice.items():
        labels[:, :, k] = (np.sum(list(masks.values()), axis=0, dtype=np.int32) >= needed).T
    return Mask.from_native(labels, volume.native, INFILTRATE_LABEL), _findings(drawings, wanted, problems)


def _findings(drawings: Sequence[Drawing], wanted: Sequence[Drawing], problems: Counter[str]) -> list[Finding]:
    findings = []
    for what, count in problems.items():
        code = "IN-SET-111" if what.startswith("on images") else "IN-SET-112"
        findings.append(Finding(code, f"{count} of {len(wanted)} drawings of infiltrate left out: {what}"))
    boxes = sum(drawing.mode == "bbox" for drawing in wanted)
    if boxes:
        findings.append(Finding("IN-SET-113", f"{boxes} drawings are boxes; they were filled whole"))
    others = Counter(d.label or "without a name" for d in drawings if d.label.lower() not in INFILTRATE_NAMES)
    if others:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
        findings.append(Finding("IN-SET-114", f"drawings of other things were not used: {listed}", "info"))
    readers = {drawing.reader for drawing in drawings}
    if len(readers) > 1:
        findings.append(Finding("IN-SET-115", f"{len(readers)} readers annotated this series", "info"))
    return findings


def _places(native: Grid, images: Sequence[ImageInfo]) -> dict[str, int]:
    """Slice index k of each image along the series' own grid; images that lie elsewhere are left out."""
    places = {}
    for image in images:
        if image.position_mm is None:
            continue
        x, y, z = image.position_mm
        i, j, k = native.index((-x, -y, z))
        nearest = round(float(k))
        if max(abs(i), abs(j), abs(k - nearest)) < OFF_PLACE and 0 <= nearest < native.shape[2]:
            places[image.image_uid] = nearest
    return places


def _axial(series: Series) -> tuple[Finding, ...]:
    normal = next((image.normal for image in series.images if image.normal is not None), None)
    if normal is None or abs(normal[2]) >= 0.7:
        return ()
    return (Finding("IN-SET-116", "the series is not axial; slices are still turned to the patient's axes"),)


def _case_names(series: Sequence[Series]) -> dict[str, str]:
    """Patient and the last five digits of the series UID (as TCIA names folders), more where they repeat."""
    names: dict[str, str] = {}
    for digits in (5, 10, 20, 64):
        missing = [one for one in series if one.uid not in names]
        made = {one.uid: f"{one.patient}_{re.sub(r'[^0-9]', '', one.uid)[-digits:]}" for one in missing}
        count = Counter(made.values())
        names |= {uid: name for uid, name in made.items() if count[name] == 1}
    return names
