"""Fit what a network is familiar with, for its model folder: pictures and features of radiographs, frames of scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.inference.out_of_distribution import (
    FILE,
    Familiar,
    Limits,
    PictureSpace,
    ScanSpace,
    shrunken,
    shrunken_frames,
)
from pneumoscope.io.files import sha256, write_bytes

PICTURE_COMPONENTS = 40
SCAN_COMPONENTS = 10
"""How many principal components are kept of pictures, and of frames of scans."""

SHRINK = 0.01
"""Share of an even covariance mixed into that of the features, so that it can be inverted."""

BOTH_SHARE = 3
"""A CT slice is often within both limits, near to each: few chests are, so the sum may refuse more of them."""

MIN_PICTURES, MIN_OF_A_SOURCE = 20, 10


def fit_space(pictures: NDArray[np.float32], components: int) -> PictureSpace:
    """Of pictures (n, ...); at most n / 2 components are kept."""
    flat = pictures.reshape(len(pictures), -1)
    mean = flat.mean(axis=0)
    _, singular, axes = np.linalg.svd(flat - mean, full_matrices=False)
    variances = singular.astype(np.float64) ** 2 / len(flat)
    kept = min(components, len(flat) // 2)
    noise = max(float(variances[kept:].sum()) / (flat.shape[1] - kept), 1e-4)
    return PictureSpace(
        mean.astype(np.float32),
        axes[:kept].astype(np.float32),
        np.maximum(variances[:kept], noise).astype(np.float32),
        np.array([noise], np.float32),
    )


def fit_familiar(
    train: tuple[NDArray[np.uint8], NDArray[np.floating], NDArray[np.integer]],
    validation: tuple[NDArray[np.uint8], NDArray[np.floating]],
    *,
    refused: float = 0.01,
    sources: Sequence[str] | None = None,
) -> Familiar:
    """Fit to training pictures, and set each limit so that it refuses the share `refused` of validation pictures.

    Args:
        train: pictures (n, side, side), features (n, f), class numbers (n,).
        validation: pictures and features of other patients. Test pictures and pictures of other kinds have no part.
        refused: share; the limit on both refuses `BOTH_SHARE` times as many, most of them the same ones.
        sources: of each validation picture: no source of `MIN_OF_A_SOURCE` or more passes one of the three limits more
            often than `refused`, however few its pictures are beside the others'. The limit on both is of all together.

    Raises:
        InputError: fewer than `MIN_PICTURES` of either.
    """
    squares, features, labels = train
    if min(len(squares), len(validation[0])) < MIN_PICTURES:
        raise InputError(
            f"a model of what is familiar needs at least {MIN_PICTURES} training and validation pictures, got "
            f"{len(squares)} and {len(validation[0])}"
        )
    space = fit_space(shrunken(squares), PICTURE_COMPONENTS)
    centres, precision = _classes(np.asarray(features, np.float64), np.asarray(labels))
    unlimited = Limits(np.inf, 0.0, np.inf)
    found = Familiar(
        **vars(space), centres=centres.astype(np.float32), precision=precision.astype(np.float32), limits=unlimited
    )
    scores = found.score(*validation)
    each = [
        Limits(
            float(np.quantile(scores.distance[rows], 1 - refused)),
            float(np.quantile(scores.upright[rows], refused)),
            float(np.quantile(scores.features[rows], 1 - refused)),
        )
        for rows in _rows_by_source(len(validation[0]), sources)
    ]
    limits = Limits(
        max(limit.distance for limit in each),
        max(1.0, min(limit.upright for limit in each)),
        max(limit.features for limit in each),
    )
    together = scores.distance / limits.distance + scores.features / limits.features
    both = min(2.0, float(np.quantile(together, 1 - BOTH_SHARE * refused)))
    return Familiar(**{**vars(found), "limits": replace(limits, both=both)})


def _rows_by_source(n: int, sources: Sequence[str] | None) -> list[NDArray[np.intp]]:
    """All rows, and those of each source that has enough of them."""
    if sources is not None and len(sources) != n:
        raise InputError(f"{n} validation pictures and {len(sources)} sources; give one source per picture")
    named = np.asarray([] if sources is None else sources, dtype=np.str_)
    own = [np.flatnonzero(named == name) for name in np.unique(named)]
    return [np.arange(n), *(rows for rows in own if len(rows) >= MIN_OF_A_SOURCE)]


def _classes(
    features: NDArray[np.float64], labels: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of each class that occurs, and the inverse covariance around them."""
    names = np.unique(labels)
    centres = np.stack([features[labels == name].mean(axis=0) for name in names])
    rest = features - centres[np.searchsorted(names, labels)]
    covariance = rest.T @ rest / len(rest)
    even = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    return centres, np.linalg.inv((1 - SHRINK) * covariance + SHRINK * even * np.eye(len(covariance)))


def write_familiar(folder: str | Path, familiar: Familiar) -> dict[str, Any]:
    """Write `FILE` into a model folder and give the card's entry ``familiar``."""
    return {**write_space(folder, familiar), "limits": asdict(familiar.limits)}


def write_space(folder: str | Path, space: PictureSpace) -> dict[str, Any]:
    """Write the arrays into `FILE` of a model folder; its name and SHA-256, for the card."""
    from safetensors.numpy import save

    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f.name: getattr(space, f.name) for f in fields(space)}
    kept = {name: np.ascontiguousarray(values) for name, values in arrays.items() if isinstance(values, np.ndarray)}
    write_bytes(path, save(kept))
    return {"file": FILE, "sha256": sha256(path)}


def fit_scans(
    scans: Mapping[str, NDArray[np.floating]], others: NDArray[np.floating] | None = None, margin: float = 1.3
) -> ScanSpace:
    """Fit to the frames of training scans by name; the limit is `margin` times the farthest of them left out.

    `others` are frames of single slices, part of the training throughout; at least two scans are needed.
    """
    always = [] if others is None else [shrunken_frames(others)]
    small = {name: shrunken_frames(frames) for name, frames in scans.items()}
    left_out = []
    for name, own in small.items():
        rest = [frames for other, frames in small.items() if other != name]
        space = fit_space(np.concatenate([*rest, *always]), SCAN_COMPONENTS)
        left_out.append(float(np.median(space.distances(own))))
    return ScanSpace(fit_space(np.concatenate([*small.values(), *always]), SCAN_COMPONENTS), margin * max(left_out))


def write_scan_space(folder: str | Path, scans: ScanSpace) -> dict[str, Any]:
    """Write the space into a model folder and give the card's entry ``familiar``."""
    return {**write_space(folder, scans.space), "limit": scans.limit}
