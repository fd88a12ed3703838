"""Audit a dataset: every case judged by itself, against the others and against a model; tables, page, cleaned copy.

One scan at a time is in memory. A dataset that turns out unusable leaves nothing; an audit that is interrupted leaves
what it found so far, and resumes.
"""

from __future__ import annotations

import shutil
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope._version import __version__
from pneumoscope.cases.audit_case import content_of_case, judge_one
from pneumoscope.cases.options import AuditOptions
from pneumoscope.datasets.audit import repair as copy
from pneumoscope.datasets.audit.case import read_raw
from pneumoscope.datasets.audit.duplicates import Fingerprint, find_duplicates, fingerprint, pack_print, unpack_print
from pneumoscope.datasets.audit.repair import TABLE, repair_case, require_apart
from pneumoscope.datasets.audit.rules import COLUMNS, KINDS, AuditFinding, ranked
from pneumoscope.datasets.case import Case
from pneumoscope.datasets.check import absent_labels, leaving_link
from pneumoscope.datasets.convert import file_names
from pneumoscope.datasets.registry import dataset_info, read_dataset
from pneumoscope.errors import DatasetError, InputError, PneumoscopeError
from pneumoscope.io.files import atomic_path, clear_temporary, require_no_other_run, write_csv, write_json
from pneumoscope.io.read import read_mask
from pneumoscope.io.scans import MANIFEST_COLUMNS
from pneumoscope.io.write import write_mask
from pneumoscope.jobs.lock import locked, locks
from pneumoscope.jobs.machines import current, part_of
from pneumoscope.jobs.run import FOLDER, Job, JobRun, Outcome, Step, job_folder
from pneumoscope.models.cards import content_of_model
from pneumoscope.models.options import ModelOptions
from pneumoscope.objects import Tabled, bars
from pneumoscope.progress import Progress, silent
from pneumoscope.reports.audit import pair_picture, write_audit_page

if TYPE_CHECKING:
    import pandas as pd

    from pneumoscope.inference.segmenter import Segmenter

AUDIT_FILE = "audit.json"
MODEL_LUNGS = "lungs.nii.gz"
"""In a case's job folder: the lungs that a model found on a scan without a lung mask, for the cleaned copy."""

FORMAT = 1


@dataclass(frozen=True, eq=False, repr=False)
class AuditResult(Tabled):
    """What was found.

    Attributes:
        findings: ranked, without their voxels.
        summary: what stands in ``audit.json``.
    """

    findings: list[AuditFinding]
    summary: dict[str, Any]

    def _numbers(self) -> dict[str, str]:
        return {"cases": str(self.summary["cases"]), **{k: str(v) for k, v in self.summary["severities"].items()}}

    def _draw(self, axes: Sequence[Any]) -> None:
        bars(axes[0], Counter(finding.kind for finding in self.findings), "findings")

    def to_frame(self) -> pd.DataFrame:
        """A row per finding: ``case,slice,kind,voxels,volume_ml,severity,detail``."""
        import pandas as pd

        names = ("case", "slice", "kind", "voxels", "volume_ml", "severity", "detail")
        return pd.DataFrame([{n: getattr(f, n) for n in names} for f in self.findings], columns=list(names))

    def as_dict(self) -> dict[str, Any]:
        """What stands in ``audit.json``."""
        return self.summary

    @property
    def errors(self) -> int:
        """Findings of severity error."""
        return sum(f.severity == "error" for f in self.findings)


