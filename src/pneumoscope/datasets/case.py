"""One case of a dataset: who it is of, whose licence it has, and how to load it when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from pneumoscope.datasets.registry import dataset_info
from pneumoscope.geometry import Grid
from pneumoscope.jobs.stamp import content_of_arrays
from pneumoscope.volume import Mask, Volume


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A scan with its annotated masks, all on one grid.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """

    volume: Volume  # the scan
    lungs: Mask | None = None  # 1 = right, 2 = left; None where the dataset stores no lung masks
    # what the reader annotated; None where nobody did (which is not the same as an empty mask)
    infiltrate: Mask | None = None
    # the exact infiltrate, known for synthetic scans only; differs from `infiltrate` by the reader's style
    truth: Mask | None = None

    def __post_init__(self) -> None:
        masks = {"the lung mask": self.lungs, "the infiltrate mask": self.infiltrate, "the true infiltrate": self.truth}
        for what, mask in masks.items():
            if mask is not None:
                self.volume.grid.require_same_space(mask.grid, f"{what} of {self.volume.case}")


def content_of_scan(scan: LabelledScan) -> str:
    """Sum over voxels, grid and masks of a scan as it is read, whatever its files are."""
    masks = [None if mask is None else mask.labels for mask in (scan.lungs, scan.infiltrate)]
    return content_of_arrays(scan.volume.hu, scan.volume.grid.affine, *masks)


PatientAxis = Literal["left-right", "front-back", "head-foot"]
_PATIENT_AXES: Mapping[str, PatientAxis] = {
    "R": "left-right", "L": "left-right", "A": "front-back", "P": "front-back", "S": "head-foot", "I": "head-foot",
}  # fmt: skip

SAME_LABELS: Mapping[int, int] = {1: 1, 2: 2}  # A file whose labels already mean what they mean here


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case, as stored: what `data check` opens and `data audit` judges before anything is corrected."""

    image: Path  # the scan: a file or a DICOM folder
    lungs: Path | None = None  # file of the lung mask, if there is one
    infiltrate: Path | None = None  # file of the infiltrate mask, if there is one; may be the same file as `lungs`
    # label on disk -> label here (1 = right, 2 = left)
    lung_labels: Mapping[int, int] = field(default_factory=lambda: SAME_LABELS)
    infiltrate_labels: Mapping[int, int] = field(default_factory=lambda: SAME_LABELS)  # label on disk -> label here
    # labels the dataset declares and that are neither lung nor infiltrate (pleural effusion, say). In a file that holds
    # both, a label of one kind is ignored for the other; the two maps come first.
    ignored_labels: frozenset[int] = frozenset()
    # how the file's header places the voxels wrongly: the patient's axes along which it is mirrored. Masks of the set
    # share the fault. See `corrected_grid`.
    mirrored: tuple[PatientAxis, ...] = ()
    # which way the file's voxel axes are known to run whatever its header says, e.g. ``("L", "P", "")``; an empty
    # letter trusts the header.
    stored_axes: tuple[str, str, str] | None = None
    # index along the file's third axis, where each index is a patient of its own; the case is that slice
    part: int | None = None

    def corrected_grid(self, header: Grid) -> Grid:
        """Where the voxels of a file of this case lie in truth.

        Args:
            header: the grid as the header of the scan or of a mask gives it, in the file's own axis order; of one
                slice or of the whole stack where `part` is set.

        Returns:
            The same lattice of points in the same axis order; axes that run the wrong way are turned round. Equal to
            `header` where the set's headers are right.
        """
        for axis, code in enumerate(header.axis_codes):
            wrong = _PATIENT_AXES[code] in self.mirrored
            if self.stored_axes and self.stored_axes[axis] in ("R", "L", "A", "P", "S", "I"):
                true = self.stored_axes[axis]
                wrong = _PATIENT_AXES[true] == _PATIENT_AXES[code] and true != code
            if wrong:
                header = _turned_round(header, axis)
        return header


def _turned_round(grid: Grid, axis: int) -> Grid:
    """The same points with one voxel axis counted from its other end."""
    affine = grid.affine.copy()
    last = [0, 0, 0]
    last[axis] = grid.shape[axis] - 1
    affine[:3, 3] = grid.world(last)
    affine[:3, axis] = -affine[:3, axis]
    return Grid(grid.shape, affine)


@dataclass(frozen=True)
class Case:
    """A scan that can be loaded, with what must be known before it is."""

    dataset: str  # name in `pneumoscope.datasets.registry`, e.g. ``phantom``
    case: str  # unique within the dataset; names folders and rows
    patient: str  # scans of one patient share it; splits go by it
    source: str  # site or sub-collection, e.g. ``phantom-A`` or ``coronacases``
    licence: str  # the licence of the data, for model cards
    citation: str  # how to cite the data
    # reads the scan; may take seconds and hundreds of megabytes, keep the result only as long as needed
    load: Callable[[], LabelledScan]
    date: str = ""  # of the scan as the dataset states it (ISO 8601 where possible), empty where it does not
    files: CaseFiles | None = None  # where the case lies; None where its masks are no files (contours, pictures)


SYNTHETIC_SOURCES = ("phantom-A", "phantom-B", "phantom-C")
"""What `Case.source` of synthetic scans is; it stays with them through tables, conversions and repaired copies."""


class About(TypedDict, total=False):
    """What a dataset says of a case, as `Case` has it."""

    patient: str
    source: str
    licence: str
    citation: str
    date: str


def make_case(
    dataset: str, case: str, load: Callable[[], LabelledScan], files: CaseFiles | None = None, **about: Unpack[About]
) -> Case:
    """A `Case` with licence and citation of its dataset where it has none of its own; without patient its own one.

    A case whose source is synthetic is of the dataset ``phantom``, whatever table lists it.
    """
    source = about.get("source", "")
    dataset = "phantom" if source in SYNTHETIC_SOURCES else dataset
    info = dataset_info(dataset)
    licence, citation = about.get("licence") or info.licence, about.get("citation") or info.citation
    patient = about.get("patient") or case
    return Case(dataset, case, patient, source, licence, citation, load, about.get("date", ""), files)


MASKS = "masks"  # The subset of cases with an annotated infiltrate, see `in_subset`


def in_subset(case: Case, subset: str) -> bool:
    """Whether a published count with the suffix ``@subset`` counts this case (see `DatasetInfo.expected`).

    Args:
        subset: empty for all cases, `MASKS` for those with an infiltrate file, else a `Case.source`.
    """
    if subset == MASKS:
        return case.files is not None and case.files.infiltrate is not None
    return not subset or case.source == subset
