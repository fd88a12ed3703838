"""Is it Hounsfield units? A CT given as a grey picture, shifted or rescaled looks like a CT and measures nonsense.

The test asks for what every chest CT in HU shows: a share of its voxels between -1100 and -400 HU (lung, or air
around the body), and values that are not squeezed into a picture's range. What fails is named with the likeliest
reason. It does not ask for more: clipped scans ([-1024, 600]), small fields of view filled with lung, padding far
below air and the overshoot of cubic resampling all pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, ReadError
from pneumoscope.geometry import Grid, reorient_array
from pneumoscope.volume import RAS

AIR_HU = -1024.0  # The lowest value kept: darker ones (padding, resampling overshoot) mean air
MIN_AIR_OR_LUNG_SHARE = 0.005  # A chest CT has far more than 0.5 % of its voxels between -1100 and -400 HU

MIN_TISSUE_SHARE = 0.005
"""A chest has far more than 0.5 % of its voxels between -300 and 300 HU; what a failed masking leaves has none."""

HIGHEST_HU, MAX_HIGH_SHARE = 4095, 0.02
"""Above the 12 bits of a CT there is metal only, on an extended scale, and never in 2 % of the voxels."""

MAX_NONFINITE_SHARE = 0.35
"""Blank corners of a round field of view take 21.5 %, of one resampled obliquely somewhat more."""

MAX_NONFINITE_SLICE_SHARE = 0.5  # A slice with more blank voxels than this counts as lost

COMMON_WINDOWS: tuple[tuple[int, int], ...] = (
    (-160, 240), (-1250, 250), (-1350, 150), (-1000, 400), (-1024, 600), (-1000, 200), (-1000, 1000), (-1024, 3071),
)  # fmt: skip
_SAMPLES = 2_000_000


def guess_not_hu(values: NDArray[np.generic]) -> str | None:
    """What finite `values` (any shape) look like when they are not HU, e.g. ``"shifted by +1024"``; None for HU."""
    low, high = float(values.min()), float(values.max())
    sample = _sample(values)
    lowest, highest = np.percentile(sample, (0.1, 99.9))

    def share(start: float, stop: float) -> float:
        return float(np.count_nonzero((sample >= start) & (sample <= stop))) / sample.size

    if share(55_000, 66_000) > 1e-3 or share(4.2e9, 4.3e9) > 1e-3:
        return "signed values read as unsigned (negative values wrapped to 2**16 and below)"
    if low >= 0 and high <= 255 and len(few := np.unique(sample[:: max(1, sample.size // 50_000)])) <= 10:
        return f"a mask (values {', '.join(f'{v:.4g}' for v in few)})"
    if highest - lowest < 50:
        return f"normalised to [{low:.3g}, {high:.3g}]"
    if share(-1100, -400) >= MIN_AIR_OR_LUNG_SHARE:
        if share(HIGHEST_HU, np.inf) > MAX_HIGH_SHARE:
            return f"values of another scale (up to {high:.0f}, where a CT ends at {HIGHEST_HU})"
        if share(-2100, -1500) > 0.05 and share(-200, 250) < 0.005 and share(-1100, -900) > 0.005:
            return "shifted by -1024 (the rescale intercept applied twice)"
        pile = float(np.count_nonzero(sample == high)) / sample.size
        if high < -100 and pile > 0.05:
            return f"clipped at [{low:.0f}, {high:.0f}] HU, so that no soft tissue is left"
        return None
    if lowest > -20 and highest <= 275:
        return f"an 8-bit picture windowed to about {_likely_window(sample)} HU"
    if lowest > -500 and float(np.count_nonzero(sample == low)) / sample.size > 0.05 and low < 0:
        return f"clipped at [{low:.0f}, {high:.0f}] HU, so that lung and air are lost"
    if share(-20, 400) > 0.02 and share(850, 1300) > 0.02:
        return "shifted by +1024 (stored without the rescale intercept)"
    if low >= 0:
        return "values without a negative one, perhaps a rescaled picture"
    return "values with neither lung nor air between -1100 and -400"


def require_hu(values: NDArray[np.generic], *, family: str = "IN-NII", path: str | Path | None = None) -> None:
    """Refuse values (finite, any shape, slope and intercept applied) that are not HU, naming the guess.

    `family` is the start of the code: ``IN-NII``, ``IN-ITK`` or ``IN-DCM``.

    Raises:
        ReadError: row 67.
    """
    guess = guess_not_hu(values)
    if guess:
        raise ReadError(
            f"does not hold Hounsfield units: it looks like {guess} (values {float(values.min()):.4g} to "
            f'{float(values.max()):.4g}); give the CT in HU, or intensity="hu" if these are HU after all',
            code=f"{family}-067",
            path=path,
        )


def check_content(
    values: NDArray[Any], *, family: str = "IN-NII", path: str | Path | None = None
) -> tuple[Finding, ...]:
    """Whether there is a chest in it, for every format alike.

    Refused are a constant volume, and one of air only (fewer than one voxel in a thousand above -900). Found are too
    little soft tissue, which is outside the intended use, and voxels above the range of a CT.

    Args:
        values: finite, any shape, HU.

    Raises:
        ReadError: row 68.
    """
    low, high = float(values.min()), float(values.max())
    sample = _sample(values)
    empty = f"holds the one value {low:.4g} everywhere" if low == high else ""
    if not empty and low < -900 and np.count_nonzero(sample > -900) < sample.size * 1e-3:
        empty = f"holds nothing but air ({low:.0f} to {high:.0f} HU)"
    if empty:
        raise ReadError(f"{empty}, expected a chest CT; choose another file", code=f"{family}-068", path=path)
    findings: tuple[Finding, ...] = ()
    tissue = np.count_nonzero((sample >= -300) & (sample <= 300)) / sample.size
    if tissue < MIN_TISSUE_SHARE:
        text = (
            f"{tissue:.2%} of the voxels lie between -300 and 300 HU ({low:.0f} to {high:.0f}): hardly any soft tissue"
        )
        findings += (Finding(f"{family}-068", f"{text}, outside the intended use", "error"),)
    if high > HIGHEST_HU:
        count = int(np.count_nonzero(values > HIGHEST_HU))
        text = f"{count} voxels above {HIGHEST_HU} HU (highest {high:.0f}): metal, or no Hounsfield units"
        findings += (Finding(f"{family}-067", text),)
    return findings


def clip_air(hu: NDArray[np.float32], *, family: str = "IN-NII") -> tuple[Finding, ...]:
    """Raise values below -1024 to -1024, in place; a finding says how many and how low they were."""
    low = float(hu.min())
    if low >= AIR_HU:
        return ()
    count = int(np.count_nonzero(hu < AIR_HU))
    np.maximum(hu, np.float32(AIR_HU), out=hu)
    return (
        Finding(
            f"{family}-067",
            f"{count} voxels below -1024 HU (lowest {low:.0f}; padding or resampling overshoot) were set to -1024",
            "info",
        ),
    )


def fill_nonfinite(
    hu: NDArray[np.float32], native: Grid, *, family: str = "IN-NII", path: str | Path | None = None
) -> tuple[Finding, ...]:
    """Set NaN and infinite voxels outside the body to air, in place.

    Blank corners and margins are common and harmless. A blank voxel with tissue (above -500 HU) on both sides of it,
    in its axial row or column, lies in the body and hides anatomy; so does a slice that is mostly blank.

    Args:
        hu: stored order, shape of `native`.
        native: the grid, which tells the axial planes.

    Raises:
        ReadError: row 57.
    """
    bad = ~np.isfinite(hu)
    count = int(np.count_nonzero(bad))
    if not count:
        return ()
    turn = native.reorientation(RAS)  # axis 0 runs right-left, axis 1 front-back, axis 2 along the body
    blank = reorient_array(bad, *turn)
    with np.errstate(invalid="ignore"):
        tissue = reorient_array((hu > -500) & ~bad, *turn)
    inside = blank & (_between(tissue, 0) | _between(tissue, 1))
    lost = np.flatnonzero(blank.mean(axis=(0, 1)) > MAX_NONFINITE_SLICE_SHARE)
    where = f"{count} NaN or infinite voxels"
    if inside.any() or lost.size or count > hu.size * MAX_NONFINITE_SHARE:
        detail = f"{int(inside.sum())} of them inside the body, {lost.size} axial slices mostly blank"
        raise ReadError(f"holds {where}, {detail}; export the scan again without them", code=f"{family}-057", path=path)
    hu[bad] = AIR_HU
    return (Finding(f"{family}-057", f"{where} outside the body were set to -1024 HU"),)


def _between(tissue: NDArray[np.generic], axis: int) -> NDArray[np.bool_]:
    """Voxels with tissue on both sides along `axis`."""
    before = np.logical_or.accumulate(tissue, axis=axis)
    after = np.flip(np.logical_or.accumulate(np.flip(tissue, axis), axis=axis), axis)
    return before & after


def _sample(values: NDArray[np.generic]) -> NDArray[np.float64]:
    forward = tuple(slice(None, None, -1 if step < 0 else 1) for step in values.strides)  # a view, where ravel copies
    flat = values[forward].ravel(order="K")
    return flat[:: max(1, flat.size // _SAMPLES)].astype(np.float64)


def _likely_window(sample: NDArray[np.float64]) -> list[int]:
    """The common window under which soft tissue (40 HU) and lung (-850 HU) fall on the picture's peaks."""
    inner = sample[(sample > 2) & (sample < 253)]

    def score(window: tuple[int, int]) -> float:
        low, high = window
        tissue, lung = (255 * (hu - low) / (high - low) for hu in (40, -850))
        near = np.count_nonzero(np.abs(inner - tissue) <= 8)
        dark = np.count_nonzero(np.abs(inner - lung) <= 8) if lung > 10 else np.count_nonzero(sample <= 2) * 0.5
        return float(min(near, dark) + 0.1 * near)

    best: tuple[int, int] = max(COMMON_WINDOWS, key=score)
    return list(best)
