"""Audit a data set: every case judged by itself, against the others and against a model; tables, page, cleaned copy.

One scan at a time is in memory. Everything is written at the end: a data set that turns out unusable leaves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.datasets.audit.case import Judged, judge_case
from pneumoscope.datasets.audit.duplicates import Fingerprint, find_duplicates, fingerprint
from pneumoscope.datasets.audit.findings import AuditFinding, findings_csv, ranked
from pneumoscope.datasets.audit.raw import RawCase, read_raw
from pneumoscope.datasets.audit.rules import KINDS, REPAIRS, AuditRules
from pneumoscope.datasets.case import Case
from pneumoscope.datasets.check import absent_labels, leaving_link
from pneumoscope.datasets.convert import file_names
from pneumoscope.datasets.registry import dataset_info, read_dataset
from pneumoscope.errors import DatasetError, InputError, PneumoscopeError
from pneumoscope.io.files import atomic_path, prepare_folder, write_json, write_text
from pneumoscope.jobs.lock import locks
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import present_labels

if TYPE_CHECKING:
    from pneumoscope.inference.segment import Segmenter

AUDIT_FILE = "audit.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How a data set is audited.

    Attributes:
        rules: thresholds.
        model: infiltrate model to compare the reader with, a shipped name or a model folder; None for none.
        lungs_model: lung model, used where the data set has no lung mask and a model is given.
        device: where to compute.
        also: (name, folder) of further sets whose scans must not turn up in this one.
        fix: folder for the cleaned copy; None for none.
        repairs: kinds that are mended in it.
        keep_going: make a finding of a scan that cannot be read, instead of refusing the data set.
    """

    rules: AuditRules = field(default_factory=AuditRules)
    model: str | Path | None = None
    lungs_model: str | Path = "lungs"
    device: str = "auto"
    also: tuple[tuple[str, Path], ...] = ()
    fix: Path | None = None
    repairs: tuple[str, ...] = REPAIRS
    keep_going: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.repairs) - set(REPAIRS))
        if unknown:
            raise InputError(f"no repair for {', '.join(unknown)}; there are repairs for {', '.join(REPAIRS)}")


@dataclass(frozen=True, eq=False)
class AuditResult:
    """What was found.

    Attributes:
        findings: ranked, without their voxels.
        summary: what stands in ``audit.json``.
    """

    findings: list[AuditFinding]
    summary: dict[str, Any]

    @property
    def errors(self) -> int:
        """Findings of severity error."""
        return sum(f.severity == "error" for f in self.findings)


@dataclass(eq=False)
class _Run:
    """What grows while cases are read."""

    findings: list[AuditFinding] = field(default_factory=list)
    pictures: dict[int, bytes] = field(default_factory=dict)
    not_judged: Counter[tuple[str, str]] = field(default_factory=Counter)
    prints: list[Fingerprint] = field(default_factory=list)
    labels: list[dict[str, set[int]]] = field(default_factory=list)
    masked: int = 0
    off_grid: int = 0


