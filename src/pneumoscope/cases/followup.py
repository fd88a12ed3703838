"""`compare` from folders to folder: reads the dates, lays each follow-up over the baseline, writes what was found.

`change.json` is written last. It holds no times or dates: the same cases give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope import __version__
from pneumoscope.cases.compare import Aligned, compare_dates, course_of
from pneumoscope.cases.dates import Dated, is_case_folder, read_dated
from pneumoscope.errors import InputError, RunError
from pneumoscope.io.files import jsonable, prepare_folder, write_json
from pneumoscope.jobs.lock import locks
from pneumoscope.preprocess.spatial import Resample
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    from pneumoscope.cases.segment import SegmentOptions
    from pneumoscope.preprocess.registration import RegistrationRules
    from pneumoscope.severity.change import Change

CHANGE_FILE = "change.json"


@dataclass(frozen=True)
class Comparison:
    """A baseline and its follow-ups.

    Attributes:
        changes: one per follow-up, each against the baseline.
        course: share and volume per date, the baseline first.
    """

    changes: tuple[Change, ...]
    course: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: what stands in `change.json`."""
        from pneumoscope.reports.page import NOTICE

        document = {
            "format": 1,
            "kind": "compare",
            "notice": NOTICE,
            "software": {"name": "pneumoscope", "version": __version__},
            "baseline": self.changes[0].baseline,
            "course": list(self.course),
            "changes": [change.as_dict() for change in self.changes],
        }
        result: dict[str, Any] = jsonable(document)
        return result


@locks("out")
def compare_cases(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    options: SegmentOptions | None = None,
    rules: RegistrationRules | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Compare the dates of one patient.

    Args:
        paths: the baseline, then one or more later dates: case folders, or scans, which are segmented into
            ``out/cases`` first.
        out: the folder to write; None writes nothing, and takes case folders only.
        options: of the segmentation.
        rules: of the registration.
        overwrite: write over an earlier comparison.
        progress: called per step.

    Raises:
        InputError: fewer than two dates, a folder that is no case, or dates that cannot be laid over each other.
        RunError: a scan could not be segmented.
    """
    if len(paths) < 2:
        raise InputError("a comparison needs a baseline and at least one follow-up; give two case folders or scans")
    where = [Path(path) for path in paths]
    scans = [path for path in where if not is_case_folder(path)]
    if scans and out is None:
        raise InputError("is no finished case folder; give case folders, or an output folder", path=scans[0])
    folder = None if out is None else prepare_folder(out, marker=CHANGE_FILE, overwrite=overwrite)
    if folder is not None:
        (folder / CHANGE_FILE).unlink(missing_ok=True)
        where = [_as_case(path, folder / "cases" / str(n), options, progress) for n, path in enumerate(where, start=1)]
    dates = [read_dated(path) for path in where]
    aligned = []
    for number, followup in enumerate(dates[1:], start=1):
        found = compare_dates(dates[0], followup, rules, progress=progress)
        if folder is not None:
            _write_date(folder if len(dates) == 2 else folder / f"{number}_{followup.name}", dates[0], found)
        aligned.append(found)
        progress("follow-ups", number, len(dates) - 1)
    changes = tuple(found.change for found in aligned)
    result = Comparison(changes, tuple(course_of(changes)))
    if folder is not None:
        from pneumoscope.reports.compare import write_compare_report

        document = result.as_dict()
        write_compare_report(folder, document, aligned)
        write_json(folder / CHANGE_FILE, document)
    return result


def _as_case(path: Path, folder: Path, options: SegmentOptions | None, progress: Progress) -> Path:
    """The case folder of a date: itself, or one made by segmenting the scan."""
    if is_case_folder(path):
        return path
    from pneumoscope.cases.segment import segment_cases
    from pneumoscope.io import find_scans

    scans = find_scans(path)
    if len(scans) != 1:
        raise InputError(f"holds {len(scans)} scans, expected one per date; name them one by one", path=path)
    batch = segment_cases(scans, folder, options, overwrite=True, progress=progress)
    (case,) = batch.cases
    if case.error:
        raise (InputError if case.exit_code == InputError.exit_code else RunError)(case.error)
    return folder / case.case


def _write_date(folder: Path, baseline: Dated, found: Aligned) -> None:
    """Masks on the baseline's grid, and the page with both scans side by side."""
    from pneumoscope.io import write_mask

    write_mask(found.fates, folder / "change.nii.gz", baseline.native)
    write_mask(found.infiltrate, folder / "followup_infiltrate_on_baseline.nii.gz", baseline.native)
    _write_view(folder / "view.html", baseline, found)


def _write_view(path: Path, baseline: Dated, found: Aligned) -> None:
    from pneumoscope.reports.compare import view_table
    from pneumoscope.reports.view import ViewScan, write_change_view

    grid = found.baseline.volume.grid
    nearest = Resample(grid).for_labels()

    def coarse(mask: Mask) -> Mask:
        return Mask(nearest.apply(mask).labels, grid, dict(mask.names))

    fates = np.minimum(coarse(found.fates).labels, 3).astype(np.uint8)
    simple = Mask(fates, grid, {1: "new", 2: "resolved", 3: "persistent"})
    lungs, volume = coarse(baseline.lungs), found.baseline.volume
    later = Volume(found.followup_hu, grid, grid, found.change.followup)
    before = ViewScan("baseline", volume, lungs, coarse(baseline.infiltrate))
    after = ViewScan("follow-up, laid over it", later, lungs, coarse(found.infiltrate))
    notes = ("Both scans are shown on the coarse copies that were registered, about 3 mm.",)
    write_change_view(path, before, after, simple, view_table(found.change.as_dict()), notes=notes)
