"""`pneumoscope data audit`: faults in the annotations of a dataset, and a cleaned copy."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.options import WHERE, Common, DatasetName, common_options, pairs
from pneumoscope.cli.output import progress_for, say, say_fields, say_json, say_table

if TYPE_CHECKING:
    from pneumoscope.cases.audit import AuditResult
    from pneumoscope.datasets.audit.rules import AuditRules


@common_options("device", *WHERE, "overwrite", "resume")
def audit(
    name: DatasetName,
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The dataset's folder, or the table of a manifest.")],
    common: Common,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", metavar="DIR", help="Also write a cleaned copy; the originals stay.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--repair", metavar="KIND", help="With --fix: mend this kind only; may be given several times."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--no-repair", metavar="KIND", help="With --fix: leave this kind; may be given several times."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Compare with this model: regions not annotated, lesions not predicted."
        ),
    ] = None,
    lungs_model: Annotated[
        str, typer.Option("--lungs-model", metavar="MODEL", help="With --model: finds lungs where there is no mask.")
    ] = "lungs",
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="NAME=ROOT", help="Look for this set's scans too; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="THRESHOLD=VALUE", help="Change a threshold; may be given several times."),
    ] = None,
    thresholds: Annotated[bool, typer.Option("--thresholds", help="Show the thresholds and stop.")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Judge the rest when a scan cannot be read, instead of refusing.")
    ] = False,
) -> None:
    """Look for faults in the annotations.

    Writes findings.csv, one row per finding, audit.html with a picture of each, and audit.json. With --fix a cleaned
    copy with changes.csv, a row per voxel changed. The exit code is 1 when there are errors.
    """
    from pneumoscope.cases.audit import AuditOptions, audit_dataset
    from pneumoscope.datasets.audit.rules import REPAIRS, AuditRules

    rules = _with_settings(AuditRules(), settings or [])
    if thresholds:
        say_json(asdict(rules)) if common.json else say_fields(asdict(rules))
        return
    if out is None:
        raise typer.BadParameter("Missing option '--out' / '-o'")
    wanted = [kind for kind in only or REPAIRS if kind not in (skip or [])]
    if fix is None and (only or skip):
        raise typer.BadParameter("--repair and --no-repair need --fix")
    unknown = [kind for kind in skip or [] if kind not in REPAIRS]
    options = AuditOptions(
        rules=rules,
        model=model,
        lungs_model=lungs_model,
        device=common.device,
        also=tuple((set_name, Path(path)) for set_name, path in _sets(also or [])),
        fix=fix,
        repairs=(*wanted, *unknown),
        keep_going=keep_going,
    )
    with progress_for(common) as progress:
        result = audit_dataset(
            name, root, out, options, overwrite=common.overwrite, resume=common.resume, progress=progress
        )
    if common.json:
        say_json(result.summary)
    else:
        _show(result, out, fix)
    if result.errors:
        raise typer.Exit(1)


def _sets(values: list[str]) -> list[tuple[str, str]]:
    """NAME=ROOT pairs; a name may come twice (two manifests)."""
    return [next(iter(pairs([value], "--also").items())) for value in values]


def _with_settings(rules: AuditRules, settings: list[str]) -> AuditRules:
    """Thresholds with changes; an unknown name or a value that is no number is a usage error."""
    kinds = {entry.name: type(getattr(rules, entry.name)) for entry in fields(rules)}
    changes: dict[str, Any] = {}
    for key, text in pairs(settings, "--set").items():
        if key not in kinds:
            raise typer.BadParameter(f"no threshold {key!r}; there are {', '.join(kinds)}", param_hint="--set")
        try:
            changes[key] = kinds[key](text)
        except ValueError:
            raise typer.BadParameter(f"{key} needs a number, got {text!r}", param_hint="--set") from None
    return replace(rules, **changes)


def _show(result: AuditResult, out: Path, fix: Path | None) -> None:
    from pneumoscope.datasets.audit.rules import KINDS

    rows: dict[str, list[str]] = {}
    for finding in result.findings:
        rows.setdefault(finding.kind, []).append(finding.severity)
    if rows:
        say_table(
            ("kind", "errors", "warnings", "notes", "meaning"),
            [
                (kind, *(rows[kind].count(level) for level in ("error", "warning", "note")), KINDS[kind].meaning)
                for kind in KINDS
                if kind in rows
            ],
        )
    found = result.summary["severities"]
    say(
        f"{result.summary['cases']} cases, {result.summary['cases_without']} without a finding; errors: "
        f"{found['error']}, warnings: {found['warning']}, notes: {found['note']}"
    )
    for entry in result.summary["not_judged"]:
        say(f"not judged in {entry['cases']} cases: {entry['rule']} ({entry['why']})")
    repairs = result.summary["repairs"]
    if repairs is not None:
        say_fields({"repaired, voxels": repairs["voxels"], "not repaired, findings": repairs["left"]})
        say(f"cleaned copy in {fix}")
    say(f"written to {out}")