@locks("out")
def audit_dataset(
    name: str,
    root: str | Path,
    out: str | Path,
    options: AuditOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> AuditResult:
    """Audit a data set and write ``findings.csv``, ``audit.html`` and ``audit.json``, and a cleaned copy if wanted.

    Args:
        name: of the data set.
        root: its folder or table.
        out: folder to write.
        options: see `AuditOptions`.
        overwrite: write over an earlier audit.
        progress: called per case.

    Raises:
        DatasetError: not that data set; a file that leaves its folder by a link; no mask lies on its scan.
        ReadError: a scan or mask that cannot be read, without `keep_going`.
        InputError: an output folder that is taken, or that lies in the data set.
    """
    options = options or AuditOptions()
    if options.fix is not None and dataset_info(name).kind == "slices":
        raise InputError(f"{name} holds single slices; a cleaned copy is written of scans only, leave out --fix")
    cases = _cases(name, root)
    if options.fix is not None:
        file_names(cases)
    _prepare(out, options, [Path(root), *(path for _, path in options.also)], overwrite, dry=True)
    segmenter = _segmenter(options)
    others = [p for also, path in options.also for p in _prints(also, path, progress)]
    run = _Run()
    for number, case in enumerate(cases):
        progress("audit", number, len(cases), case.case)
        _one(case, options, segmenter, run)
    progress("audit", len(cases), len(cases))
    if run.masked > 1 and run.off_grid == run.masked:
        raise DatasetError(
            f"none of its {run.masked} masks lies on its scan: are they the masks of other scans? Pair them again",
            path=root,
        )
    found = find_duplicates(run.prints, others, options.rules)
    _picture_pairs(found, [*others, *run.prints], run)
    run.findings.extend(found)
    run.findings += [AuditFinding("", "absent-label", "note", text) for text in absent_labels(cases, run.labels)]
    _prepare(out, options, [], overwrite)
    order = ranked(run.findings)
    numbers = {id(finding): number for number, finding in enumerate(run.findings)}
    shown = {
        place: run.pictures[numbers[id(finding)]]
        for place, finding in enumerate(order)
        if numbers[id(finding)] in run.pictures
    }
    summary = _summary(name, cases, order, run, options)
    if options.fix is not None:
        summary["repairs"] = write_copy(cases, options, segmenter, progress)
    _write(Path(out), order, shown, summary, options)
    return AuditResult(order, summary)


def _cases(name: str, root: str | Path) -> list[Case]:
    """The cases, refused as a whole when a file is a link that leads out of the data set."""
    if dataset_info(name).kind == "xray":
        raise DatasetError(f"{name} holds radiographs; only CT sets with masks are audited", path=root)
    cases = read_dataset(name, root)
    if not cases:
        raise DatasetError(f"holds no case of {name}; check the folder", path=root)
    for case in cases:
        for path in () if case.files is None else (case.files.image, case.files.lungs, case.files.infiltrate):
            if path is not None and leaving_link(path, Path(root)):
                raise DatasetError(
                    "is a link that leads out of the data set; put the file itself there, or give its own folder",
                    path=path,
                )
    return cases


def _prepare(
    out: str | Path, options: AuditOptions, roots: Sequence[Path], overwrite: bool, *, dry: bool = False
) -> None:
    """Refuse output folders that are taken before any work is done (`dry`), and make them after it."""
    from pneumoscope.datasets.audit.copy import TABLE, require_apart

    for folder, marker in ((Path(out), AUDIT_FILE), (options.fix, TABLE)):
        if folder is None:
            continue
        if dry:
            if folder == options.fix:
                require_apart(folder, roots)
            if folder.exists() and not folder.is_dir():
                raise InputError("is a file, expected an output folder; choose another name", path=folder)
            if (folder / marker).exists() and not overwrite:
                raise InputError(f"already holds a run ({marker}); use --overwrite or another folder", path=folder)
        else:
            prepare_folder(folder, marker=marker, overwrite=overwrite)


def _segmenter(options: AuditOptions) -> Segmenter | None:
    if options.model is None:
        return None
    from pneumoscope.inference.segment import Segmenter

    return Segmenter(options.model, options.lungs_model, device=options.device)


def _prints(name: str, root: Path, progress: Progress) -> list[Fingerprint]:
    """Fingerprints of another set, which is not judged."""
    cases = _cases(name, root)
    out = []
    for number, case in enumerate(cases):
        progress(f"also {name}", number, len(cases), case.case)
        only = replace(case, files=None if case.files is None else replace(case.files, lungs=None, infiltrate=None))
        out.append(fingerprint(read_raw(only).volume, dataset=f"{name} ({root.name})",
                               case=case.case, patient=case.patient))  # fmt: skip
    progress(f"also {name}", len(cases), len(cases))
    return out


def _one(case: Case, options: AuditOptions, segmenter: Segmenter | None, run: _Run) -> None:
    """Judge one case; what is kept of it is small."""
    from pneumoscope.reports.audit import finding_picture

    try:
        raw = read_raw(case)
    except PneumoscopeError as problem:
        if not options.keep_going:
            raise _unreadable(problem) from problem
        run.findings.append(AuditFinding(case.case, "unreadable", "error", str(problem)))
        return
    for _, problem_text in raw.problems:
        if "[IN-MSK-" not in problem_text and not options.keep_going:
            raise DatasetError(f"{problem_text}; see `data check`, or give --keep-going")
    run.prints.append(fingerprint(raw.volume, dataset="", case=case.case, patient=case.patient))
    judged, more = judge_with_model(raw, options, segmenter)
    masks = {"lungs": raw.lungs, "infiltrate": raw.infiltrate}
    run.labels.append({what: set(present_labels(m.labels)) for what, m in masks.items() if m is not None})
    run.masked += (raw.lungs is not None) + (raw.infiltrate is not None)
    run.off_grid += sum(f.kind == "grid-differs" for f in judged.findings)
    run.not_judged.update(judged.not_judged.items())
    for finding in [*judged.findings, *more]:
        on_scan = finding.kind not in ("grid-differs", "unreadable")
        lungs, drawn = (_shown(mask, raw) if on_scan else None for mask in (raw.lungs, raw.infiltrate))
        picture = finding_picture(
            raw.volume, finding, judged.lungs if lungs is None and on_scan else lungs, drawn, hounsfield=raw.hounsfield
        )
        run.pictures[len(run.findings)] = picture
        run.findings.append(replace(finding, where=None))


def _unreadable(problem: PneumoscopeError) -> PneumoscopeError:
    message = f"{problem.message}; see `data check`, or give --keep-going to judge the other cases"
    return type(problem)(message, code=problem.code, path=problem.path)


def _shown(mask: Any, raw: RawCase) -> Any:
    """House labels of a mask for the picture; None where it is not on the scan."""
    return None if mask is None or mask.labels.shape != raw.volume.grid.shape else mask.house()


def judge_with_model(
    raw: RawCase, options: AuditOptions, segmenter: Segmenter | None
) -> tuple[Judged, list[AuditFinding]]:
    """A case judged by itself, and where model and reader differ (nothing without a model)."""
    if segmenter is None:
        return judge_case(raw, options.rules, stacked=raw.sized), []
    if not raw.hounsfield:
        judged = judge_case(raw, options.rules, stacked=raw.sized)
        judged.not_judged["missing-annotation, unseen-lesion"] = f"no model for it: {raw.why_not}"
        return judged, []
    from pneumoscope.datasets.audit.suspects import differences
    from pneumoscope.volume import LUNG_LABELS, Mask

    judged = judge_case(raw, options.rules)
    given = None if judged.lungs is None else Mask(judged.lungs, raw.volume.grid, LUNG_LABELS)
    seen = segmenter.run(raw.volume, given)
    if judged.lungs is None and seen.lungs.any.any():
        judged = judge_case(raw, options.rules, lungs=seen.lungs.labels)
    whole = {f.kind for f in judged.findings if f.mask == "infiltrate" and f.where is None}
    if judged.infiltrate is None or whole:
        return judged, []
    found = differences(
        raw.case.case, judged.infiltrate > 0, seen.infiltrate.any, seen.probability, seen.lungs.any, raw.volume.grid,
        options.rules,
    )  # fmt: skip
    told = {tuple(v) for f in judged.findings if f.mask == "infiltrate" and f.where is not None for v in f.where[:1]}
    return judged, [f for f in found if f.kind != "unseen-lesion" or not _known(f, told)]


def _known(finding: AuditFinding, told: set[tuple[int, ...]]) -> bool:
    """Whether a lesion was reported already for another reason."""
    assert finding.where is not None
    return any(tuple(v) in told for v in finding.where)


def _picture_pairs(found: Sequence[AuditFinding], prints: Sequence[Fingerprint], run: _Run) -> None:
    from pneumoscope.reports.audit import pair_picture

    own = {p.case: p.picture for p in run.prints}
    known = {p.case: p.picture for p in prints}
    for place, finding in enumerate(found, start=len(run.findings)):
        run.pictures[place] = pair_picture(known[finding.other], own[finding.case])


def _summary(
    name: str, cases: Sequence[Case], findings: Sequence[AuditFinding], run: _Run, options: AuditOptions
) -> dict[str, Any]:
    from pneumoscope import __version__

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


def write_copy(
    cases: Sequence[Case], options: AuditOptions, segmenter: Segmenter | None, progress: Progress
) -> dict[str, Any]:
    """Write the cleaned copy case by case; ``manifest.csv`` comes last and says that it is whole.

    Returns:
        What was changed, by kind, and what was left.
    """
    from pneumoscope.datasets.audit import copy
    from pneumoscope.datasets.audit.repair import repair_case

    assert options.fix is not None
    folder = options.fix
    (folder / copy.TABLE).unlink(missing_ok=True)
    rows: list[Mapping[str, Any]] = []
    voxels: Counter[str] = Counter()
    left: Counter[str] = Counter()
    changed = 0
    with atomic_path(folder / copy.CHANGES) as temporary, temporary.open("w", encoding="utf-8") as stream:
        copy.begin_changes(stream)
        for number, (case, name) in enumerate(zip(cases, file_names(cases), strict=True)):
            progress("cleaned copy", number, len(cases), case.case)
            try:
                raw = read_raw(case)
            except PneumoscopeError:
                left["unreadable"] += 1  # only with keep_going: it was refused before
                continue
            lungs = None
            if segmenter is not None and raw.lungs is None and raw.hounsfield:
                lungs = segmenter.run(raw.volume).lungs.labels
            mended = repair_case(raw, options.repairs, options.rules, lungs=lungs, stacked=raw.sized)
            rows.append(copy.write_case(folder, raw, mended, name))
            stream.writelines(copy.change_rows(raw, mended))
            voxels.update(copy.summary(mended))
            left.update(f.kind for f in mended.left)
            changed += bool(mended.changes)
    progress("cleaned copy", len(cases), len(cases))
    write_text(folder / copy.TABLE, copy.table_text([dict(row) for row in rows]))
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
    from pneumoscope.reports.audit import write_audit_page

    title = f"Audit of {summary['dataset']}"
    (out / AUDIT_FILE).unlink(missing_ok=True)
    write_text(out / "findings.csv", findings_csv(findings))
    write_audit_page(
        out / "audit.html", title=title, findings=findings, pictures=pictures, summary=summary, rules=options.rules
    )  # fmt: skip
    write_json(out / AUDIT_FILE, summary)
