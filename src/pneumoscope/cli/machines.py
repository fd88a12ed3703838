"""`pneumoscope doctor`, `cluster check`, `merge` and `cache`: this machine and others, and what they leave."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from pneumoscope._version import __version__
from pneumoscope.cli.options import Common, common_options, new_group
from pneumoscope.cli.output import progress_for, say, say_fields, say_json, say_result
from pneumoscope.errors import PneumoscopeError, RunError
from pneumoscope.processes import processors

LOW_MEMORY_GB = 3.0
LOW_DISK_GB = 1.0
GB = 1e9


@dataclass(frozen=True)
class Checkup:
    """What `examine` found."""

    versions: dict[str, str]  # package -> version, or "missing"; Python and the system beside them
    # package of an optional part -> version, or how to install it; weights of other programs -> where
    optional: dict[str, str]
    devices: dict[str, str]  # device name as `--device` takes it -> what it is
    precisions: dict[str, str]  # precision as `--precision` takes it -> on which devices, and why not elsewhere
    # free and total memory, free disk in the current folder, in GB (10^9 bytes), processor cores
    memory: dict[str, float]
    models: dict[str, str]  # shipped model -> "ok" or what is wrong
    problems: tuple[str, ...]  # what stops work; empty on a healthy machine
    notes: tuple[str, ...]  # what is worth knowing but stops nothing


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("doctor")(doctor)
    app.command("merge")(merge)
    app.add_typer(cluster_group, name="cluster")
    app.add_typer(cache_group, name="cache")


@common_options()
def doctor(common: Common) -> None:
    """Check this machine: what is installed, what is missing.

    Shows versions, devices, the precisions that are fast on them, free memory and disk, and whether the shipped
    models are whole. Exit code 1 when something is missing.
    """
    found = examine()
    if common.json:
        say_json(asdict(found))
    else:
        for title in ("versions", "optional", "devices", "precisions", "memory", "models"):
            say_fields({title: getattr(found, title)})
        for note in found.notes:
            say(f"note: {note}")
        for problem in found.problems:
            say(f"problem: {problem}")
        if not found.problems:
            say("nothing is missing")
    if found.problems:
        raise RunError(f"{len(found.problems)} found: {'; '.join(found.problems)}")


def examine() -> Checkup:
    """Look at packages, devices, memory and shipped models; reads only this machine, never the network."""
    import psutil

    problems: list[str] = []
    notes: list[str] = []
    devices, precisions = _torch_devices(problems)
    free, total = psutil.virtual_memory().available / GB, psutil.virtual_memory().total / GB
    disk = shutil.disk_usage(Path.cwd()).free / GB
    if free < LOW_MEMORY_GB:
        notes.append(f"{free:.1f} GB of memory are free; the demo wants {LOW_MEMORY_GB:.0f} GB")
    if disk < LOW_DISK_GB:
        notes.append(f"{disk:.1f} GB of disk are free here; a run with figures and 3D wants {LOW_DISK_GB:.0f} GB")
    memory = {
        "free_gb": round(free, 1),
        "total_gb": round(total, 1),
        "disk_free_gb": round(disk, 1),
        "cores": processors(),
    }
    return Checkup(
        versions=_versions(problems),
        optional=_optional(),
        devices=devices,
        precisions=precisions,
        memory=memory,
        models=_models(problems),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _versions(problems: list[str]) -> dict[str, str]:
    versions = {"pneumoscope": __version__, "python": platform.python_version(), "system": platform.platform()}
    versions |= {name: _installed(name) or "missing" for name in _requirements()}
    problems += [f"the package {n} is missing; run `pip install {n}`" for n, v in versions.items() if v == "missing"]
    return versions


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


OPTIONAL = {
    "fast": ("onnx", "onnxruntime", "openvino"), "cluster": ("distributed", "dask-jobqueue", "cryptography", "bokeh"),
    "nnunet": ("nnunetv2",), "monai": ("monai",), "lungmask": ("lungmask",),
}  # fmt: skip
"""Packages of optional parts by the extra that brings them."""


def _optional() -> dict[str, str]:
    """Packages of the extras and weights of other programs, none of them imported or read."""
    from pneumoscope.inference.external import files_of
    from pneumoscope.inference.lungmask import FILES

    found = {
        name: _installed(name) or f"not here; pip install 'pneumoscope[{extra}]'"
        for extra, names in OPTIONAL.items()
        for name in names
    }
    for model in (*(f"lungmask:{name}" for name in FILES), "totalsegmentator:total"):
        try:
            found[model] = f"weights in {files_of(model)[0].parent}"
        except (PneumoscopeError, ImportError):  # lungmask's folder is torch's
            found[model] = "weights not here"
    return found


def _requirements() -> list[str]:
    """Names of the packages that the installed pneumoscope declares; empty when it runs from a bare source folder."""
    try:
        declared = metadata.requires("pneumoscope") or []
    except metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in declared if "extra ==" not in line]


def _torch_devices(problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    try:
        import torch
    except (ImportError, OSError) as problem:
        problems.append(f"torch cannot be imported ({problem}); install it again")
        return {}, {}
    capability = torch.backends.cpu.get_cpu_capability()
    devices = {"cpu": f"{platform.processor() or platform.machine()}, {capability}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / GB:.0f} GB"
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices, {"fp32": "every device", "bf16": _bf16(devices)}


def _bf16(devices: Iterable[str]) -> str:
    """Where bf16 is computed by the hardware; emulation is slower than fp32 and does not count."""
    import torch

    from pneumoscope.training.devices import has_fast_bf16

    where = [name for name in devices if has_fast_bf16(torch.device(name))]
    return ", ".join(where) or "no device here computes it by itself; auto takes fp32"


def _models(problems: list[str]) -> dict[str, str]:
    from pneumoscope.models import cards

    states = {}
    for name in cards.shipped_models():
        try:
            report = cards.verify(cards.find_model(name))
            states[name] = "ok" if report.ok else report.sentence()
        except PneumoscopeError as problem:
            states[name] = str(problem)
        if states[name] != "ok":
            problems.append(f"model {name}: {states[name]}")
    return states


cache_group = new_group("Prepared scans and slices kept between runs; off unless PNEUMOSCOPE_CACHE is set.")

Folder = Annotated[
    Path | None,
    typer.Option("--folder", metavar="DIR", help="Another folder than that of PNEUMOSCOPE_CACHE, or the user's own."),
]


@cache_group.command("show")
@common_options()
def show(common: Common, folder: Folder = None) -> None:
    """Show where the cache is and what it holds.

    And whether runs use it: only where PNEUMOSCOPE_CACHE is set.
    """
    from pneumoscope.datasets.cache import cache_folder, is_on, read_entries

    place = folder or cache_folder()
    entries = read_entries(place)
    used = datetime.fromtimestamp(max(e.used_ns for e in entries) / 1e9, UTC) if entries else None
    facts = {
        "used by runs": "yes" if is_on() else "no, PNEUMOSCOPE_CACHE is not set",
        "folder": place,
        "entries": len(entries),
        "mib": round(sum(e.size_bytes for e in entries) / 2**20, 1),
        "last use": None if used is None else used.isoformat(timespec="seconds"),
    }
    say_result(
        common, {**{name.replace(" ", "_"): value for name, value in facts.items()}, "used_by_runs": is_on()}, facts
    )


@cache_group.command("clear")
@common_options()
def clear(common: Common, folder: Folder = None) -> None:
    """Remove every entry of the cache.

    Runs that use an entry at the moment are not disturbed.
    """
    from pneumoscope.datasets.cache import ArrayCache, cache_folder, read_entries

    place = folder or cache_folder()
    entries = read_entries(place)
    if entries:
        ArrayCache(place).clear()
    left = len(read_entries(place))
    say_result(
        common,
        {"folder": place, "removed": len(entries) - left, "left": left},
        f"{len(entries) - left} entries removed from {place}" + (f", {left} could not be" if left else ""),
    )


cluster_group = new_group("Workers on other machines: check that they can run.")


@cluster_group.callback()
def _cluster() -> None:
    """Keeps `check` a verb of its own."""


@common_options("overwrite")
def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="Folders that --part K/N wrote.")],
    common: Common,
) -> None:
    """Make one run of the parts that --part wrote.

    Writes one cases.csv in the order of the input, and links or copies every case folder. Of evaluate, data audit and
    crossval the work is put together; the same call with --resume on OUT writes their tables.
    """
    from pneumoscope.cases.merge import merge_parts

    merged = merge_parts(out, parts, overwrite=common.overwrite)
    if common.json:
        say_json({"out": out, "parts": len(parts), "rows": merged.rows, "failed": merged.failed})
    elif merged.table is None:
        say(f"{len(parts)} parts are in {out}; the verb that made them writes its tables there with --resume")
    else:
        say(f"{merged.rows} rows of {len(parts)} parts, {merged.failed} failed: {merged.table}")


@cluster_group.command("check")
@common_options("jobs", "on", "cluster")
def check(
    common: Common,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="A folder that all machines share, as results will be.")
    ] = Path("pneumoscope-check"),
    wait: Annotated[
        float, typer.Option("--wait", min=1, metavar="SECONDS", help="How long a worker may take to start.")
    ] = 300.0,
) -> None:
    """Try a worker and say what it sees, or what is wrong.

    The worker must start, see DIR and be able to write there, and have the same pneumoscope; without --on this is
    tried on SLURM.
    """
    from dataclasses import replace

    from pneumoscope.jobs.check import check_machines

    common = replace(common, on="slurm") if common.on == "local" else common
    with progress_for(common) as progress:
        seen = check_machines(folder, wait_seconds=wait, progress=progress)
    say_result(common, seen, seen)
