"""Synthetic chest CTs with exact masks, from three made-up hospitals.

`make_phantom` gives one labelled scan; `write_phantom` and `read_phantom` a dataset on disk. The same site, patient,
seed and size give the same scan. A size changes the matrix and the number of slices; the body and its lesions stay,
only the vessels branch differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.formats.manifest import case_of_row, load_scan
from pneumoscope.datasets.options import PhantomOptions
from pneumoscope.datasets.phantom.patient import draw_patient
from pneumoscope.datasets.phantom.scanner import (
    Fault,
    Protocol,
    chunks,
    drawn_labels,
    expose,
    overlook_small,
    paint_slab,
    plan_scan,
    plant_faults,
    true_labels,
)
from pneumoscope.datasets.phantom.sites import PhantomSite, phantom_site, phantom_size
from pneumoscope.datasets.phantom.tissue import lung_labels
from pneumoscope.datasets.registry import PHANTOM_FILE, dataset_info
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.io.files import prepare_folder, read_json, write_csv, write_json
from pneumoscope.io.read import read_mask
from pneumoscope.io.scans import MANIFEST, MANIFEST_COLUMNS, read_manifest
from pneumoscope.io.write import write_mask, write_volume
from pneumoscope.jobs.lock import locks
from pneumoscope.options import made_of
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume

DETAIL = {"tiny": (9.0, 150), "small": (6.0, 450), "full": (4.5, 700)}
"""How finely the body is kept, in mm, and how many branches its vessels have, per size."""


@dataclass(frozen=True, eq=False)
class PhantomScan:
    """One synthetic scan with everything that is known about it."""

    scan: LabelledScan  # what the site would give away; `scan.lungs` is None where the site stores none
    lungs: Mask  # the exact lungs, always
    faults: tuple[Fault, ...]  # annotation faults planted into `scan.infiltrate`


def make_phantom(site: str, patient: int, *, seed: int = 0, size: str = "full") -> LabelledScan:
    """A synthetic chest CT of one patient of a site.

    Args:
        site: ``A``, ``B`` or ``C``.
        patient: 0 or more; each number is another person. Some carry planted annotation faults (see `scan_patient`).
        seed: another seed gives other people under the same numbers.
        size: ``full`` (the papers' matrix and slice distance), ``small`` (160 to 192 pixels, about 25 to 40 slices)
            or ``tiny`` (48 to 64 pixels, about 10 slices, for tests).

    Returns:
        The scan with `infiltrate` as the site's reader annotated it, faults included, and `truth` the exact infiltrate
        (1 = ground-glass, 2 = consolidation). `lungs` is None at site C.

    Raises:
        DatasetError: unknown site or size, negative patient or seed.
    """
    return scan_patient(site, patient, seed=seed, size=size).scan


def scan_patient(site: str, patient: int, *, seed: int = 0, size: str = "full") -> PhantomScan:
    """As `make_phantom`, with the exact lungs and the list of planted faults."""
    if patient < 0 or seed < 0:
        raise DatasetError(f"a phantom needs a patient and a seed of 0 or more, got {patient} and {seed}")
    hospital, scale = phantom_site(site), phantom_size(size)
    rng = np.random.default_rng([seed, ord(hospital.name), patient])
    of_body, of_scan, of_noise, of_faults = rng.spawn(4)
    step_mm, branches = DETAIL[scale]
    body = draw_patient(hospital, of_body, step_mm=step_mm, branches=branches)
    protocol = plan_scan(hospital.scanner, body, scale, of_scan)
    shape = protocol.where.shape
    hu = np.empty(shape, np.float32)
    lungs, truth, drawn = (np.empty(shape, np.uint8) for _ in range(3))
    inside = np.empty(shape, bool)
    for part in chunks(protocol):
        painted = paint_slab(body, protocol, part)
        lungs[part] = lung_labels(painted, protocol.where.slices(part))
        truth[part] = true_labels(painted)
        drawn[part] = drawn_labels(painted, hospital.reader)
        inside[part] = painted.body < -12
        hu[part] = expose(painted, protocol, hospital.scanner, part, of_noise)
    overlook_small(drawn, hospital.reader.smallest_ml, protocol.grid.voxel_volume_ml)
    faults = plant_faults(drawn, lungs, inside, protocol, patient, of_faults)
    case = case_name(hospital.name, patient)
    return _assemble(hospital, case, protocol, hu, (lungs, truth, drawn), faults)


def case_name(site: str, patient: int) -> str:
    """``A-003`` for patient 3 of site A; the patient's id as well."""
    return f"{site}-{patient:03d}"


def _assemble(
    site: PhantomSite,
    case: str,
    protocol: Protocol,
    hu: NDArray[np.float32],
    masks: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]],
    faults: list[Fault],
) -> PhantomScan:
    """Arrays (z, y, x) as objects on the RAS+ grid; views, nothing is copied. Masks are lungs, truth, drawn."""
    grid = protocol.grid
    lungs, truth, drawn = (mask.transpose(2, 1, 0) for mask in masks)
    facts = {"site": site.name, "kernel": site.scanner.kernel, "made by": "pneumoscope phantom, synthetic"}
    volume = Volume(hu.transpose(2, 1, 0), grid, grid.reorient(site.scanner.stored_axes), case, (), facts)
    exact_lungs = Mask(lungs, grid, LUNG_LABELS)
    scan = LabelledScan(
        volume,
        exact_lungs if site.reader.lungs else None,
        Mask(drawn, grid, INFILTRATE_LABELS if site.reader.kinds else INFILTRATE_LABEL),
        Mask(truth, grid, INFILTRATE_LABELS),
    )
    return PhantomScan(scan, exact_lungs, tuple(faults))


