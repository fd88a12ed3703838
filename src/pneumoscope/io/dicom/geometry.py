"""Slices put in order along their normal, and proof that they make one regular volume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, ReadError
from pneumoscope.geometry import LPS_TO_RAS, ORTHONORMAL_TOLERANCE
from pneumoscope.io.dicom.header import refused
from pneumoscope.io.dicom.series import Frame

SAME_POSITION_MM = 0.01  # Slices closer than this lie at one place; no CT is sampled so finely

SPACING_TOLERANCE = 0.01
"""Distances may differ from their mean by this share (or by SAME_POSITION_MM, or by the rounding of the text)."""

ROUNDINGS_MM = (1.0, 0.5, 0.25, 0.2, 0.1, 0.01, 0.001)
"""Units that writers round positions to; coarser than 0.1 mm they leave a choice of distances."""

MAX_ANGLE_DEG = 0.5  # Slices turned by more than this against each other are not parallel

MAX_TILT_DEG = 45.0
MAX_FILLED_SHARE = 0.1
MAX_FILLED_GAP = 3.05  # Longest gap that `fill_gaps` bridges, in slice distances: two slices missing side by side


@dataclass(frozen=True)
class Step:
    """One slice of the volume: the source slices `below` and `above`, blended by `weight` of the latter."""

    below: int
    above: int
    weight: float


@dataclass(frozen=True)
class Stack:
    """A regular volume made of slices."""

    frames: list[Frame]  # source slices in order of position
    steps: list[Step]  # one per slice of the volume; plain unless gaps were filled
    affine: NDArray[np.float64]  # (column, row, slice) index to RAS+ mm, (4, 4)
    findings: list[Finding] = field(default_factory=list)  # what was odd


def stack(
    frames: Sequence[Frame],
    same_pixels: Callable[[Frame, Frame], bool],
    *,
    where: str,
    fill_gaps: bool,
    min_slices: int,
) -> Stack:
    """Order slices and find their common lattice.

    Args:
        frames: at least one slice.
        same_pixels: tells whether two slices hold the same picture; called for slices at one position only.
        fill_gaps: interpolate a few missing or unevenly spaced slices instead of refusing.
        min_slices: fewer are not a volume.

    Raises:
        ReadError: rows 6, 7, 9, 10, 12, 14, 16, 33.
    """
    _require_alike(frames)
    normal = np.cross(*frames[0].directions)
    ordered = sorted(frames, key=lambda frame: float(frame.position_mm @ normal))  # equal ones in order of file
    kept, findings = _without_copies(ordered, normal, same_pixels)
    if len(kept) < max(1, min_slices):
        raise refused(
            16,
            f"{len(kept)} slice(s) are not a volume, at least {min_slices} are needed; give the folder of the series",
            where,
        )
    if len(kept) == 1:
        return _single(kept[0], normal, findings, where)
    place = np.array([frame.position_mm @ normal for frame in kept])
    _require_line(kept, place)
    vector = kept[-1].position_mm - kept[0].position_mm
    distance = _distance_before_rounding(kept, place)
    if distance is None:
        steps, more = _even_steps(kept, place, where, fill_gaps)
        findings += more
        vector = vector / (len(steps) - 1)
    else:
        steps = [Step(n, n, 0.0) for n in range(len(kept))]
        note = f"slice positions are rounded to {_rounding_mm(kept):g} mm; the distance {distance:.4g} mm fits them all"
        findings.append(Finding("IN-DCM-011", note, "info"))
        vector = vector * distance / (place[-1] - place[0])
    vector, tilt = _tilt(vector, normal, len(steps), where)
    findings += tilt + _contradictions(kept, float(np.linalg.norm(vector)), float(vector @ normal))
    return Stack(kept, steps, _affine(kept[0], vector), findings)


def _require_alike(frames: Sequence[Frame]) -> None:
    """Same matrix and pixel size (33), parallel (14), one reconstruction (9)."""
    _require_one(
        frames, lambda f: f.layout.shape, 33, lambda f: f"has {f.layout.shape[0]} x {f.layout.shape[1]} pixels"
    )
    _require_one(
        frames,
        lambda f: tuple(round(s, 3) for s in f.spacing_mm),
        33,
        lambda f: f"has pixels of {f.spacing_mm[0]:g} x {f.spacing_mm[1]:g} mm",
    )
    reference = _most_common_direction(frames)
    limit = 2 * np.sin(np.radians(MAX_ANGLE_DEG) / 2)
    for frame in frames:
        if np.linalg.norm(frame.directions - reference, axis=1).max() > limit:
            raise refused(14, "lies at an angle to the other slices; keep the slices of one orientation", frame)
    groups = Counter(frame.kernel for frame in frames if frame.kernel)
    if len(groups) > 1:
        listed = ", ".join(f"{count} with kernel {name}" for name, count in groups.most_common())
        odd = next(f for f in frames if f.kernel == groups.most_common()[-1][0])
        raise refused(9, f"belongs to another reconstruction of the series ({listed}); keep one of them", odd)


def _most_common_direction(frames: Sequence[Frame]) -> NDArray[np.float64]:
    keys = Counter(tuple(np.round(frame.directions, 2).ravel()) for frame in frames)
    wanted = keys.most_common(1)[0][0]
    return next(f.directions for f in frames if tuple(np.round(f.directions, 2).ravel()) == wanted)


def _require_one(
    frames: Sequence[Frame], key: Callable[[Frame], Hashable], row: int, words: Callable[[Frame], str]
) -> None:
    groups = Counter(key(frame) for frame in frames)
    if len(groups) == 1:
        return
    usual = groups.most_common(1)[0][0]
    odd = next(frame for frame in frames if key(frame) != usual)
    other = next(frame for frame in frames if key(frame) == usual)
    raise refused(row, f"{words(odd)}, other slices like {other.name} {words(other)[4:]}; keep one kind", odd)


def _without_copies(
    ordered: list[Frame], normal: NDArray[np.float64], same_pixels: Callable[[Frame, Frame], bool]
) -> tuple[list[Frame], list[Finding]]:
    kept: list[Frame] = []
    dropped = 0
    for frame in ordered:
        if not kept or abs((frame.position_mm - kept[-1].position_mm) @ normal) > SAME_POSITION_MM:
            kept.append(frame)
            continue
        together = np.linalg.norm(frame.position_mm - kept[-1].position_mm) <= SAME_POSITION_MM
        if not (together and same_pixels(frame, kept[-1])):
            raise _two_pictures(kept[-1], frame, ordered, normal)
        dropped += 1
    if not dropped:
        return kept, []
    return kept, [Finding("IN-DCM-008", f"{dropped} slice(s) are there twice with the same pixels; one was kept")]


def _two_pictures(first: Frame, second: Frame, ordered: list[Frame], normal: NDArray[np.float64]) -> ReadError:
    def group(frame: Frame) -> str:
        number = frame.header.text("AcquisitionNumber")
        known = int(number) if number.isdecimal() and len(number) < 7 else "?"
        return f"acquisition {known}, kernel {frame.kernel or '?'}"

    listed = ", ".join(f"{count} x ({name})" for name, count in sorted(Counter(map(group, ordered)).items()))
    return refused(
        9,
        f"shows another picture at the place of {first.name} ({float(second.position_mm @ normal):.2f} mm); the series "
        f"holds {listed}; keep the files of one acquisition or reconstruction",
        second,
    )


def _single(frame: Frame, normal: NDArray[np.float64], findings: list[Finding], where: str) -> Stack:
    step = frame.gap_mm or frame.thickness_mm
    if step is None:
        raise refused(16, "a single slice without a thickness is not a volume", where)
    note = Finding("IN-DCM-016", "a single slice; its thickness is taken for the slice distance")
    return Stack([frame], [Step(0, 0, 0.0)], _affine(frame, normal * step), [*findings, note])


def _require_line(frames: list[Frame], place: NDArray[np.float64]) -> None:
    """First pixels must lie on one straight line, upright or leaning."""
    positions = np.array([frame.position_mm for frame in frames])
    share = (place - place[0]) / (place[-1] - place[0])
    off = np.linalg.norm(positions - positions[0] - share[:, None] * (positions[-1] - positions[0]), axis=1)
    allowed = max(0.1, 0.1 * min(frames[0].spacing_mm))
    if off.max() > allowed:
        raise refused(
            10,
            f"is shifted sideways by {off.max():.2f} mm against the other slices; keep one reconstruction",
            frames[int(off.argmax())],
        )


def _even_steps(
    frames: list[Frame], place: NDArray[np.float64], where: str, fill_gaps: bool
) -> tuple[list[Step], list[Finding]]:
    gaps = np.diff(place)
    if _is_even(frames, place, gaps):
        return [Step(n, n, 0.0) for n in range(len(frames))], []
    usual = float(np.median(gaps))
    row, missing = _kind_of_gap(gaps, usual)
    spots = [n for n in range(len(gaps)) if abs(gaps[n] - usual) > max(SPACING_TOLERANCE * usual, SAME_POSITION_MM)]
    shown = ", ".join(f"{place[n]:.2f} to {place[n + 1]:.2f}" for n in spots[:5]) + (", ..." if len(spots) > 5 else "")
    what = (
        f"about {missing} slice(s) missing"
        if row != 10
        else f"uneven slice distances ({gaps.min():.3f} to {gaps.max():.3f} mm)"
    )
    bridgeable = gaps.max() <= MAX_FILLED_GAP * usual and missing <= max(1, MAX_FILLED_SHARE * len(frames))
    if not (fill_gaps and bridgeable):
        remedy = ", or read it in Python with pneumoscope.io.read_dicom(path, fill_gaps=True)" if bridgeable else ""
        raise refused(
            row,
            f"{what}: the usual distance is {usual:.3f} mm, it is not kept between {shown} mm (near "
            f"{frames[spots[0] if spots else 0].name}); export the whole series again{remedy}",
            where,
        )
    note = f"{what}; interpolated to even distances, voxels between {shown} mm are guesses"
    return _interpolated(place, usual), [Finding(f"IN-DCM-{row:03d}", note)]


def _is_even(frames: list[Frame], place: NDArray[np.float64], gaps: NDArray[np.float64]) -> bool:
    mean = float(gaps.mean())
    count = np.arange(len(place))
    slope, start = np.polyfit(count, place, 1)
    off = float(np.abs(place - (start + slope * count)).max())
    if np.abs(gaps - mean).max() <= max(SPACING_TOLERANCE * mean, SAME_POSITION_MM):
        return off <= max(0.1 * mean, SAME_POSITION_MM)
    return off <= 0.6 * min(0.1, _rounding_mm(frames)) and float(gaps.min()) > SAME_POSITION_MM


def _rounding_mm(frames: list[Frame]) -> float:
    """The coarsest unit that all positions along the stack are whole multiples of."""
    along = int(np.abs(np.cross(*frames[0].directions)).argmax())
    values = np.array([frame.position_mm[along] for frame in frames])
    fitting = (unit for unit in ROUNDINGS_MM if np.abs(values / unit - np.rint(values / unit)).max() < 1e-6 / unit)
    return next(fitting, 1e-4)


def _distance_before_rounding(frames: list[Frame], place: NDArray[np.float64]) -> float | None:
    """The slice distance that explains positions rounded to 0.1 mm or more; None when they need no explanation.

    A missing slice leaves steps of two sizes too. It is excluded when a distance that the header gives, and that is no
    multiple of the unit, puts every slice within the rounding; or when the sizes differ by one unit, the smaller one
    is of several units (a missing slice would double it), and neither is a distance that the header gives.
    """
    unit = _rounding_mm(frames)
    steps = np.rint(np.diff(place) / unit)
    upright = np.abs(np.cross(*frames[0].directions)).max() > 0.999
    if unit < 0.1 or not upright or np.ptp(steps) == 0:
        return None
    given = [mm for mm in (frames[0].gap_mm, frames[0].thickness_mm) if mm is not None]
    count = np.arange(len(place))
    for distance in given:
        whole = abs(distance / unit - round(distance / unit)) < 1e-3
        if distance > unit and not whole and np.ptp(place - distance * count) <= unit * (1 + 1e-6):
            return distance
    slope, start = np.polyfit(count, place, 1)
    off = float(np.abs(place - (start + slope * count)).max())
    exact = any(abs(distance / unit - step) < 1e-3 for distance in given for step in (steps.min(), steps.max()))
    return float(slope) if np.ptp(steps) == 1 and steps.min() > 1 and off <= 0.6 * unit and not exact else None


def _kind_of_gap(gaps: NDArray[np.float64], usual: float) -> tuple[int, int]:
    """Row of the catalogue (6 one missing, 7 several or a jump, 10 uneven) and how many slices are missing."""
    ratio = gaps / usual
    whole = np.round(ratio)
    near = np.abs(ratio - whole) <= 0.05 * np.maximum(whole, 1)
    missing = int(np.maximum(whole - 1, 0).sum())
    if missing and near.all():
        return (6 if missing == 1 else 7), missing
    if ratio.max() > 3:
        return 7, max(1, missing)
    return 10, missing


def _interpolated(place: NDArray[np.float64], usual: float) -> list[Step]:
    count = max(2, round((place[-1] - place[0]) / usual) + 1)
    steps = []
    for target in np.linspace(place[0], place[-1], count):
        above = int(np.clip(np.searchsorted(place, target), 1, len(place) - 1))
        weight = float((target - place[above - 1]) / (place[above] - place[above - 1]))
        steps.append(Step(above - 1, above, min(1.0, max(0.0, weight))))
    return steps


def _tilt(
    vector: NDArray[np.float64], normal: NDArray[np.float64], count: int, where: str
) -> tuple[NDArray[np.float64], list[Finding]]:
    upright = (vector @ normal) * normal
    sideways = float(np.linalg.norm(vector - upright))
    if sideways * (count - 1) <= SAME_POSITION_MM:
        return upright, []
    angle = float(np.degrees(np.arctan2(sideways, np.linalg.norm(upright))))
    if angle > MAX_TILT_DEG:
        raise refused(
            12, f"the slices lean by {angle:.0f} degrees, which no gantry does; export the series again", where
        )
    if np.sin(np.radians(angle)) <= ORTHONORMAL_TOLERANCE:
        return vector, []
    note = f"gantry tilt of {angle:.1f} degrees: voxel axes are kept at their true angle, volumes use the determinant"
    return vector, [Finding("IN-DCM-012", note)]


def _contradictions(frames: list[Frame], distance_mm: float, upright_mm: float) -> list[Finding]:
    """What the header says of distances against the positions, measured along the stack or along the normal."""
    findings = []
    slack = max(SPACING_TOLERANCE * distance_mm, 5 * SAME_POSITION_MM)
    for what, value in (("SpacingBetweenSlices", frames[0].gap_mm), ("SliceThickness", frames[0].thickness_mm)):
        if value is not None and min(abs(value - distance_mm), abs(value - upright_mm)) > slack:
            note = f"{what} says {value:g} mm, positions say {distance_mm:.3f} mm; positions are used"
            findings.append(Finding("IN-DCM-037", note, "info" if what == "SliceThickness" else "warning"))
    return findings


def _affine(first: Frame, vector: NDArray[np.float64]) -> NDArray[np.float64]:
    lps = np.eye(4)
    lps[:3, 0] = first.directions[0] * first.spacing_mm[0]
    lps[:3, 1] = first.directions[1] * first.spacing_mm[1]
    lps[:3, 2] = vector
    lps[:3, 3] = first.position_mm
    return np.asarray(LPS_TO_RAS @ lps)
