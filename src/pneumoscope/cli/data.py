"""`pneumoscope data`: the datasets it knows, checked, audited, split and converted, and synthetic ones."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cases.options import AuditOptions
from pneumoscope.cli.options import WHERE, Common, DatasetName, common_options, new_group
from pneumoscope.cli.output import progress_for, say, say_fields, say_json, say_result, say_table
from pneumoscope.datasets.options import ConvertOptions, PhantomOptions, SplitOptions
from pneumoscope.errors import RunError
from pneumoscope.options import named

if TYPE_CHECKING:
    from pneumoscope.cases.audit import AuditResult
    from pneumoscope.datasets.audit.rules import AuditRules
    from pneumoscope.datasets.check import DatasetCheck

Root = Annotated[Path, typer.Argument(metavar="ROOT", help="The dataset's folder, or the table of a manifest.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")]

group = new_group("Datasets: what can be read, where to get it, synthetic scans.")


def add_to(app: typer.Typer) -> None:
    """Register the command group."""
    group.command("check")(check)
    group.command("audit")(audit)
    group.command("split")(split)
    group.command("convert")(convert)
    app.add_typer(group, name="data")


@group.command("list")
@common_options()
def list_datasets(common: Common) -> None:
    """List the datasets by name."""
    from pneumoscope.datasets.registry import DATASETS

    rows = [{"name": name, **asdict(info)} for name, info in DATASETS.items()]
    if common.json:
        say_json(rows)
    else:
        say_table(
            ("name", "kind", "licence", "title"),
            [(r["name"], r["kind"], re.split(r" \(|[,;]", r["licence"])[0], r["title"]) for r in rows],
        )


@group.command("info")
@common_options()
def info(name: DatasetName, common: Common) -> None:
    """Show one dataset: licence, citation, where to get it."""
    from pneumoscope.datasets.registry import dataset_info

    found: dict[str, Any] = {"name": name, **asdict(dataset_info(name))}
    say_result(common, found, found)


@group.command("phantom")
@common_options("seed", "overwrite", options=PhantomOptions)
def phantom(out: Out, common: Common, options: PhantomOptions) -> None:
    """Make synthetic chest CTs with exact masks.

    The three sites differ as hospitals do: field of view, noise and kernel, slice thickness, Hounsfield offset, how
    readers draw. The same seed gives the same scans.
    """
    from pneumoscope.datasets.phantom.folder import write_phantom

    with progress_for(common) as progress:
        cases = write_phantom(out, overwrite=common.overwrite, progress=progress, **vars(options))
    say_result(
        common,
        {"folder": out, "site": options.site, "seed": options.seed, "cases": cases},
        f"{len(cases)} case{'s' * (len(cases) != 1)} of site {options.site} in {out}",
    )


@common_options("jobs", "on", "cluster")
def check(
    name: DatasetName,
    root: Root,
    common: Common,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at the listing only: names, pairs, empty files; open nothing.")
    ] = False,
) -> None:
    """Check whether a dataset is complete and readable.

    Every file is read to its end and what is there is counted and held against the published counts. The exit code is
    0 for a complete dataset, 1 for an incomplete one, and 2 for a folder that is not that dataset.
    """
    from pneumoscope.datasets.check import check_dataset

    with progress_for(common) as progress:
        found = check_dataset(name, root, quick=quick, progress=progress)
    say_result(common, found.as_dict(), lambda: _show_check(found))
    if not found.whole:
        raise typer.Exit(1)


def _show_check(found: DatasetCheck) -> None:
    from pneumoscope.datasets.check import listed

    if found.counts:
        say_table(
            ("count", "found", "published", ""),
            [
                (
                    count.name.replace("_", " ").replace("@", " of "),
                    "-" if count.found is None else count.found,
                    "-" if count.published is None else count.published,
                    "DIFFERS" if count.differs else count.note,
                )
                for count in found.counts
            ],
        )
    for problem in found.problems:
        say(f"problem: {problem.case + ': ' if problem.case else ''}{problem.what}")
    for note in found.notes:
        say(f"note: {note}")
    for name in listed(found.beyond):
        say(f"beyond: {name}")
    how = "the listing is" if found.quick else "it is"
    say(f"{how} complete" if found.whole else f"{found.dataset} is incomplete: {_why(found)}")


def _why(found: DatasetCheck) -> str:
    differ = sum(count.differs for count in found.counts)
    parts = [f"{len(found.problems)} problems"] if found.problems else []
    return ", ".join([*parts, f"{differ} counts differ"] if differ else parts)


@common_options("jobs", "on", "cluster", "overwrite", options=ConvertOptions)
def convert(name: DatasetName, root: Root, out: Out, common: Common, options: ConvertOptions) -> None:
    """Write a dataset in the layout of another tool.

    nnunet is nnU-Net's raw data, slices are 16-bit PNG pictures, manifest is NIfTI files with a table. Scans come back
    bit for bit: whole Hounsfield units are stored as integers, others as float32 (slices are always whole). sources.csv
    says whose each scan is and under which licence.
    """
    from pneumoscope.datasets.convert import convert_dataset

    with progress_for(common) as progress:
        done = convert_dataset(name, root, out, overwrite=common.overwrite, progress=progress, **vars(options))
    if common.json:
        say_json(asdict(done))
    else:
        undrawn = (
            f", {len(done.without_infiltrate)} of them without infiltrate masks" if done.without_infiltrate else ""
        )
        say(f"{len(done.cases)} case{'s' * (len(done.cases) != 1)} in {done.folder} for {done.to}{undrawn}")
    if done.failed:
        first = next(iter(done.failed.values()))
        more = f" (and {len(done.failed) - 1} more)" if len(done.failed) > 1 else ""
        asked = len(done.failed) + len(done.cases)
        raise RunError(f"{len(done.failed)} of {asked} cases could not be read; left out: {first}{more}")


@common_options("seed", "overwrite", options=SplitOptions)
def split(name: DatasetName, root: Root, out: Out, common: Common, options: SplitOptions) -> None:
    """Split a dataset for cross-validation.

    Every case is tested in exactly one fold, and no patient stands on two sides. Writes split.json (how, and what
    leaks), folds.csv (one row per fold and case), and a table of slices per fold, or nnU-Net's splits_final.json.
    """
    from pneumoscope.datasets.splits.files import split_dataset

    with progress_for(common) as progress:
        summary = split_dataset(name, root, out, overwrite=common.overwrite, progress=progress, **vars(options))
    say_result(common, summary, lambda: _show_split(summary, out))


def _show_split(summary: dict[str, Any], out: Path) -> None:
    say_table(
        ("fold", "train", "val", "test", "leaking"),
        [
            (n, fold["train"], fold["val"], fold["test"], len(fold["leaking_groups"]))
            for n, fold in enumerate(summary["folds"])
        ],
    )
    say(f"{summary['unit']}; {summary['cases']} cases of {summary['groups']} groups that stay together")
    for link in summary["suspected_overlaps_not_tied"]:
        say(f"may leak: {link['a']} and {link['b']}: {link['reason']}; use --links or --link-suspected")
    say(f"written to {out}")


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
        say_result(common, rules, rules)
        return
    if out is None:
        raise typer.BadParameter("Missing option '--out' / '-o'")
    with progress_for(common) as progress:
        result = audit_dataset(
            name, root, out, options, overwrite=common.overwrite, resume=common.resume, progress=progress
        )
    say_result(common, result.summary, lambda: _show_audit(result, out, options.fix))
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


def _show_audit(result: AuditResult, out: Path, fix: Path | None) -> None:
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
        say(f"not checked in {entry['cases']} cases: {entry['rule']} ({entry['why']})")
    repairs = result.summary["repairs"]
    if repairs is not None:
        say_fields({"repaired, voxels": repairs["voxels"], "not repaired, findings": repairs["left"]})
        say(f"cleaned copy in {fix}")
    say(f"written to {out}")