FAULTS = "faults.csv"
FAULT_COLUMNS = ("case", "slice", "kind", "voxels", "x", "y", "z")
VERSION = 1  # Raised when the same seed would give other scans


def write_phantom(
    out: str | Path, site: str, patients: int, *, overwrite: bool = False, progress: Progress = silent, **options: Any
) -> list[str]:
    """Write the patients 0 .. patients - 1 of a site as a dataset; `options` are fields of `PhantomOptions`.

    The folder gets ``manifest.csv`` (any reader of manifests takes it), ``images``, ``lungs`` (not at site C),
    ``infiltrate``, ``truth`` (exact infiltrate and lungs), ``faults.csv`` and, last, ``phantom.json``. The same call
    on a finished folder finds it finished and writes nothing; an unfinished one is made again from the start.

    Returns:
        The case names.

    Raises:
        DatasetError: unknown site or size.
        InputError: an unknown format, no patient, a negative seed, or the folder holds another set and `overwrite` is
            not given.
    """
    made = made_of(PhantomOptions, {"site": site, "patients": patients, **options})
    name = phantom_site(site).name
    plan = {"version": VERSION, **asdict(made), "site": name, "size": phantom_size(made.size)}
    cases = [case_name(name, number) for number in range(patients)]
    folder = Path(out)
    if not overwrite and _finished(folder, plan):
        return cases
    _write(folder, plan, cases, overwrite, progress)
    return cases


@locks("folder")
def _write(folder: Path, plan: Mapping[str, Any], cases: Sequence[str], overwrite: bool, progress: Progress) -> None:
    prepare_folder(folder, marker=PHANTOM_FILE, overwrite=overwrite)
    name, patients = plan["site"], plan["patients"]
    (folder / PHANTOM_FILE).unlink(missing_ok=True)  # while it is being rewritten the folder is no finished set
    rows, faults = [], []
    for number in range(patients):
        progress(f"phantom {name}", number, patients)
        row, found = _write_case(folder, plan, number)
        rows.append(row)
        faults.extend(found)
    progress(f"phantom {name}", patients, patients)
    write_csv(folder / FAULTS, FAULT_COLUMNS, faults)
    write_csv(folder / MANIFEST, MANIFEST_COLUMNS, rows)
    title = phantom_site(name).title
    info = dataset_info("phantom")
    write_json(
        folder / PHANTOM_FILE,
        {**plan, "title": title, "licence": info.licence, "citation": info.citation, "cases": cases},
    )


