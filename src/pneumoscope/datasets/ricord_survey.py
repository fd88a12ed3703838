"""What a copy of RICORD 1a holds: its series by UID, and the file of the drawings. No pixel is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.datasets.layout import require_folder
from pneumoscope.datasets.links import refuse_links_out
from pneumoscope.datasets.mdai import Export, read_mdai
from pneumoscope.errors import DatasetError, Finding
from pneumoscope.io.dicom_index import ImageInfo, list_images

SUBJECT = re.compile(r"MIDRC-RICORD-1A-(\d+)-\d+", re.IGNORECASE)
ANNOTATIONS = re.compile(r"MIDRC-RICORD-1a.*annotation.*\.json", re.IGNORECASE)
_ROOT_NAMES = re.compile(r"MIDRC-RICORD-1A.*|manifest-\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """One CT series on disk.

    Attributes:
        uid, study_uid: identify it; never printed.
        patient: ``MIDRC-RICORD-1A-<site>-<number>``, or a hash of the exam where neither folder nor header tells.
        site: the number of the site, or ``site unknown``.
        images: its images, in order of file name.
    """

    uid: str
    study_uid: str
    patient: str
    site: str
    images: tuple[ImageInfo, ...]

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all its files."""
        return Path(os.path.commonpath([image.file.parent for image in self.images]))


@dataclass(frozen=True)
class Survey:
    """What a copy holds of the set.

    Attributes:
        annotations: the file of the drawings.
        export: what it says.
        series: CT series on disk, by UID.
        damaged: files that should be images and cannot be read.
    """

    annotations: Path
    export: Export
    series: Mapping[str, Series]
    damaged: int

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
        text = f"{missing} of the {known} annotated series of this data set are not in the folder"
        return (Finding("IN-SET-117", text, "info"),)

    @property
    def unannotated(self) -> tuple[str, ...]:
        """Series on disk on which nobody drew."""
        return tuple(uid for uid in self.series if uid not in self.export.drawings)


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
    return Survey(file, export, series, index.damaged)


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
            "it; fetch it from the data set's page",
            path=folder,
        )
    if len({p.read_bytes() for p in found}) > 1:
        names = ", ".join(sorted(p.name for p in found))
        raise DatasetError(f"has annotation files that differ ({names}); keep the one to be used", path=folder)
    return min(found, key=lambda p: (len(p.name), p.name))


def _series(uid: str, images: list[ImageInfo]) -> Series:
    study = images[0].study_uid
    told = next((part for part in reversed(images[0].file.parts) if SUBJECT.fullmatch(part)), images[0].subject)
    match = SUBJECT.fullmatch(told.upper())
    if match:
        return Series(uid, study, match[0], match[1], tuple(images))
    from pneumoscope.io.dicom_identity import case_name

    return Series(uid, study, case_name(study or uid), "site unknown", tuple(images))
