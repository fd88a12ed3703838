"""Synthetic chest CTs with exact masks, from three made-up hospitals.

`make_phantom` gives one labelled scan; `write_phantom` and `read_phantom` a data set on disk. The same site, patient,
seed and size give the same scan. A size changes the matrix and the number of slices; the body and its lesions stay,
only the vessels branch differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import LabelledScan
from pneumoscope.datasets.phantom_folder import read_phantom, write_phantom
from pneumoscope.datasets.phantom_patient import draw_patient
from pneumoscope.datasets.phantom_reader import Fault, drawn_labels, overlook_small, plant_faults, true_labels
from pneumoscope.datasets.phantom_scanner import Protocol, chunks, expose, paint_slab, plan_scan
from pneumoscope.datasets.phantom_sites import SITES, PhantomSite, phantom_site, phantom_size
from pneumoscope.datasets.phantom_tissue import lung_labels
from pneumoscope.errors import DatasetError
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume

__all__ = ["SITES", "PhantomScan", "make_phantom", "read_phantom", "scan_patient", "write_phantom"]

DETAIL = {"tiny": (9.0, 150), "small": (6.0, 450), "full": (4.5, 700)}
"""How finely the body is kept, in mm, and how many branches its vessels have, per size."""


@dataclass(frozen=True, eq=False)
class PhantomScan:
    """One synthetic scan with everything that is known about it.

    Attributes:
        scan: what the site would give away; `scan.lungs` is None where the site stores none.
        lungs: the exact lungs, always.
        faults: annotation faults planted into `scan.infiltrate`.
    """

    scan: LabelledScan
    lungs: Mask
    faults: tuple[Fault, ...]


def make_phantom(site: str, patient: int, *, seed: int = 0, size: str = "full") -> LabelledScan:
    """A synthetic chest CT of one patient of a site.

    Args:
        site: ``A``, ``B`` or ``C``.
        patient: 0 or more; each number is another person. Some carry planted annotation faults (see `scan_patient`).
        seed: another seed gives other people under the same numbers.
        size: ``full`` (the papers' matrix and slice distance), ``small`` (160 to 192 pixels, about 25 to 40 slices)
            or ``tiny`` (48 to 64 pixels, about 10 slices, for tests).

    Returns:
        The scan with `infiltrate` as the site's reader drew it, faults included, and `truth` the exact infiltrate
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
