"""Judge one case of an audit by itself and against a model; what is kept of it is small, and has a JSON form."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from pneumoscope.cases.options import AuditOptions
from pneumoscope.datasets.audit.case import Judged, RawCase, differences, judge_case, read_raw
from pneumoscope.datasets.audit.duplicates import fingerprint, pack_print
from pneumoscope.datasets.audit.rules import AuditFinding
from pneumoscope.datasets.case import Case, content_of_scan
from pneumoscope.errors import DatasetError, InputError, PneumoscopeError
from pneumoscope.jobs.stamp import content_of_files
from pneumoscope.reports.audit import finding_picture
from pneumoscope.volume import LUNG_LABELS, Mask, present_labels

if TYPE_CHECKING:
    from pneumoscope.inference.segmenter import Segmenter


def content_of_case(case: Case) -> dict[str, Any]:
    """Everything of a case that its audit sees; of cases whose masks are no files, the voxels as they are loaded.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    about = {"dataset": case.dataset, "case": case.case, "patient": case.patient}
    if case.files is None or case.files.part is not None:
        scan = case.load()
        names = [dict(mask.names) for mask in (scan.lungs, scan.infiltrate) if mask]
        return {**about, "scan": content_of_scan(scan), "names": names}
    paths = {name: getattr(case.files, name) for name in ("image", "lungs", "infiltrate")}
    sums = {name: path and content_of_files([path]) for name, path in paths.items()}
    meaning = {f.name: repr(getattr(case.files, f.name)) for f in fields(case.files) if f.name not in paths}
    return {**about, "files": sums, "meaning": meaning}


def judge_one(case: Case, options: AuditOptions, segmenter: Segmenter | None) -> tuple[dict[str, Any], Mask | None]:
    """What is kept of one case, and the lungs that a model found where the case has no lung mask.

    The first as JSON values: findings without their voxels, a picture of each, the fingerprint.
    """
    try:
        raw = read_raw(case)
    except InputError as problem:
        if not options.keep_going:
            raise _unreadable(problem) from problem
        finding = AuditFinding(case.case, "unreadable", "error", str(problem))
        return {"findings": [vars(finding)], "pictures": [None], "print": None, "not_judged": [], "labels": {},
                "masked": 0, "off_grid": 0}, None  # fmt: skip
    for _, problem_text in raw.problems:
        if "[IN-MSK-" not in problem_text and not options.keep_going:
            raise DatasetError(f"{problem_text}; see `data check`, or give --keep-going")
    judged, more, seen = judge_with_model(raw, options, segmenter)
    masks = {"lungs": raw.lungs, "infiltrate": raw.infiltrate}
    pictures = []
    for finding in [*judged.findings, *more]:
        on_scan = finding.kind not in ("grid-differs", "unreadable")
        lungs, drawn = (_shown(mask, raw) if on_scan else None for mask in (raw.lungs, raw.infiltrate))
        picture = finding_picture(
            raw.volume, finding, judged.lungs if lungs is None and on_scan else lungs, drawn, hounsfield=raw.hounsfield
        )
        pictures.append(b64encode(picture).decode())
    facts = {
        "findings": [vars(replace(finding, where=None)) for finding in [*judged.findings, *more]],
        "pictures": pictures,
        "print": pack_print(fingerprint(raw.volume, dataset="", case=case.case, patient=case.patient)),
        "not_judged": [list(entry) for entry in judged.not_judged.items()],
        "labels": {what: present_labels(m.labels) for what, m in masks.items() if m is not None},
        "masked": (raw.lungs is not None) + (raw.infiltrate is not None),
        "off_grid": sum(finding.kind == "grid-differs" for finding in judged.findings),
    }
    return facts, seen if raw.lungs is None else None


def _unreadable(problem: PneumoscopeError) -> PneumoscopeError:
    message = f"{problem.message}; see `data check`, or give --keep-going to judge the other cases"
    return type(problem)(message, code=problem.code, path=problem.path)


def _shown(mask: Any, raw: RawCase) -> Any:
    """House labels of a mask for the picture; None where it is not on the scan."""
    return None if mask is None or mask.labels.shape != raw.volume.grid.shape else mask.house()


def judge_with_model(
    raw: RawCase, options: AuditOptions, segmenter: Segmenter | None
) -> tuple[Judged, list[AuditFinding], Mask | None]:
    """A case judged by itself, where model and reader differ, and the model's lungs; without a model neither."""
    if segmenter is None:
        return judge_case(raw, options.rules, stacked=raw.sized), [], None
    if not raw.hounsfield:
        judged = judge_case(raw, options.rules, stacked=raw.sized)
        judged.not_judged["missing-annotation, unseen-lesion"] = f"no model for it: {raw.why_not}"
        return judged, [], None
    judged = judge_case(raw, options.rules)
    given = None if judged.lungs is None else Mask(judged.lungs, raw.volume.grid, LUNG_LABELS)
    seen = segmenter.run(raw.volume, given)
    if judged.lungs is None and seen.lungs.any.any():
        judged = judge_case(raw, options.rules, lungs=seen.lungs.labels)
    whole = {f.kind for f in judged.findings if f.mask == "infiltrate" and f.where is None}
    if judged.infiltrate is None or whole:
        return judged, [], seen.lungs
    sure = seen.infiltrate.any.astype("uint8") * 255 if seen.probability is None else seen.probability
    found = differences(
        raw.case.case, judged.infiltrate > 0, seen.infiltrate.any, sure, seen.lungs.any, raw.volume.grid, options.rules
    )
    reported = {
        tuple(v) for f in judged.findings if f.mask == "infiltrate" and f.where is not None for v in f.where[:1]
    }
    return judged, [f for f in found if f.kind != "unseen-lesion" or not _known(f, reported)], seen.lungs


def _known(finding: AuditFinding, reported: set[tuple[int, ...]]) -> bool:
    """Whether a lesion was reported already for another reason."""
    assert finding.where is not None
    return any(tuple(v) in reported for v in finding.where)
