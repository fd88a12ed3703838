"""Change between two dates, and the noise floor below which no change is measurable.

Volumes and shares of both lungs and of each are those of each scan on its own grid, so no registration enters them;
zones are those of the baseline, and the follow-up's infiltrate is laid over them.

Noise floor of a difference of volumes: 1.96 x sqrt(S1^2 + S2^2) x sqrt(b^2 + e^2), and at least `LEAST_ML`. S1 and S2
are the surfaces of the infiltrate on the two dates; b is how far a border drawn twice on an unchanged patient moves as
a whole (`BORDER_MM`); e is how far the map between the dates moves when the registration is done again from another
start, and is only in what depends on the map. It is a rule with one measured constant, not a property of this patient;
it knows nothing of a change of scanner, kernel or contrast agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.geometry import Grid
from pneumoscope.preprocess.registration import WorkingCopy
from pneumoscope.volume import Mask


@dataclass(frozen=True, eq=False)
class Aligned:
    """A follow-up laid over its baseline."""

    change: Change  # the numbers
    fates: Mask  # labels of `FATES` on the baseline's grid
    infiltrate: Mask  # the follow-up's infiltrate on the baseline's grid
    baseline: WorkingCopy  # the baseline's working copy, for pictures
    followup_hu: NDArray[np.float32]  # (i, j, k) the follow-up on the grid of that copy


BORDER_MM = 0.25
"""Standard deviation of the mean place of a border annotated twice. Measured: 0.14 mm (root mean square) over eight
synthetic patients of three sites, each scanned twice unchanged (other noise, voxels shifted by part of one) and
segmented with the shipped networks; 0.25 mm is its upper 95 % limit with eight pairs."""

LEAST_ML = 1.0  # Smaller differences are never called a change; our choice, some voxels of a usual scan

Z95 = 1.96

Verdict = Literal["more", "less", "no measurable change", "not measurable"]

FATES: Mapping[int, str] = {1: "new", 2: "resolved", 3: "persistent", 4: "denser", 5: "thinner"}
"""Labels of `change.nii.gz`; denser and thinner are parts of what persists."""

DENSITY_STEP_HU = 100.0
"""Persistent infiltrate counts as denser or thinner beyond this change of density, smoothed over 3 mm and after the
change of healthy lung is taken off (breath, kernel). Our choice."""


@dataclass(frozen=True)
class RegionChange:
    """One region on two dates."""

    baseline_ml: float  # infiltrate on the first date
    followup_ml: float  # infiltrate on the second
    change_ml: float  # the difference
    noise_ml: float  # a smaller difference is no measurable change
    baseline_percent: float | None  # share of the region; None without lung
    followup_percent: float | None  # likewise
    change_points: float | None  # difference of the shares in percentage points; None when one is missing
    noise_points: float | None  # the floor of the shares; None without lung
    verdict: Verdict  # of the share where there is one (so that a deeper breath is no change), else of the volume


@dataclass(frozen=True)
class FateVolume:
    """Infiltrate that met one fate."""

    ml: float  # on the baseline's grid
    noise_ml: float  # what an unchanged patient may show
    measurable: bool  # whether `ml` is above it


@dataclass(frozen=True)
class Change:
    """What happened between the baseline and one follow-up."""

    baseline: str  # name of the first scan
    followup: str  # name of the second
    lung_ml: tuple[float, float]  # lung volume on both dates
    lung_change_percent: float | None  # its difference in percent of the baseline: breath, or collapse
    regions: Mapping[str, RegionChange]  # ``total``, ``right``, ``left`` and the baseline's zones
    fates: Mapping[str, FateVolume]  # ``new``, ``resolved``, ``persistent``, ``denser``, ``thinner``
    # mean density change of what persists, less that of healthy lung; None when nothing persists
    density_change_hu: float | None
    healthy_change_hu: float | None  # density change of lung that is healthy on both dates
    registration: Mapping[str, float]  # measures of quality, see `pneumoscope.cases.followup`
    repeat_mm: float  # how far the map moved when it was made again (e above)
    days: int | None = None  # from the baseline's study date to the follow-up's; None where one is not known

    @property
    def verdict(self) -> Verdict:
        """Of both lungs together."""
        return self.regions["total"].verdict

    def as_dict(self) -> dict[str, object]:
        """Nested plain JSON values."""
        return {**asdict(self), "verdict": self.verdict}


def read_change(plain: Mapping[str, Any]) -> Change:
    """The change whose `dataclasses.asdict` was kept as JSON."""
    values = dict(plain)
    values["lung_ml"] = tuple(values["lung_ml"])
    values["regions"] = {name: RegionChange(**region) for name, region in values["regions"].items()}
    values["fates"] = {name: FateVolume(**fate) for name, fate in values["fates"].items()}
    return Change(**values)


def surface_mm2(mask: NDArray[np.bool_], grid: Grid) -> float:
    """Area of a mask's border: its voxel faces, times 2/3, since faces overstate a smooth surface by 3/2 on average."""
    steps = np.asarray(grid.spacing_mm)
    padded = np.pad(mask, 1)
    area = 0.0
    for axis in range(3):
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        faces = np.count_nonzero(padded[tuple(ahead)] != padded[tuple(behind)])
        area += faces * float(steps.prod() / steps[axis])
    return area * 2 / 3


def noise_ml(baseline_mm2: float, followup_mm2: float, repeat_mm: float = 0.0) -> float:
    """The floor of a difference of volumes in ml; see the module."""
    surface = float(np.hypot(baseline_mm2, followup_mm2))
    return max(LEAST_ML, Z95 * surface * float(np.hypot(BORDER_MM, repeat_mm)) / 1000.0)


def region_change(infiltrate_ml: tuple[float, float], lung_ml: tuple[float, float], floor_ml: float) -> RegionChange:
    """Compare one region on two dates.

    Args:
        infiltrate_ml: on both dates.
        lung_ml: of the region on both dates.
        floor_ml: from `noise_ml`.
    """
    before, after = (float(v) for v in infiltrate_ml)
    shares = [100 * float(spot / lung) if lung > 0 else None for spot, lung in zip(infiltrate_ml, lung_ml, strict=True)]
    first, second = shares
    points = None if first is None or second is None else second - first
    floor_points = None if min(lung_ml) <= 0 else float(100 * floor_ml / min(lung_ml))
    verdict: Verdict = "not measurable"
    if points is not None and floor_points is not None:
        verdict = _verdict(points, floor_points)
    return RegionChange(before, after, after - before, floor_ml, first, second, points, floor_points, verdict)


def _verdict(change: float, floor: float) -> Verdict:
    if abs(change) <= floor:
        return "no measurable change"
    return "more" if change > 0 else "less"


def fate_map(
    baseline: NDArray[np.bool_], followup: NDArray[np.bool_], density_change_hu: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Labels of `FATES` on the baseline's grid, (i, j, k).

    Args:
        baseline: infiltrate of the first date.
        followup: infiltrate of the second, laid over the baseline.
        density_change_hu: smoothed change of density, healthy lung's taken off.
    """
    fates = np.zeros(baseline.shape, np.uint8)
    fates[followup & ~baseline] = 1
    fates[baseline & ~followup] = 2
    both = baseline & followup
    fates[both] = 3
    fates[both & (density_change_hu > DENSITY_STEP_HU)] = 4
    fates[both & (density_change_hu < -DENSITY_STEP_HU)] = 5
    return fates