def _finished(folder: Path, plan: Mapping[str, Any]) -> bool:
    """Whether the folder already holds exactly this set."""
    path = folder / PHANTOM_FILE
    if not path.is_file():
        return False
    held = read_phantom_json(folder)
    return all(held.get(key) == value for key, value in plan.items())


def _write_case(folder: Path, plan: Mapping[str, Any], number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make and write one patient; gives its row of the manifest and its planted faults."""
    made = scan_patient(plan["site"], number, seed=plan["seed"], size=plan["size"])
    case, native = made.scan.volume.case, made.scan.volume.native
    image = _write_image(folder, made, plan)
    masks = {
        f"lungs/{case}.nii.gz": made.scan.lungs,
        f"infiltrate/{case}.nii.gz": made.scan.infiltrate,
        f"truth/{case}-lungs.nii.gz": made.lungs,
        f"truth/{case}-infiltrate.nii.gz": made.scan.truth,
    }
    for name, mask in masks.items():
        if mask is not None:
            write_mask(mask, folder / name, native)
    row = {
        "case": case,
        "image": image,
        "lungs": f"lungs/{case}.nii.gz" if made.scan.lungs is not None else "",
        "infiltrate": f"infiltrate/{case}.nii.gz",
        "patient": case,
        "date": f"2020-{3 + number // 28 % 9:02d}-{1 + number % 28:02d}",
        "source": f"phantom-{plan['site']}",
    }
    faults = [{**asdict(fault), "case": case} for fault in made.faults]
    for fault in faults:
        fault.update(x=fault.pop("x_mm"), y=fault.pop("y_mm"), z=fault.pop("z_mm"))
    return row, faults


def _write_image(folder: Path, made: PhantomScan, plan: Mapping[str, Any]) -> str:
    """Write the scan; gives its path within the folder."""
    volume = made.scan.volume
    if plan["format"] == "nifti":
        write_volume(volume, folder / "images" / f"{volume.case}.nii.gz")
        return f"images/{volume.case}.nii.gz"
    from pneumoscope.io.write import write_dicom_series

    write_dicom_series(
        volume,
        folder / "images" / volume.case,
        seed=f"{plan['seed']}/{plan['size']}",
        patient=f"PHANTOM-{volume.case}",
        kernel=volume.source["kernel"].upper(),
        overwrite=True,
    )
    return f"images/{volume.case}"


def read_phantom_json(root: str | Path) -> dict[str, Any]:
    """``phantom.json`` of a folder; DatasetError when there is none or it is damaged."""
    path = Path(root) / PHANTOM_FILE
    if not path.exists():
        raise DatasetError(
            f"has no {PHANTOM_FILE}: no synthetic dataset, or an unfinished one; run pneumoscope data phantom",
            path=root,
        )
    held: dict[str, Any] = read_json(path, error=DatasetError, remedy="make the dataset again")
    if not isinstance(held.get("cases"), list):
        raise DatasetError("is not the description of a synthetic dataset; make the dataset again", path=path)
    return held


def read_phantom(root: str | Path) -> list[Case]:
    """The cases of a folder written by `write_phantom`; scans are read when loaded.

    Raises:
        DatasetError: no such folder, an unfinished one, or a table that differs from the description.
    """
    held = read_phantom_json(root)
    try:
        refs = read_manifest(Path(root) / MANIFEST)
    except InputError as error:
        raise DatasetError(f"the synthetic dataset is damaged: {error}", path=root) from error
    if [ref.case for ref in refs] != held["cases"]:
        raise DatasetError(f"{MANIFEST} and {PHANTOM_FILE} name different cases; make the dataset again", path=root)
    return [case_of_row("phantom", ref, partial(_load, ref)) for ref in refs]


def _load(ref: Any) -> LabelledScan:
    """The scan with its masks, and the exact infiltrate where it lies beside."""
    scan = load_scan(ref)
    exact = ref.path.parent.parent / "truth" / f"{ref.case}-infiltrate.nii.gz"
    truth = read_mask(exact, INFILTRATE_LABELS) if exact.is_file() else None
    return LabelledScan(scan.volume, scan.lungs, scan.infiltrate, truth)
