"""The same scan under two names, whatever was done to it: repacked, flipped, turned, resampled, requantised."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.audit.anatomy import FLIPS, mirrored
from pneumoscope.datasets.audit.rules import AuditFinding, AuditRules, Severity
from pneumoscope.datasets.radiographs import XrayCase
from pneumoscope.datasets.splits.folds import joined
from pneumoscope.errors import ReadError
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import Radiograph, Volume

BLOCKS = (32, 32, 24)  # Means over so many blocks along (i, j, k) make the fingerprint; fewer where the scan is smaller

LEVELS = 48


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What is kept of a scan to know it again."""

    # whose it is
    dataset: str
    case: str
    patient: str
    content: str  # hash of the voxels, the same for every order and direction of the axes and every file format
    blocks: NDArray[np.float32]  # (a, b, c) float32, ranks of the block means, mean 0 and length 1
    picture: NDArray[np.uint8]  # (h, w) uint8, the middle slice, small, for the report


def fingerprint(volume: Volume, *, dataset: str, case: str, patient: str) -> Fingerprint:
    """The fingerprint of a scan; the scan itself may be forgotten then."""
    means = _block_means(volume.hu)
    return Fingerprint(dataset, case, patient, content_hash(volume.hu), _ranks(means), _picture(volume.hu))


def pack_print(seen: Fingerprint) -> dict[str, Any]:
    """A fingerprint as JSON values."""
    packed = {name: getattr(seen, name) for name in ("dataset", "case", "patient", "content")}
    for name in ("blocks", "picture"):
        array = getattr(seen, name)
        packed[name] = {"shape": list(array.shape), "data": b64encode(np.ascontiguousarray(array).tobytes()).decode()}
    return packed


