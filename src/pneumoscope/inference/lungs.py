"""Right and left lung of a scan: a small network says what is lung, Hounsfield units say where exactly it ends.

The network works on 128 x 128 slices and knows lungs, dense infiltrate in them included, from belly, neck and table; it
cannot place an edge within a millimetre, and on a scanner it never saw it overlooks parts. Air can place edges: each
connected piece of air in a slice is taken or left as a whole, by the network's vote over it or because it goes on from
lung in the next slice; dense voxels are added where the network is sure and they hang together with aerated lung.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.errors import Finding
from pneumoscope.geometry import Grid
from pneumoscope.inference.inputs import ModelInput
from pneumoscope.inference.slices import predict_probability
from pneumoscope.preprocess.slices import from_slices, resize_linear, resize_nearest, to_slices
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.inference.engines import Engine


@dataclass(frozen=True)
class LungRules:
    """How network and Hounsfield units are joined.

    Attributes:
        aerated_hu: voxels below are air or lung.
        aerated_probability: a voxel of air votes for lung from this network probability on.
        vote: share of a piece of air in a slice that must vote for lung.
        outside_probability: air that reaches the picture's border is lung only when the network's mean over all of it
            is at least this (a lung cut off by the field of view), else it is the room.
        overlap: share of a piece without votes enough that must lie on lung of the next slice to be lung as well.
        sure: a piece of air with at least this mean probability is lung, whatever its density.
        gas_hu: half of any other piece's core below this, noise smoothed away, makes it plain gas (trachea, stomach).
            Where the air around the patient reads higher, as on scans that passed through grey levels, the limit is
            `gas_margin_hu` above that air.
        gas_margin_hu: see `gas_hu`.
        dense_probability: a voxel that is not aerated is lung from this probability on.
        aerated_share: what is dense is kept in a slice only together with at least this share of aerated lung; keeps
            the network from seeing lungs in the belly or the neck.
        closing_mm: vessels and fissures narrower than twice this are filled in.
        hole_cm2: what lung surrounds in a slice and is no larger is lung too (vessels, consolidation), whatever the
            network says; the dome of the diaphragm is larger.
        smallest_ml: a connected piece of aerated lung below this is dropped.
    """

    aerated_hu: float = -250.0
    aerated_probability: float = 0.3
    vote: float = 0.3
    outside_probability: float = 0.4
    overlap: float = 0.5
    sure: float = 0.75
    gas_hu: float = -960.0
    gas_margin_hu: float = 40.0
    dense_probability: float = 0.75
    aerated_share: float = 0.1
    closing_mm: float = 4.0
    hole_cm2: float = 6.0
    smallest_ml: float = 20.0


def find_lungs(
    volume: Volume,
    model: nn.Module | Engine,
    preprocessing: ModelInput,
    *,
    rules: LungRules | None = None,
    progress: Progress = silent,
    **compute: Any,
) -> tuple[Mask, tuple[Finding, ...]]:
    """Lungs of a scan on its grid, 1 = right and 2 = left.

    Args:
        volume: the scan.
        model: a lung network, or one in its engine; its first output channel is lung.
        preprocessing: from the model's card.
        rules: see `LungRules`.
        progress: called per batch of slices.
        compute: device, precision and batch_size for `predict_probability`.

    Returns:
        The mask (empty when no lung is found) and what there is to report about it.
    """
    rules = rules or LungRules()
    stack = to_slices(volume.hu)  # (n, h, w), a view
    images = preprocessing.images(stack, None)
    probability = predict_probability(model, images, progress=progress, **compute)[:, 0]
    lungs = join_with_hu(stack, probability, volume.grid, rules)
    labels, findings = split_sides(lungs, volume.grid.spacing_mm)
    dropped_ml = _dropped_voxels(lungs, probability, volume.grid, rules) * volume.grid.voxel_volume_ml
    if dropped_ml > REPORTED_ML:
        findings += (
            Finding("SEG-LUNG-002", f"{dropped_ml:.0f} ml that the lung network is sure of are not in the lung mask"),
        )
    return Mask(from_slices(labels), volume.grid, dict(LUNG_LABELS)), findings


def join_with_hu(
    stack_hu: NDArray[np.float32], probability: NDArray[np.float32], grid: Grid, rules: LungRules
) -> NDArray[np.bool_]:
    """Lung voxels (n, h, w) from Hounsfield units (n, h, w) and network probability (n, rows, columns).

    First the aerated lung, without pieces that are small in 3D; then, slice by slice, the dense voxels that belong to
    it. Beside the result stands one 16-bit map of undecided air. `grid` is the scan's.
    """
    size = (stack_hu.shape[1], stack_hu.shape[2])
    aerated, undecided = _vote(stack_hu, probability, grid.spacing_mm[:2], rules)
    _go_on(aerated, undecided, rules.overlap)
    aerated = _drop_small(aerated, rules.smallest_ml / grid.voxel_volume_ml)
    radius = np.maximum(1, np.round(rules.closing_mm / np.asarray(grid.spacing_mm[1::-1]))).astype(int)
    disk = _ellipse(*radius)
    hole_pixels = 100 * rules.hole_cm2 / (grid.spacing_mm[0] * grid.spacing_mm[1])
    for k in np.flatnonzero(aerated.any(axis=(1, 2))):
        p = resize_linear(probability[k : k + 1], size)[0]
        aerated[k] = _with_dense(aerated[k], p, disk, hole_pixels, rules)
    return aerated


def _vote(
    stack_hu: NDArray[np.float32], probability: NDArray[np.float32], spacing_mm: tuple[float, float], rules: LungRules
) -> tuple[NDArray[np.bool_], NDArray[np.uint16]]:
    """Aerated lung by the network's vote (n, h, w), and the pieces of air that may yet be lung, numbered per slice."""
    import cv2

    aerated = np.zeros(stack_hu.shape, bool)
    undecided = np.zeros(stack_hu.shape, np.uint16)
    gas_hu = _gas_limit_hu(stack_hu, rules)
    for k, hu in enumerate(stack_hu):
        air = hu < rules.aerated_hu
        count, pieces = cv2.connectedComponents(air.astype(np.uint8), connectivity=4)
        if count < 2 or count > np.iinfo(np.uint16).max:
            continue
        p = resize_linear(probability[k : k + 1], hu.shape)[0]
        area = np.bincount(pieces.ravel(), minlength=count)
        mean_p = np.bincount(pieces.ravel(), p.ravel(), count) / area
        gas = _is_gas(hu, air, pieces, count, spacing_mm, gas_hu) & (mean_p < rules.sure)
        votes = np.bincount(pieces[p >= rules.aerated_probability], minlength=count) / area
        room = np.zeros(count, bool)
        room[np.concatenate((pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]))] = True
        room &= mean_p < rules.outside_probability
        lung = (votes >= rules.vote) & ~room & ~gas
        maybe = ~lung & ~room & ~gas
        lung[0] = maybe[0] = False
        aerated[k] = lung[pieces]
        undecided[k] = np.where(maybe[pieces], pieces, 0)
    return aerated, undecided


