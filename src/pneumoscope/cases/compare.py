"""`compare` from folders to folder: reads the dates, lays each follow-up over the baseline, writes what was found.

`change.json` is written last. It holds no times, and of dates only the days between them: the same cases give the same
bytes.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope._version import __version__
from pneumoscope.cases.followup import (
    CASE_FILES,
    Aligned,
    Timepoint,
    compare_dates,
    is_case_folder,
    read_timepoint,
    study_date,
    time_course,
)
from pneumoscope.cases.options import SegmentOptions
from pneumoscope.errors import InputError, RunError
from pneumoscope.io.files import jsonable, prepare_folder, require_no_other_run, write_json
from pneumoscope.io.scans import find_scans
from pneumoscope.io.write import write_mask
from pneumoscope.jobs.lock import locks
from pneumoscope.jobs.run import Job, JobRun, Outcome, Step, job_folder
from pneumoscope.jobs.stamp import content_of_files
from pneumoscope.objects import Tabled
from pneumoscope.preprocess.registration import RegistrationRules
from pneumoscope.preprocess.spatial import Resample
from pneumoscope.progress import Progress, silent
from pneumoscope.reports.compare import change_png, sentence, view_table, write_compare_report
from pneumoscope.reports.page import NOTICE
from pneumoscope.reports.view import ViewScan, write_change_view
from pneumoscope.severity.change import Change, read_change
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    import pandas as pd

CHANGE_FILE = "change.json"


@dataclass(frozen=True, repr=False)
class Comparison(Tabled):
    """A baseline and its follow-ups.

    Attributes:
        changes: one per follow-up, each against the baseline.
        course: share and volume per date, the baseline first.
    """

    changes: tuple[Change, ...]
    course: tuple[dict[str, Any], ...]

    def _numbers(self) -> dict[str, str]:
        described = self.as_dict()["changes"]
        return {change["followup"]: f"{change['verdict']}. {sentence(change)}" for change in described}

    def _draw(self, axes: Sequence[Any]) -> None:
        axes[0].plot([row["case"] for row in self.course], [row["share_percent"] for row in self.course], "o-")
        axes[0].set_ylabel("infiltrate, % of lung")
        axes[0].set_ylim(bottom=0)

    def to_frame(self) -> pd.DataFrame:
        """A row per date, the baseline first: volumes, share, noise floor in percentage points, verdict."""
        import pandas as pd

        return pd.DataFrame(list(self.course))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: what stands in `change.json`."""
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
    resume: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Compare the dates of one patient.

    Args:
        paths: the baseline, then one or more later dates: case folders, or scans, which are segmented into
            ``out/cases`` first.
        out: the folder to write; None writes nothing, and takes case folders only.
        options, rules: of the segmentation, and of the registration.
        resume: keep the dates that are segmented and compared, and unchanged.

    Raises:
        InputError: fewer than two dates, a folder that is no case, or dates that cannot be laid over each other.
        RunError: a scan could not be segmented.
    """
    if len(paths) < 2:
        raise InputError("a comparison needs a baseline and at least one follow-up; give two case folders or scans")
    where = [Path(path) for path in paths]
    scans = [path for path in where if not is_case_folder(path)]
    if out is None:
        if scans:
            raise InputError("is not a finished case folder; give case folders, or an output folder", path=scans[0])
        dates = [read_timepoint(path) for path in where]
        return _comparison([compare_dates(dates[0], later, rules, progress=progress).change for later in dates[1:]])
    require_no_other_run(out, CHANGE_FILE)
    folder = prepare_folder(out, marker=CHANGE_FILE, overwrite=overwrite, resume=resume)
    (folder / CHANGE_FILE).unlink(missing_ok=True)
    homes = [folder / "cases" / str(number) for number, _ in enumerate(where, start=1)]
    where = [_as_case(path, home, options, resume, progress) for path, home in zip(where, homes, strict=True)]
    jobs = [
        Job(f"follow-up {number}", _Pair(where[0], later, folder, 0 if len(where) == 2 else number),
            job_folder(folder, f"follow-up-{number}"))
        for number, later in enumerate(where[1:], start=1)
    ]  # fmt: skip
    step = Step("compare", 1, partial(_made_of, rules), partial(_compare, rules))

    def write(outcomes: Sequence[Outcome], finished: bool) -> None:
        if outcomes:
            document = _comparison([read_change(o.facts["change"]) for o in outcomes]).as_dict()
            write_compare_report(folder, document, [b64decode(o.facts["picture"]) for o in outcomes])
            write_json(folder / CHANGE_FILE, document if finished else {**document, "finished": False})

    outcomes = JobRun(jobs, step, write, resume=resume, strict=True, what="follow-ups", progress=progress).run()
    return _comparison([read_change(outcome.facts["change"]) for outcome in outcomes])


def _comparison(changes: Sequence[Change]) -> Comparison:
    return Comparison(tuple(changes), tuple(time_course(changes)))


@dataclass(frozen=True)
class _Pair:
    """A baseline and a follow-up, as case folders; the number is that of several follow-ups, else 0."""

    baseline: Path
    followup: Path
    out: Path
    number: int


def _made_of(rules: RegistrationRules | None, pair: _Pair) -> dict[str, Any]:
    cases = {"baseline": pair.baseline, "follow-up": pair.followup}
    sums = {what: content_of_files(case / name for name in CASE_FILES) for what, case in cases.items()}
    dates = [str(study_date(case, case.name)) for case in cases.values()]
    return {**sums, "dates": dates, "rules": None if rules is None else asdict(rules), "place": pair.number}


def _compare(rules: RegistrationRules | None, job: Job, progress: Progress) -> Outcome:
    """Lay one follow-up over the baseline and write its files."""
    pair: _Pair = job.item
    baseline, followup = read_timepoint(pair.baseline), read_timepoint(pair.followup)
    found = compare_dates(baseline, followup, rules, progress=progress)
    folder = pair.out / f"{pair.number}_{followup.name}" if pair.number else pair.out
    files = _write_date(folder, baseline, found)
    picture = b64encode(change_png(found)).decode()
    return Outcome(job.name, facts={"change": asdict(found.change), "picture": picture}, files=files)


def _as_case(path: Path, folder: Path, options: SegmentOptions | None, resume: bool, progress: Progress) -> Path:
    """The case folder of a date: itself, or one made by segmenting the scan."""
    if is_case_folder(path):
        return path
    from pneumoscope.cases.segment import segment_cases

    scans = find_scans(path)
    if len(scans) != 1:
        raise InputError(f"holds {len(scans)} scans, expected one per date; name them one by one", path=path)
    batch = segment_cases(scans, folder, options, overwrite=not resume, resume=resume, progress=progress)
    (case,) = batch.cases
    if case.error:
        raise (InputError if case.exit_code == InputError.exit_code else RunError)(case.error)
    return folder / case.case


def _write_date(folder: Path, baseline: Timepoint, found: Aligned) -> tuple[Path, ...]:
    """Masks on the baseline's grid, and the page with both scans side by side; the files written."""
    names = ("change.nii.gz", "followup_infiltrate_on_baseline.nii.gz", "view.html")
    fates, infiltrate, view = (folder / name for name in names)
    write_mask(found.fates, fates, baseline.native)
    write_mask(found.infiltrate, infiltrate, baseline.native)
    _write_view(view, baseline, found)
    return fates, infiltrate, view


def _write_view(path: Path, baseline: Timepoint, found: Aligned) -> None:
    grid = found.baseline.volume.grid
    nearest = Resample(grid).for_labels()

    def coarse(mask: Mask) -> Mask:
        return Mask(nearest.apply(mask).labels, grid, dict(mask.names))

    fates = np.minimum(coarse(found.fates).labels, 3).astype(np.uint8)
    simple = Mask(fates, grid, {1: "new", 2: "resolved", 3: "persistent"})
    lungs, volume = coarse(baseline.lungs), found.baseline.volume
    later = Volume(found.followup_hu, grid, grid, found.change.followup)
    before = ViewScan(found.change.baseline, volume, lungs, coarse(baseline.infiltrate))
    after = ViewScan(f"{found.change.followup}, aligned", later, lungs, coarse(found.infiltrate))
    notes = (
        "Both scans are shown on the coarse copies that were registered, about 3 mm.",
        "Outlines of the lungs are those of the baseline on both.",
    )
    write_change_view(path, before, after, simple, view_table(found.change.as_dict()), notes=notes)