def unpack_print(packed: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of `pack_print`, to the bit."""
    arrays = {
        name: np.frombuffer(b64decode(packed[name]["data"]), dtype).reshape(packed[name]["shape"])
        for name, dtype in (("blocks", np.float32), ("picture", np.uint8))
    }
    return Fingerprint(**{**packed, **arrays})


def content_hash(values: NDArray[np.floating]) -> str:
    """SHA-256 of whole values in a canonical axis order and direction, so that the 48 ways to store them agree.

    Axes are ordered by length, then by their profile; each runs in the direction in which its profile reads smaller.
    Profiles are sums of whole numbers, so they do not depend on the order of adding. A scan that is its own mirror
    image leaves a tie, which does no harm: both directions are the same voxels.
    """
    shape = values.shape
    profiles = [np.zeros(n, np.int64) for n in shape]
    for i in range(shape[0]):
        plane = np.rint(values[i]).astype(np.int64)
        profiles[0][i] = plane.sum()
        profiles[1] += plane.sum(axis=1)
        profiles[2] += plane.sum(axis=0)
    flips = tuple(tuple(p[::-1]) < tuple(p) for p in profiles)
    turned = values[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    smaller = [min(tuple(p), tuple(p[::-1])) for p in profiles]
    order = sorted(range(3), key=lambda axis: (shape[axis], smaller[axis]))
    turned = turned.transpose(order)
    digest = hashlib.sha256(repr(turned.shape).encode())
    for plane in turned:
        digest.update(np.rint(plane).astype("<i4").tobytes())
    return digest.hexdigest()


def find_duplicates(
    prints: Sequence[Fingerprint], others: Iterable[Fingerprint] = (), rules: AuditRules | None = None
) -> list[AuditFinding]:
    """Every scan that is a copy of an earlier one of the set, or of one of another set; one finding per copy."""
    rules = rules or AuditRules()
    found: list[AuditFinding] = []
    earlier: list[Fingerprint] = list(others)
    for scan in prints:
        match = _match(scan, earlier, rules)
        if match is not None:
            found.append(_finding(scan, *match))
        earlier.append(scan)
    return found


def _match(scan: Fingerprint, earlier: Sequence[Fingerprint], rules: AuditRules) -> tuple[Fingerprint, float] | None:
    """The first exact copy, else the nearest one above the limit."""
    for known in earlier:
        if known.content == scan.content:
            return known, 2.0
    near = [(similarity(known.blocks, scan.blocks), known) for known in earlier]
    best = max(near, key=lambda pair: pair[0], default=None)
    return (best[1], best[0]) if best is not None and best[0] >= rules.near_correlation else None


def _finding(scan: Fingerprint, known: Fingerprint, correlation: float) -> AuditFinding:
    exact = correlation > 1
    same_set, same_patient = known.dataset == scan.dataset, known.patient == scan.patient
    name = f"case {known.case}" if same_set else f"case {known.case} of {known.dataset}"
    how = "voxel for voxel, flipped or repacked perhaps" if exact else f"nearly (correlation {correlation:.4f})"
    if same_set and not same_patient:
        kind = "duplicate-patient"
        detail = f"the scan of patient {scan.patient} is that of patient {known.patient}, {name}, {how}"
    else:
        kind = "duplicate-scan" if exact else "near-duplicate"
        detail = f"the scan is {name}, {how}" + ("" if same_set else "; never train on one and test on the other")
    severity: Severity = "error" if exact else "warning"
    return AuditFinding(scan.case, kind, severity, detail, confidence=min(correlation, 1.0), other=known.case)


def similarity(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Highest correlation of two fingerprints over the eight mirrorings; 0.0 where their shapes differ."""
    if a.shape != b.shape:
        return 0.0
    return max(float(np.sum(a * mirrored(b, flip))) for flip in FLIPS)


def _block_means(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Means over equal blocks, (a, b, c); values are cut to what a lung window keeps, as near copies were cut."""
    out = values
    for axis, count in enumerate(BLOCKS):
        n = out.shape[axis]
        edges = np.linspace(0, n, min(count, n) + 1)
        out = _means_along(out, edges, axis)
    return out


def _means_along(values: NDArray[np.floating], edges: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Means between fractional edges along one axis: exact areas, so that resampled copies agree."""
    n = values.shape[axis]
    weights = np.zeros((len(edges) - 1, n), np.float32)
    for row, (low, high) in enumerate(pairwise(edges)):
        first, last = int(low), min(n - 1, int(np.ceil(high)) - 1)
        for cell in range(first, last + 1):
            weights[row, cell] = min(high, cell + 1) - max(low, cell)
    weights /= weights.sum(axis=1, keepdims=True)
    if axis == 0:  # the whole scan: plane by plane, so that nothing of its size is copied
        out = np.zeros((len(weights), *values.shape[1:]), np.float32)
        for cell in range(n):
            plane = np.clip(values[cell], -1000, 400)
            for block in np.flatnonzero(weights[:, cell]):
                out[block] += weights[block, cell] * plane
        return out
    return np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis).astype(np.float32)


def _ranks(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ranks with ties shared, so that a rising change of values leaves them; mean 0, length 1.

    Values are put into `LEVELS` steps before: the noise of plain air is one tie then, whether a copy clipped it or not.
    """
    low, high = np.percentile(means, (1, 99))
    steps = np.clip(np.rint((means - low) / max(float(high - low), 1e-6) * LEVELS), 0, LEVELS)
    _, place, counts = np.unique(steps.ravel(), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place.ravel()].astype(np.float32)
    ranks -= ranks.mean()
    length = float(np.linalg.norm(ranks))
    return (ranks / length if length > 0 else ranks).reshape(means.shape)


def _picture(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The middle axial slice, thinned to at most 128 pixels, in the radiological view and the lung window."""
    middle = to_slices(values[:, :, values.shape[2] // 2][:, :, None])[0]
    step = max(1, max(middle.shape) // 128)
    thin = middle[::step, ::step]
    low, high = (-1350.0, 150.0) if float(thin.min()) < -100 else (0.0, 255.0)
    return np.asarray(np.clip((thin - low) / (high - low) * 255, 0, 255), np.uint8)


SIDE = 32
SAME_CORRELATION = 0.995
_CHUNK = 512


@dataclass(frozen=True)
class Pair:
    """Two pictures that are one."""

    # places in the list of cases, a before b
    a: int
    b: int
    correlation: float  # correlation of the shrunken pictures; 1.0 for equal pixels
    equal: bool  # whether the pixels are the same


@dataclass(frozen=True, eq=False)
class Prints:
    """What is compared of a list of pictures."""

    digests: tuple[str, ...]  # SHA-256 of the 8-bit pixels and their size; "" for pictures that cannot be read
    # (n, SIDE * SIDE) float32, each with mean 0 and length 1; zeros where there is nothing to compare
    small: NDArray[np.float32]
    unreadable: dict[int, str]  # place -> why


def take_prints(cases: Sequence[XrayCase], progress: Callable[[int, int], None] | None = None) -> Prints:
    """Read every picture once; holds one at a time."""
    digests, unreadable = [], {}
    small = np.zeros((len(cases), SIDE * SIDE), np.float32)
    for place, case in enumerate(cases):
        try:
            picture = case.load()
            digests.append(digest(picture))
            small[place] = shrink(picture)
        except ReadError as error:
            digests.append("")
            unreadable[place] = str(error)
        if progress is not None:
            progress(place + 1, len(cases))
    return Prints(tuple(digests), small, unreadable)


def digest(picture: Radiograph) -> str:
    """SHA-256 of size and 8-bit pixels."""
    grey = np.rint(picture.pixels * 255).astype(np.uint8)
    return hashlib.sha256(repr(grey.shape).encode() + grey.tobytes()).hexdigest()


def shrink(picture: Radiograph) -> NDArray[np.float32]:
    """(SIDE * SIDE,) mean 0 and length 1, borders of one grey level cut off; zeros for a picture of one level."""
    import cv2

    pixels = trim(picture.pixels)
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    length = float(np.linalg.norm(small))
    return (small / length).astype(np.float32) if length > 1e-6 else np.zeros_like(small)


def trim(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without rows and columns at the edges that hold one level (black bars, white margins)."""
    busy = np.ptp(pixels, axis=1) > 0.08, np.ptp(pixels, axis=0) > 0.08
    rows, columns = (np.flatnonzero(b) for b in busy)
    if rows.size < 8 or columns.size < 8:
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def find_pairs(prints: Prints, least: float = SAME_CORRELATION) -> list[Pair]:
    """Every pair of pictures that are one, exact ones first.

    Compares all with all in chunks: 6 000 pictures take about a second and 25 MB.
    """
    pairs: list[Pair] = []
    known: set[tuple[int, int]] = set()
    first: dict[str, list[int]] = {}
    for place, name in enumerate(prints.digests):
        if name:
            for earlier in first.setdefault(name, []):
                pairs.append(Pair(earlier, place, 1.0, True))
                known.add((earlier, place))
            first[name].append(place)
    for start in range(0, len(prints.small), _CHUNK):
        part = prints.small[start : start + _CHUNK]
        alike = part @ prints.small[start:].T  # (chunk, rest)
        for i, j in np.argwhere(alike >= least):
            a, b = start + int(i), start + int(j)
            if a < b and (a, b) not in known:
                pairs.append(Pair(a, b, float(alike[i, j]), False))
    return pairs


def patient_groups(cases: Sequence[XrayCase], pairs: Iterable[Pair]) -> list[str]:
    """A group per picture: patients, joined wherever pictures of two of them are one."""
    ties = [(cases[pair.a].patient, cases[pair.b].patient) for pair in pairs]
    group_of = joined((case.patient for case in cases), ties)
    return [group_of[case.patient] for case in cases]