@dataclass(eq=False)
class _Run:
    """What is known of the cases that were judged."""

    findings: list[AuditFinding] = field(default_factory=list)
    pictures: dict[AuditFinding, bytes] = field(default_factory=dict)
    not_judged: Counter[tuple[str, str]] = field(default_factory=Counter)
    prints: list[Fingerprint] = field(default_factory=list)
    labels: list[dict[str, set[int]]] = field(default_factory=list)

    def add(self, facts: Mapping[str, Any]) -> None:
        """Take in what `judge_one` found in one case."""
        for finding, picture in zip(facts["findings"], facts["pictures"], strict=True):
            self.findings.append(AuditFinding(**finding))
            if picture is not None:
                self.pictures[self.findings[-1]] = b64decode(picture)
        if facts["print"] is not None:
            self.prints.append(unpack_print(facts["print"]))
        self.not_judged.update((rule, why) for rule, why in facts["not_judged"])
        self.labels.append({what: set(labels) for what, labels in facts["labels"].items()})


@locks("out")
def audit_dataset(
    name: str,
    root: str | Path,
    out: str | Path,
    options: AuditOptions | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> AuditResult:
    """Audit a dataset and write ``findings.csv``, ``audit.html`` and ``audit.json``, and a cleaned copy if wanted.

    Args:
        root: its folder or table.
        out: folder to write.
        overwrite: judge every case again.
        resume: keep the cases that were judged by a run before and whose files, thresholds and model are unchanged; the
            cleaned copy is written again.

    Raises:
        DatasetError: not that dataset; a file that leaves its folder by a link; no mask lies on its scan.
        ReadError: a scan or mask that cannot be read, without `keep_going`.
        InputError: an output folder that is taken, or that lies in the dataset.
    """
    options = options or AuditOptions()
    if options.fix is not None and dataset_info(name).kind == "slices":
        raise InputError(f"{name} holds single slices; a cleaned copy is written of scans only, leave out --fix")
    cases = part_of(_cases(name, root))
    if options.fix is not None:
        file_names(cases)
    folder = Path(out)
    _require_free(folder, options, [Path(root), *(path for _, path in options.also)], overwrite or resume)
    clear_temporary(folder)

    def write(outcomes: Sequence[Outcome], finished: bool) -> None:
        if not finished:
            _conclude(name, cases, outcomes, [], folder, options)

    try:
        others = _prints_of(options, folder, resume, progress)
        jobs = [Job(case.case, case, job_folder(folder, case.case)) for case in cases]
        outcomes = JobRun(
            jobs, _judging(options), write, opener=partial(_judging, options), side_by_side=current().jobs or 1,
            resume=resume, strict=True, what="audit", progress=progress,
        ).run()  # fmt: skip
        masked, off_grid = (sum(o.facts[count] for o in outcomes) for count in ("masked", "off_grid"))
        if masked > 1 and off_grid == masked:
            raise DatasetError(
                f"none of its {masked} masks lies on its scan: are they the masks of other scans? Pair them again",
                path=root,
            )
    except PneumoscopeError as problem:
        if not resume and problem.exit_code == 2:  # a dataset that turns out unusable leaves nothing
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
        raise
    repairs = None
    if options.fix is not None:
        with locked(options.fix):
            clear_temporary(options.fix)
            repairs = write_copy(cases, options, folder, progress)
    return _conclude(name, cases, outcomes, others, folder, options, repairs=repairs, finished=True)


def _conclude(
    name: str, cases: Sequence[Case], outcomes: Sequence[Outcome], others: Sequence[Fingerprint], out: Path,
    options: AuditOptions, *, repairs: Mapping[str, Any] | None = None, finished: bool = False,
) -> AuditResult:  # fmt: skip
    """Compare the scans with each other, rank what was found and write it."""
    run = _Run()
    for outcome in outcomes:
        run.add(outcome.facts)
    copies = find_duplicates(run.prints, others, options.rules)
    _picture_pairs(copies, [*others, *run.prints], run)
    run.findings.extend(copies)
    if finished:
        run.findings += [AuditFinding("", "absent-label", "note", text) for text in absent_labels(cases, run.labels)]
    order = ranked(run.findings)
    shown = {place: run.pictures[finding] for place, finding in enumerate(order) if finding in run.pictures}
    judged = {outcome.name for outcome in outcomes}
    state = {"finished": finished, "results": len(judged)}
    summary = _summary(name, [case for case in cases if case.case in judged], order, run, options) | state
    summary["repairs"] = repairs
    _write(out, order, shown, summary, options)
    return AuditResult(order, summary)


def _cases(name: str, root: str | Path) -> list[Case]:
    """The cases, refused as a whole when a file is a link that leads out of the dataset."""
    if dataset_info(name).kind == "xray":
        raise DatasetError(f"{name} holds radiographs; only CT sets with masks are audited", path=root)
    cases = read_dataset(name, root)
    if not cases:
        raise DatasetError(f"holds no case of {name}; check the folder", path=root)
    for case in cases:
        for path in () if case.files is None else (case.files.image, case.files.lungs, case.files.infiltrate):
            if path is not None and leaving_link(path, Path(root)):
                raise DatasetError(
                    "is a link that leads out of the dataset; put the file itself there, or give its own folder",
                    path=path,
                )
    return cases


def _require_free(out: Path, options: AuditOptions, roots: Sequence[Path], taken_over: bool) -> None:
    """Refuse output folders that are taken, before any work is done."""
    require_no_other_run(out, AUDIT_FILE)
    for folder, marker in ((out, AUDIT_FILE), (options.fix, TABLE)):
        if folder is None:
            continue
        if folder == options.fix:
            require_apart(folder, roots)
        if folder.exists() and not folder.is_dir():
            raise InputError("is a file, expected an output folder; choose another name", path=folder)
        if (folder / marker).exists() and not taken_over:
            raise InputError(
                f"already holds a run ({marker}); use --resume, --overwrite or another folder", path=folder
            )


def _segmenter(options: AuditOptions) -> Segmenter | None:
    if options.model is None:
        return None
    from pneumoscope.inference.segmenter import Segmenter

    return Segmenter(ModelOptions(model=options.model, lungs_model=options.lungs_model, device=options.device))


def _prints_of(options: AuditOptions, out: Path, resume: bool, progress: Progress) -> list[Fingerprint]:
    """Fingerprints of the other sets, which are not judged."""
    prints: list[Fingerprint] = []
    for number, (name, root) in enumerate(options.also):
        label = f"{name} ({root.name})"

        def work(job: Job, progress: Progress, label: str = label) -> Outcome:
            volume = read_raw(job.item).volume
            seen = fingerprint(volume, dataset=label, case=job.item.case, patient=job.item.patient)
            return Outcome(job.name, facts={"print": pack_print(seen)})

        jobs = []
        for case in _cases(name, root):
            files = None if case.files is None else replace(case.files, lungs=None, infiltrate=None)
            jobs.append(Job(case.case, replace(case, files=files), job_folder(out, f"also-{number}-{case.case}")))
        step = Step("fingerprint", 1, partial(_scan_of_set, label), work)
        run = JobRun(
            jobs, step, lambda *_: None, resume=resume, strict=True, what=f"also {name}", progress=progress
        ).run()
        prints += [unpack_print(outcome.facts["print"]) for outcome in run]
    return prints


def _scan_of_set(label: str, case: Case) -> dict[str, Any]:
    return {"scan": content_of_case(case), "set": label}


def _judging(options: AuditOptions, jobs: int = 1) -> Step:
    """How a case is judged; the process that judges loads the models, once, when it has its first case."""
    segmenter = cache(partial(_segmenter, options))
    models = [] if options.model is None else [content_of_model(options.model), content_of_model(options.lungs_model)]
    device = None if options.model is None else options.device
    shaping = {"thresholds": asdict(options.rules), "model": [*models, device]}

    def work(job: Job, progress: Progress) -> Outcome:
        facts, lungs = judge_one(job.item, options, segmenter())
        if lungs is not None:
            write_mask(lungs, job.folder / MODEL_LUNGS, lungs.grid)
        return Outcome(job.name, facts=facts)

    return Step("audit", 1, lambda case: {"case": content_of_case(case), **shaping}, work)


def _picture_pairs(found: Sequence[AuditFinding], prints: Sequence[Fingerprint], run: _Run) -> None:
    own = {p.case: p.picture for p in run.prints}
    known = {p.case: p.picture for p in prints}
    run.pictures |= {finding: pair_picture(known[finding.other], own[finding.case]) for finding in found}


def _summary(
    name: str, cases: Sequence[Case], findings: Sequence[AuditFinding], run: _Run, options: AuditOptions
) -> dict[str, Any]:
    severities = Counter(f.severity for f in findings)
    kinds = Counter(f.kind for f in findings)
    return {
        "format": FORMAT,
        "kind": "audit",
        "software": {"name": "pneumoscope", "version": __version__},
        "dataset": name,
        "cases": len(cases),
        "cases_without": len(cases) - len({f.case for f in findings if f.case}),
        "severities": {level: severities[level] for level in ("error", "warning", "note")},
        "kinds": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
        "not_judged": [
            {"rule": rule, "why": why, "cases": count} for (rule, why), count in sorted(run.not_judged.items())
        ],
        "model": None if options.model is None else str(options.model),
        "also": [{"name": also, "root": path.name} for also, path in options.also],
        "rules": asdict(options.rules),
        "repairs": None,
    }


def write_copy(cases: Sequence[Case], options: AuditOptions, out: Path, progress: Progress) -> dict[str, Any]:
    """Write the cleaned copy case by case; ``manifest.csv`` comes last and says that it is whole.

    The lungs that a model found while the cases were judged are read from the audit's folder `out`.

    Returns:
        What was changed, by kind, and what was left.
    """
    assert options.fix is not None
    folder = options.fix
    (folder / copy.TABLE).unlink(missing_ok=True)
    rows: list[Mapping[str, Any]] = []
    voxels: Counter[str] = Counter()
    left: Counter[str] = Counter()
    changed = 0
    with atomic_path(folder / copy.CHANGES) as temporary, temporary.open("w", encoding="utf-8") as stream:
        copy.write_head(stream)
        for number, (case, name) in enumerate(zip(cases, file_names(cases), strict=True)):
            progress("cleaned copy", number, len(cases), case.case)
            try:
                raw = read_raw(case)
            except PneumoscopeError:
                left["unreadable"] += 1  # only with keep_going: it was refused before
                continue
            found = job_folder(out, case.case) / MODEL_LUNGS
            lungs = read_mask(found).labels if found.is_file() else None
            repaired = repair_case(raw, options.repairs, options.rules, lungs=lungs, stacked=raw.sized)
            rows.append(copy.write_case(folder, raw, repaired, name))
            stream.writelines(copy.change_rows(raw, repaired))
            voxels.update(copy.summary(repaired))
            left.update(f.kind for f in repaired.left)
            changed += bool(repaired.changes)
    progress("cleaned copy", len(cases), len(cases))
    write_csv(folder / copy.TABLE, MANIFEST_COLUMNS, rows)
    return {
        "cases": len(rows),
        "cases_changed": changed,
        "voxels": dict(voxels),
        "left": dict(left),
        "kinds": list(options.repairs),
    }


def _write(
    out: Path, findings: Sequence[AuditFinding], pictures: Mapping[int, bytes], summary: dict[str, Any],
    options: AuditOptions,
) -> None:  # fmt: skip
    title = f"Audit of {summary['dataset']}"
    (out / AUDIT_FILE).unlink(missing_ok=True)
    write_csv(out / "findings.csv", COLUMNS, [finding.row() for finding in findings])
    write_audit_page(
        out / "audit.html", title=title, findings=findings, pictures=pictures, summary=summary, rules=options.rules
    )  # fmt: skip
    write_json(out / AUDIT_FILE, summary)