def _gas_limit_hu(stack_hu: NDArray[np.float32], rules: LungRules) -> float:
    """Below what gas is plain: `gas_hu`, or a margin above the air of the room where that reads higher.

    The room is seen in the thinnest of the four corners; others may hold the table or bedding.
    """
    rows, columns = (max(1, size // 20) for size in stack_hu.shape[1:])
    room_hu = min(
        float(np.median(stack_hu[:, i, j]))
        for i in (slice(rows), slice(-rows, None))
        for j in (slice(columns), slice(-columns, None))
    )
    if room_hu >= HIGHEST_ROOM_HU:  # no air there: a picture cut to the body
        return rules.gas_hu
    return max(rules.gas_hu, room_hu + rules.gas_margin_hu)


def _is_gas(
    hu: NDArray[np.float32],
    air: NDArray[np.bool_],
    pieces: NDArray[np.int32],
    count: int,
    spacing_mm: tuple[float, float],
    gas_hu: float,
) -> NDArray[np.bool_]:
    """Which pieces are plain gas: half their core, a voxel off tissue and smoothed over 3 mm, is below `gas_hu`."""
    import cv2

    columns, rows = (2 * max(0, round((SMOOTH_MM / step - 1) / 2)) + 1 for step in spacing_mm)
    core = cv2.erode(air.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0
    size = np.bincount(pieces[core], minlength=count)
    thin = np.bincount(pieces[core & (cv2.blur(hu, (columns, rows)) < gas_hu)], minlength=count)
    return (thin >= 0.5 * size) & (size > 0)


def _go_on(aerated: NDArray[np.bool_], undecided: NDArray[np.uint16], overlap: float) -> None:
    """Take undecided pieces that lie on lung of the slice before, going up and then down; changes both in place."""
    n = len(aerated)
    for order in (range(1, n), range(n - 2, -1, -1)):
        step = order.step
        for k in order:
            pieces = undecided[k]
            if not pieces.any() or not aerated[k - step].any():
                continue
            area = np.bincount(pieces.ravel())
            on_lung = np.bincount(pieces[aerated[k - step]], minlength=len(area))
            taken = on_lung >= overlap * np.maximum(area, 1)
            taken[0] = False
            aerated[k] |= taken[pieces]
            pieces[taken[pieces]] = 0


def _with_dense(
    aerated: NDArray[np.bool_], p: NDArray[np.float32], disk: NDArray[np.uint8], hole_pixels: float, rules: LungRules
) -> NDArray[np.bool_]:
    """Aerated lung of one slice with the dense lung that hangs together with it, gaps and holes closed."""
    import cv2

    both = aerated | (p >= rules.dense_probability)
    closed = cv2.morphologyEx(both.astype(np.uint8), cv2.MORPH_CLOSE, disk, borderType=cv2.BORDER_CONSTANT) > 0
    both |= (closed | ndimage.binary_fill_holes(both)) & (p >= 0.5)
    both |= _small_holes(both, hole_pixels)
    pieces, count = ndimage.label(both)
    share = ndimage.mean(aerated, pieces, np.arange(count + 1))
    keep = np.nan_to_num(share) >= rules.aerated_share
    keep[0] = False
    return keep[pieces]


def _small_holes(mask: NDArray[np.bool_], largest: float) -> NDArray[np.bool_]:
    """Background pieces of a slice that the mask surrounds and that have at most `largest` pixels."""
    holes = ndimage.binary_fill_holes(mask) & ~mask
    if not holes.any():
        return holes
    pieces, _ = ndimage.label(holes)
    small = np.bincount(pieces.ravel()) <= largest
    small[0] = False
    return small[pieces]


def _ellipse(rows: int, columns: int) -> NDArray[np.uint8]:
    y, x = np.ogrid[-rows : rows + 1, -columns : columns + 1]
    return ((y / rows) ** 2 + (x / columns) ** 2 <= 1).astype(np.uint8)


def _dropped_voxels(lungs: NDArray[np.bool_], probability: NDArray[np.float32], grid: Grid, rules: LungRules) -> int:
    """Voxels that the network is sure of and that the rules left out, off the border that it places coarsely."""
    import cv2

    size = (lungs.shape[1], lungs.shape[2])
    around = [2 * round(BORDER_MM / step) + 1 for step in grid.spacing_mm[1::-1]]
    kernel = np.ones(around, np.uint8)
    dropped = 0
    for k, found in enumerate(lungs):
        sure = probability[k] >= rules.sure
        if sure.any():
            near = cv2.dilate(found.astype(np.uint8), kernel) > 0
            sure = resize_linear(probability[k : k + 1], size)[0] >= rules.sure
            dropped += int(np.count_nonzero(sure & ~near))
    return dropped


def _drop_small(lungs: NDArray[np.bool_], smallest_voxels: float) -> NDArray[np.bool_]:
    """Without connected pieces (6 neighbours) below the given size."""
    import cc3d

    if not lungs.any():
        return lungs
    pieces = cc3d.connected_components(lungs, connectivity=6)
    sizes = cc3d.statistics(pieces)["voxel_counts"]
    keep = sizes >= smallest_voxels
    keep[0] = False
    return keep[pieces]


STATE_OF_FINDING = {"SEG-LUNG-002": "lung_left_out"}
"""Findings of `find_lungs` that a reader must know before believing the numbers, as `severity.states.STATES`."""

HIGHEST_ROOM_HU = -860.0
"""Corners of slices denser than this are no air of the room."""

REPORTED_ML = 30.0
"""More than this left out against the network's vote is reported."""

BORDER_MM = 6.0
"""Network and Hounsfield units may place the lung's border this far apart."""

SMOOTH_MM = 3.0
"""Width of the mean that takes out noise before plain gas is told from lung."""

SIDE_SIZE = 128
"""Sides are told apart on slices of at most this size; the cut between touching lungs is that coarse."""


def split_sides(
    lungs: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> tuple[NDArray[np.uint8], tuple[Finding, ...]]:
    """Label lungs (n, h, w) 1 = patient's right (left in the picture) and 2 = left.

    Lungs that touch (thin anterior junction) are cut: the mask is eroded until two large pieces part, and each voxel
    goes to the nearer piece. What never parts is one lung, of the side of the picture that it mostly lies on, with a
    finding; it is never shared out over a middle that nobody measured.
    """
    labels = np.zeros(lungs.shape, np.uint8)
    if not lungs.any():
        return labels, (Finding("SEG-LUNG-000", "no lung was found in the scan", "error"),)
    h, w = lungs.shape[1:]
    small_size = (min(h, SIDE_SIZE), min(w, SIDE_SIZE))
    small = resize_nearest(lungs, small_size)
    sampling = (spacing_mm[2], spacing_mm[1] * h / small_size[0], spacing_mm[0] * w / small_size[1])
    depth = ndimage.distance_transform_edt(small, sampling=sampling).astype(np.float32)
    seeds = _two_seeds(depth)
    if seeds is None:
        side = 1 if np.mean(np.nonzero(lungs)[2]) < (w - 1) / 2 else 2
        labels[lungs] = side
        return labels, (Finding("SEG-LUNG-001", f"one lung was found; taken as the {LUNG_LABELS[side]}"),)
    nearest = ndimage.distance_transform_edt(seeds == 0, sampling=sampling, return_distances=False, return_indices=True)
    side_map = seeds[tuple(nearest)]
    labels[lungs] = resize_nearest(np.ascontiguousarray(side_map), (h, w))[lungs]
    return labels, ()


def _two_seeds(depth: NDArray[np.float32]) -> NDArray[np.uint8] | None:
    """Two pieces of the mask, 1 the more to the right of the patient (lower column), found at the least erosion."""
    import cc3d

    total = np.count_nonzero(depth)
    for erosion in (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 15.0):
        pieces = cc3d.connected_components(depth > erosion, connectivity=6)
        statistics = cc3d.statistics(pieces)
        sizes, centres = statistics["voxel_counts"][1:], statistics["centroids"][1:]
        large = np.argsort(sizes)[::-1][:2]
        if len(large) < 2 or sizes[large[1]] < 0.08 * total:
            continue
        apart = centres[large[1]][2] - centres[large[0]][2]
        if abs(apart) < 0.1 * depth.shape[2]:  # one above the other: pieces of the same lung
            continue
        right, left = (large[0], large[1]) if apart > 0 else (large[1], large[0])
        seeds = np.zeros(depth.shape, np.uint8)
        seeds[pieces == right + 1] = 1
        seeds[pieces == left + 1] = 2
        return seeds
    return None
