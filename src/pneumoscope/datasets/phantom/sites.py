"""The three synthetic hospitals: scanner, patients and the way their reader draws.

They differ as the papers' sets do: A stands for MedSeg set 2 (630 pixels, pictures exported from the web), B for
Coronacases (512 pixels, thin and sharp), C for MosMedData (512 pixels, 8 mm slices, faint ground glass, no lung masks).
Numbers are our choice unless said otherwise; they were set so that a network trained on one site does worse on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pneumoscope.errors import DatasetError
from pneumoscope.geometry import AxisCodes

Size = Literal["tiny", "small", "full"]


@dataclass(frozen=True)
class Scanner:
    """How a site's pictures look."""

    pixels: Mapping[str, int]  # matrix per size
    slice_mm: Mapping[str, tuple[float, ...]]  # distances between slices that occur, per size
    slab_mm: float  # thickness a slice averages over; None for the slice distance
    field_mm: tuple[float, float]  # smallest and largest field of view
    noise_hu: float  # standard deviation of the noise in soft tissue
    kernel: Literal["soft", "sharp"]  # ``soft`` blurs picture and noise, ``sharp`` lifts edges and fine noise
    # how far the stored values are from Hounsfield units
    offset_hu: float
    gain: float
    levels: int | None  # grey levels the values went through, None for whole HU
    ceiling_hu: float  # values above are lost
    air_outside: bool  # whether corners outside the round field of view are blanked
    stored_axes: AxisCodes  # orientation on disk


@dataclass(frozen=True)
class Patients:
    """Who comes to a site."""

    # chance of a severe case, and the shares of lung they have
    severe: float
    severe_share: tuple[float, float]
    mild_share: tuple[float, float]  # shares of lung of the others
    height: tuple[float, float]  # part of the lung's height with lesions; sets how many slices have none
    ground_glass_hu: tuple[float, float]  # faintest and densest ground glass
    consolidation: float  # chance that a lesion has a dense core
    radius_mm: tuple[float, float]  # lesion radii
    dependent_hu: float  # how much denser the healthy back of the lung is than the front
    lung_hu: float  # healthy parenchyma in the middle


@dataclass(frozen=True)
class Reader:
    """How a site's reader draws."""

    margin_mm: float  # how far outside (positive) or inside (negative) the true border
    rounding_mm: float  # how much the outline is smoothed; 0 follows the true border
    vessels: bool  # whether vessels inside are part of the infiltrate
    faintest_hu: float | None  # places below are left out (after the site's own offset), None to keep all
    smallest_ml: float  # smaller lesions are overlooked
    kinds: bool  # whether ground glass and consolidation are distinguished
    lungs: bool  # whether lung masks are stored


@dataclass(frozen=True)
class PhantomSite:
    """One synthetic hospital."""

    name: str
    title: str
    scanner: Scanner
    patients: Patients
    reader: Reader


SITES: Mapping[str, PhantomSite] = {
    "A": PhantomSite(
        "A",
        "web exports, generous outlines",
        Scanner(
            pixels={"tiny": 64, "small": 192, "full": 630},
            slice_mm={"tiny": (26.0,), "small": (7.5, 9.0, 10.0), "full": (1.5, 3.0, 3.0, 5.0)},
            slab_mm=3.0, field_mm=(325.0, 365.0), noise_hu=16.0, kernel="soft", offset_hu=32.0, gain=0.94,
            levels=256, ceiling_hu=240.0, air_outside=False, stored_axes=("L", "P", "S"),
        ),
        Patients(
            severe=0.35, severe_share=(0.15, 0.38), mild_share=(0.02, 0.10), height=(0.42, 0.66),
            ground_glass_hu=(-670.0, -380.0), consolidation=0.4, radius_mm=(11.0, 40.0), dependent_hu=50.0,
            lung_hu=-860.0,
        ),
        Reader(2.8, 2.2, True, None, 0.0, True, True),
    ),
    "B": PhantomSite(
        "B",
        "thin sharp slices, tight outlines without vessels",
        Scanner(
            pixels={"tiny": 56, "small": 160, "full": 512},
            slice_mm={"tiny": (26.0,), "small": (7.5,), "full": (1.0,)},
            slab_mm=1.0, field_mm=(350.0, 400.0), noise_hu=46.0, kernel="sharp", offset_hu=0.0, gain=1.0,
            levels=None, ceiling_hu=3071.0, air_outside=False, stored_axes=("L", "P", "S"),
        ),
        Patients(
            severe=0.3, severe_share=(0.12, 0.32), mild_share=(0.02, 0.10), height=(0.52, 0.78),
            ground_glass_hu=(-715.0, -430.0), consolidation=0.35, radius_mm=(11.0, 36.0), dependent_hu=85.0,
            lung_hu=-850.0,
        ),
        Reader(-0.5, 0.0, False, -660.0, 0.0, False, True),
    ),
    "C": PhantomSite(
        "C",
        "thick slices, faint ground glass, no lung masks",
        Scanner(
            pixels={"tiny": 48, "small": 160, "full": 512},
            slice_mm={"tiny": (30.0,), "small": (11.0,), "full": (8.0,)},
            slab_mm=8.0, field_mm=(380.0, 430.0), noise_hu=24.0, kernel="soft", offset_hu=-40.0, gain=1.0,
            levels=None, ceiling_hu=3071.0, air_outside=True, stored_axes=("L", "A", "S"),
        ),
        Patients(
            severe=0.05, severe_share=(0.08, 0.15), mild_share=(0.01, 0.07), height=(0.34, 0.60),
            ground_glass_hu=(-745.0, -490.0), consolidation=0.08, radius_mm=(10.0, 30.0), dependent_hu=70.0,
            lung_hu=-845.0,
        ),
        Reader(-1.2, 1.0, True, None, 0.35, False, False),
    ),
}  # fmt: skip


def phantom_site(name: str) -> PhantomSite:
    """A site by name, in either case of letters; DatasetError lists the sites there are."""
    if name.upper() not in SITES:
        raise DatasetError(f"unknown synthetic site {name!r}; there are {', '.join(SITES)}")
    return SITES[name.upper()]


def phantom_size(name: str) -> Size:
    """A size by name; ``paper`` is another word for ``full``."""
    if name in ("tiny", "small", "full"):
        return name  # type: ignore[return-value]
    if name == "paper":
        return "full"
    raise DatasetError(f"unknown phantom size {name!r}; there are tiny, small and full")
