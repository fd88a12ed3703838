"""One case of a data set: who it is of, whose licence it has, and how to load it when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pneumoscope.errors import DatasetError
from pneumoscope.volume import Mask, Volume


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A scan with the masks somebody drew on it, all on one grid.

    Attributes:
        volume: the scan.
        lungs: 1 = right, 2 = left; None where the data set stores no lung masks.
        infiltrate: what the reader drew; None where nobody drew (which is not the same as an empty mask).
        truth: the exact infiltrate, known for synthetic scans only; differs from `infiltrate` by the reader's style.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """

    volume: Volume
    lungs: Mask | None = None
    infiltrate: Mask | None = None
    truth: Mask | None = None

    def __post_init__(self) -> None:
        masks = {"the lung mask": self.lungs, "the infiltrate mask": self.infiltrate, "the true infiltrate": self.truth}
        for what, mask in masks.items():
            if mask is not None:
                self.volume.grid.require_same_space(mask.grid, f"{what} of {self.volume.case}")


SAME_LABELS: Mapping[int, int] = {1: 1, 2: 2}
"""A file whose labels already mean what they mean here."""


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies, as it lies there: what `data check` opens and `data audit` looks at before anything is mended.

    Attributes:
        image: the scan: a file or a DICOM folder.
        lungs: file of the lung mask, if there is one.
        infiltrate: file of the infiltrate mask, if there is one; may be the same file as `lungs`.
        lung_labels: label on disk -> label here (1 = right, 2 = left).
        infiltrate_labels: label on disk -> label here.
        ignored_labels: labels the data set declares and that are neither lung nor infiltrate (pleural effusion, say).
    """

    image: Path
    lungs: Path | None = None
    infiltrate: Path | None = None
    lung_labels: Mapping[int, int] = field(default_factory=lambda: SAME_LABELS)
    infiltrate_labels: Mapping[int, int] = field(default_factory=lambda: SAME_LABELS)
    ignored_labels: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Case:
    """A scan that can be loaded, with what must be known before it is.

    Attributes:
        dataset: name in `pneumoscope.datasets.registry`, e.g. ``phantom``.
        case: unique within the data set; names folders and rows.
        patient: scans of one patient share it; splits go by it.
        source: site or sub-collection, e.g. ``A`` or ``coronacases``.
        licence: the licence of the data, for model cards.
        citation: how to cite the data.
        load: reads the scan; may take seconds and hundreds of megabytes, keep the result only as long as needed.
        date: of the scan as the data set states it (ISO 8601 where possible), empty where it does not.
        files: where the case lies; None where its masks are no files (contours, pictures).
    """

    dataset: str
    case: str
    patient: str
    source: str
    licence: str
    citation: str
    load: Callable[[], LabelledScan]
    date: str = ""
    files: CaseFiles | None = None


def require_unique_cases(cases: list[Case], where: str) -> list[Case]:
    """The cases as they came, or DatasetError naming the first case name that occurs twice."""
    seen: set[str] = set()
    for case in cases:
        if case.case in seen:
            raise DatasetError(f"{where} names case {case.case!r} twice; case names must be unique")
        seen.add(case.case)
    return cases
