"""COVID-19-CT-Seg: 20 chest CTs, 10 Coronacases and 10 Radiopaedia, and their published cross-validation.

The folds (Ma et al., Medical Physics 48, 2021) are the pickled splits in github.com/JunMa11/COVID-19-CT-Seg-Benchmark,
Task 1 (train on a group, test on the other sixteen) and Task1_COVID_82 (train on sixteen, test on the group). Each
group of four scans holds two Coronacases and two Radiopaedia scans.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, CaseFiles, LabelledScan, PatientAxis, make_case
from pneumoscope.datasets.formats.labelled import with_masks
from pneumoscope.datasets.formats.layout import Found, require_pairs, walk
from pneumoscope.datasets.splits.folds import Fold, Member
from pneumoscope.errors import DatasetError, Finding
from pneumoscope.io import intensity as hounsfield
from pneumoscope.io.read import read_volume
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

NAME = "covid19ctseg"

MA_GROUPS: tuple[tuple[str, str, str, str], ...] = (
    ("coronacases_008", "coronacases_007", "radiopaedia_36_86526_0", "radiopaedia_4_85506_1"),
    ("coronacases_009", "coronacases_004", "radiopaedia_14_85914_0", "radiopaedia_7_85703_0"),
    ("coronacases_010", "coronacases_001", "radiopaedia_10_85902_1", "radiopaedia_29_86491_1"),
    ("coronacases_003", "coronacases_005", "radiopaedia_40_86625_0", "radiopaedia_27_86410_0"),
    ("coronacases_002", "coronacases_006", "radiopaedia_10_85902_3", "radiopaedia_29_86490_1"),
)
"""The groups. Scans 10_85902_1 and _3 are one patient, and stand in different groups: the published split leaks."""

MaTask = Literal["20/80", "80/20"]


def ma_folds(members: Sequence[Member], task: MaTask = "20/80") -> list[Fold]:
    """The five published folds: ``20/80`` trains on 4 scans and tests on 16, ``80/20`` the other way round.

    There is no validation part: the benchmark trains for a fixed time.

    Raises:
        DatasetError: an unknown task, or cases that are not the twenty of the dataset.
    """
    if task not in ("20/80", "80/20"):
        raise DatasetError(f"the published tasks are 20/80 and 80/20, got {task!r}")
    own = {member.case: member for member in members if member.dataset == NAME}
    published = {case for group in MA_GROUPS for case in group}
    if set(own) != published or len(own) != len(members):
        missing, more = sorted(published - set(own)), sorted({m.case for m in members} - published)
        raise DatasetError(
            f"the published folds are of the 20 scans of {NAME}; missing {missing[:3]}, not among them {more[:3]}"
        )
    folds = []
    for group in MA_GROUPS:
        four = tuple(own[case] for case in group)
        others = tuple(member for case, member in own.items() if case not in group)
        folds.append(Fold(four, others) if task == "20/80" else Fold(others, four))
    return folds


EXPECTED = (
    "COVID-19-CT-Seg_20cases beside Lung_and_Infection_Mask, or beside Lung_Mask and Infection_Mask (also ct_scans, "
    "lung_mask, infection_mask)"
)
LUNGS, INFECTION, BOTH = "lung_mask", "infection_mask", "lung_and_infection_mask"

WINDOW_HU = (-1250.0, 250.0)  # What 0 and 255 mean in the Radiopaedia scans, by the guidelines of the dataset

HEAD_TO_FOOT = frozenset({"radiopaedia_7_85703_0"})
"""Scans whose header is mirrored head to foot as well as front to back."""

_CORONACASES = re.compile(r"(?:coronacases_(?:case)?|case)(\d{1,3})")
_RADIOPAEDIA = re.compile(r"radiopa?edia_(\d+_\d+_\d+)")


def read_covid19ctseg_cases(
    root: str | Path, *, eight_bit: Literal["map", "refuse"] = "map", headers: Literal["repair", "trust"] = "repair"
) -> list[Case]:
    """The scans as cases ``coronacases_001`` ... and ``radiopaedia_4_85506_1`` ...; source is the first word.

    Masks of one kind come from their own folder, else from the combined one. Scans that are not there leave their
    masks unread, so that the Coronacases can be kept alone.

    Args:
        root: a folder that holds the unzipped archives, however deep.
        eight_bit: ``map`` turns 8-bit scans back into Hounsfield units, coarsely and saturated at both ends of the
            window; ``refuse`` refuses them when they are loaded. Which scans are 8-bit is decided from each file.
        headers: ``repair`` corrects the mirrored headers; ``trust`` leaves them, for copies that were corrected before.

    Raises:
        DatasetError: no scans, a scan of no known name, a scan twice, a scan without lungs or without infection.
    """
    if eight_bit not in ("map", "refuse") or headers not in ("repair", "trust"):
        raise DatasetError(
            f'eight_bit is "map" or "refuse", headers "repair" or "trust"; got {eight_bit!r}, {headers!r}'
        )
    tree = walk(root, EXPECTED)
    for scan in tree.scans:
        if case_of(scan.stem) is None:
            raise tree.error(f"{scan.stem} is no name of this set (coronacases_NNN, radiopaedia_A_B_C)", path=scan.path)
    images, lungs, infection, both = (
        tree.by_key("case", partial(_in_folder, folder)) for folder in ("", LUNGS, INFECTION, BOTH)
    )
    if not images:
        raise tree.error("holds masks only, no scan")
    require_pairs(tree, images, {**both, **lungs}, "lung mask (Lung_Mask or Lung_and_Infection_Mask)", both=False)
    require_pairs(
        tree, images, {**both, **infection}, "infection mask (Infection_Mask or Lung_and_Infection_Mask)", both=False
    )
    cases = []
    for case, image in images.items():
        files = CaseFiles(
            image,
            lungs.get(case, both.get(case)),
            infection.get(case, both.get(case)),
            lung_labels={1: 2, 2: 1},
            infiltrate_labels={1: 1} if case in infection else {3: 1},
            ignored_labels=frozenset({3} if case not in lungs else ())
            | frozenset({1, 2} if case not in infection else ()),
            mirrored=mirrored(case) if headers == "repair" else (),
        )
        load = partial(_load, case, files, eight_bit)
        cases.append(make_case(NAME, case, load, files, patient=patient_of(case), source=case.partition("_")[0]))
    return cases


def case_of(stem: str) -> str | None:
    """The set's own name of a file under any of the names it goes by; None for files of other sets.

    ``coronacases_org_case007`` is ``coronacases_007``, ``case009`` is ``coronacases_009``,
    ``radiopaedia_org_covid-19-pneumonia-10_85902_3-dcm`` is ``radiopaedia_10_85902_3``.
    """
    plain = stem.strip().lower()
    for part in ("org_", "covid-19-pneumonia-", "-dcm"):
        plain = plain.replace(part, "")
    if match := _CORONACASES.fullmatch(plain):
        return f"coronacases_{int(match[1]):03d}"
    if match := _RADIOPAEDIA.fullmatch(plain):
        return f"radiopaedia_{match[1]}"
    return None


def patient_of(case: str) -> str:
    """``radiopaedia_10`` for both scans 10_85902_1 and 10_85902_3, which are one patient by the set's authors.

    Scans 29_86490_1 and 29_86491_1 share a Radiopaedia case number too; they are kept together to be safe.
    """
    return "_".join(case.split("_")[:2])


def mirrored(case: str) -> tuple[PatientAxis, ...]:
    """How the header of a case is wrong.

    Source: github.com/neuro-ml/COVID-19-Triage, scripts/prepare_medseg.py, and two other users independently.
    """
    if not case.startswith("radiopaedia"):
        return ()
    return ("front-back", "head-foot") if case in HEAD_TO_FOOT else ("front-back",)


def is_eight_bit(values: NDArray[np.floating]) -> bool:
    """Whether a scan holds grey levels 0..255 rather than Hounsfield units: no value is outside."""
    return bool(values.min() >= 0 and values.max() <= 255)


def with_sides(lungs: Mask, infected: Mask) -> tuple[Mask, int]:
    """Lungs of the combined mask, where infected voxels are no lung, filled up with the infected voxels.

    An infected voxel belongs to the lung whose nearest healthy voxel in the same axial slice is nearer. Where a slice
    does not show both lungs (one may be infected throughout), the plane midway between the lungs' centres decides.
    Infected voxels that were drawn outside the lungs become lung as well: this mask cannot tell.

    Args:
        lungs: 1 = right, 2 = left, without infected voxels.
        infected: any label above 0.

    Returns:
        The filled mask, and how many voxels got a side. Without any lung the middle of the scan decides.
    """
    gaps = np.nonzero((infected.labels > 0) & (lungs.labels == 0))
    labels = lungs.labels.copy()
    if not len(gaps[0]):
        return Mask(labels, lungs.grid, LUNG_LABELS), 0
    i, j, k = gaps
    sides = np.where(i > _midway(lungs.labels), 1, 2).astype(np.uint8)
    for level in np.unique(k):
        plane = np.ascontiguousarray(lungs.labels[:, :, level])
        if (plane == 1).any() and (plane == 2).any():
            here = k == level
            sides[here] = _nearest_label(plane, lungs.grid.spacing_mm[:2])[i[here], j[here]]
    labels[gaps] = sides
    return Mask(labels, lungs.grid, LUNG_LABELS), len(i)


def _midway(labels: NDArray[np.uint8]) -> float:
    """Index i midway between the centres of the lungs; the middle of the scan where one is missing."""
    per_column = [np.count_nonzero(labels == side, axis=(1, 2)) for side in (1, 2)]
    if not all(counts.any() for counts in per_column):
        return (labels.shape[0] - 1) / 2
    right, left = (float(np.average(np.arange(len(counts)), weights=counts)) for counts in per_column)
    return (right + left) / 2


def _nearest_label(plane: NDArray[np.uint8], spacing_mm: tuple[float, ...]) -> NDArray[np.uint8]:
    from scipy.ndimage import distance_transform_edt

    where = distance_transform_edt(plane == 0, sampling=spacing_mm, return_distances=False, return_indices=True)
    nearest: NDArray[np.uint8] = plane[tuple(where)]
    return nearest


def _in_folder(wanted: str, scan: Found) -> str | None:
    return case_of(scan.stem) if (scan.below((LUNGS, INFECTION, BOTH)) or "") == wanted else None


def _load(case: str, files: CaseFiles, eight_bit: str) -> LabelledScan:
    volume = read_volume(files.image, case=case, intensity="hu")
    scan = with_masks(_in_hu(volume, eight_bit, files.image), files)
    if files.lungs != files.infiltrate or scan.lungs is None or scan.infiltrate is None:
        return scan
    lungs, count = with_sides(scan.lungs, scan.infiltrate)
    text = f"{count} infected voxels have no side in the combined mask; each was given to the nearer lung"
    noted = scan.volume.with_findings(Finding("IN-SET-085", text, "info")) if count else scan.volume
    return LabelledScan(noted, lungs, scan.infiltrate)


def _in_hu(volume: Volume, eight_bit: str, path: Path) -> Volume:
    """The scan in Hounsfield units; its array is changed in place.

    Raises:
        DatasetError: 8-bit and not wanted.
        ReadError: neither Hounsfield units nor such grey levels.
    """
    hu = volume.hu
    if not is_eight_bit(hu):
        hounsfield.require_hu(hu, path=path)
        return volume
    low, high = WINDOW_HU
    if eight_bit == "refuse":
        raise DatasetError(
            f"holds 8-bit grey levels (0..255 for {low:.0f}..{high:.0f} HU), and Hounsfield units were asked for; "
            'leave it out, or read the set with eight_bit="map"',
            path=path,
        )
    step = np.float32((high - low) / 255)
    hu *= step
    hu += np.float32(low)
    if hounsfield.guess_not_hu(hu):  # a mask, or normalised to [0, 1]: say so of the stored values
        hu -= np.float32(low)
        hu /= step
        hounsfield.require_hu(hu, path=path)
    text = f"8-bit grey levels were mapped back to Hounsfield units: {low:.0f}..{high:.0f} HU in steps of {step:.1f}"
    return volume.with_findings(Finding("IN-SET-082", text), *hounsfield.clip_air(hu))
