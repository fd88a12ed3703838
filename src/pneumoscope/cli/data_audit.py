"""`pneumoscope data audit`: faults in the annotations of a dataset, and a cleaned copy."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cases.options import AuditOptions
from pneumoscope.cli.options import WHERE, Common, DatasetName, common_options
from pneumoscope.cli.output import progress_for, say, say_fields, say_json, say_table
from pneumoscope.options import named

if TYPE_CHECKING:
    from pneumoscope.cases.audit import AuditResult
    from pneumoscope.datasets.audit.rules import AuditRules


@common_options("device", *WHERE, "overwrite", "resume", options=AuditOptions)
def audit(
    name: DatasetName,
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The dataset's folder, or the table of a manifest.")],
    common: Common,
    options: AuditOptions,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="THRESHOLD=VALUE", help="Change a threshold; may be given several times."),
    ] = None,
    thresholds: Annotated[bool, typer.Option("--thresholds", help="Show the thresholds and stop.")] = False,
) -> None:
    """Look for faults in the annotations.

    Writes findings.csv, one row per finding, audit.html with a picture of each, and audit.json. With --fix a cleaned
    copy with changes.csv, a row per voxel changed. The exit code is 1 when there are errors.
    """
    from pneumoscope.cases.audit import audit_dataset

    options = replace(options, rules=_with_settings(options.rules, settings or []))
    if thresholds:
        rules = asdict(options.rules)
        say_json(rules) if common.json else say_fields(rules)
        return
    if out is None:
        raise typer.BadParameter("Missing option '--out' / '-o'")
    with progress_for(common) as progress:
        result = audit_dataset(
            name, root, out, options, overwrite=common.overwrite, resume=common.resume, progress=progress
        )
    if common.json:
        say_json(result.summary)
    else:
        _show(result, out, options.fix)
    if result.errors:
        raise typer.Exit(1)


def _with_settings(rules: AuditRules, settings: list[str]) -> AuditRules:
    """Thresholds with changes; an unknown name or a value that is no number is a usage error."""
    kinds = {entry.name: type(getattr(rules, entry.name)) for entry in fields(rules)}
    changes: dict[str, Any] = {}
    for key, text in named(settings).items():
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
